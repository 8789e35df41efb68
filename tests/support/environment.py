"""Where the tests run: versions, interpreted or compiled kernels, devices, and what a marked test needs of them."""

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None


def _triton_version():
    if not HAS_TRITON:
        return (0, 0)
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2]))


TRITON = _triton_version()  # (major, minor)


def _interpreted():
    if not HAS_TRITON:
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


INTERPRETED = _interpreted()  # Triton reads TRITON_INTERPRET once, so a process has one or the other

PLUGINS = []  # modules that a process of its own must import for kernels to run there as in this one

inductor_for_cpu = pytest.mark.skipif(not shutil.which("c++"), reason="Inductor needs a C++ compiler for CPU tensors")


@dataclass(frozen=True)
class Backend:
    """A way to run the library's ops: `name` as `use_backend` takes it, and the device of the tensors."""

    name: str
    device: str

    def __str__(self):
        return f"{self.name}-{self.device}"


def available_backends():
    """Those that this process can run. With a GPU and no interpreter, the same tests run there too."""
    backends = [Backend("eager", "cpu")]
    if INTERPRETED:
        backends.append(Backend("triton", "cpu"))
    elif torch.cuda.is_available():
        backends.append(Backend("eager", "cuda"))
        if HAS_TRITON:
            backends.append(Backend("triton", "cuda"))
    return backends


BACKENDS = available_backends()


def describe():
    """One line for the head of a test run."""
    kernels = "not installed"
    if HAS_TRITON:
        import triton

        kernels = f"{triton.__version__} ({'interpreter' if INTERPRETED else 'compiled'})"
    device = f"CPU, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"torch {torch.__version__}, triton {kernels}, device: {device}, backends: {', '.join(map(str, BACKENDS))}"


MARKERS = {
    "interpreter_only": "runs kernels in Triton's interpreter (TRITON_INTERPRET=1)",
    "compiled_only": "compiles kernels, with or without a GPU (TRITON_INTERPRET unset)",
    "cuda_only": "runs compiled kernels on a GPU",
    "multi_gpu": "needs two GPUs",
    "big_memory(gib, device='cpu')": "needs so much free memory on the device",
    "no_poison(reason)": "leaves torch.empty uninitialised, for the reason given",
}


def skip_reason(marker, args=(), kwargs=None):
    """Why a test with this marker cannot run here, or None."""
    if marker in ("interpreter_only", "compiled_only", "cuda_only") and not HAS_TRITON:
        return "Triton is not installed"
    if marker == "interpreter_only" and not INTERPRETED:
        return "needs Triton's interpreter: TRITON_INTERPRET=1"
    if marker == "compiled_only" and INTERPRETED:
        return "needs compiled kernels: TRITON_INTERPRET unset"
    if marker == "cuda_only" and (INTERPRETED or not torch.cuda.is_available()):
        return "needs a GPU, and TRITON_INTERPRET unset"
    if marker == "multi_gpu" and torch.cuda.device_count() < 2:
        return f"needs two GPUs, found {torch.cuda.device_count()}"
    if marker == "big_memory":
        return _lack_of_memory(*args, **(kwargs or {}))
    return None


def _lack_of_memory(gib, device="cpu"):
    free = free_memory(device) / 2**30
    return None if free >= gib else f"needs {gib} GiB of free memory on {device}, found {free:.1f}"


def free_memory(device):
    """Bytes; 0 for a device that is not there."""
    if device != "cpu":
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
