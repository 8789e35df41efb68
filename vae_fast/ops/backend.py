"""Which room computes: Triton kernels or eager PyTorch."""

import contextlib
import functools
import importlib
import importlib.util
import os

from vae_fast import checks

BACKENDS = ("triton", "eager", "auto")
HAS_TRITON = importlib.util.find_spec("triton") is not None


# A plain global, for the whole process: torch.compile guards on it, and cannot trace a ContextVar. What the environment
# says is checked where it is used: a command can then say in one line what is wrong with it.
_current = os.environ.get("VAE_FAST_BACKEND", "auto")


def use_backend(name: str) -> contextlib.AbstractContextManager[None]:
    """Within the block `with use_backend(name):`, compute with "triton", "eager", or "auto".

    "auto" is Triton for CUDA tensors where it is installed, and eager otherwise. It holds for all threads of the
    process: where blocks of two overlap, the last to end leaves the backend that it began with. The environment
    variable VAE_FAST_BACKEND sets the default. A backward pass uses the backend of its forward, wherever it runs.
    "triton" takes CPU tensors only in Triton's interpreter (TRITON_INTERPRET=1, set before triton is imported).

    Raises ValueError for any other name, as the functions do for one in the environment; they raise RuntimeError where
    "triton" cannot take their tensors.

    >>> with use_backend("eager"):
    ...     gaussian_kl(torch.zeros(4, 2), torch.zeros(4, 2)).item()
    0.0
    """
    checks.choice("backend", name, BACKENDS)
    return _using(name)


@contextlib.contextmanager
def _using(name):
    global _current
    before, _current = _current, name
    try:
        yield
    finally:
        _current = before


def choose(tensor):
    """The backend for `tensor`, "triton" or "eager"."""
    name = _current
    if name == "auto":
        return "triton" if tensor.is_cuda and HAS_TRITON else "eager"
    if name == "triton":
        _check_triton(tensor)
    elif name != "eager":
        check_environment()
    return name


def launches(tensor):
    """Whether `choose` would return "triton", and not raise."""
    if _current == "auto":
        return tensor.is_cuda and HAS_TRITON
    return _current == "triton" and HAS_TRITON and (tensor.is_cuda or interpreting())


def check_environment():
    """Raise ValueError where VAE_FAST_BACKEND names no backend."""
    checks.choice("VAE_FAST_BACKEND", _current, BACKENDS)


def is_eager_on_cpu():
    """Whether `choose` would return "eager" for any CPU tensor, asked in less time."""
    return _current in ("auto", "eager")


def _check_triton(tensor):
    if not HAS_TRITON:
        raise RuntimeError('backend is "triton", but it is not installed: pip install triton, or use "eager" or "auto"')
    if not tensor.is_cuda and not interpreting():
        raise RuntimeError(
            f'backend is "triton", but the tensor is on {tensor.device}: move it to CUDA, use "eager" or "auto", '
            "or set TRITON_INTERPRET=1 before Python starts, to interpret the kernels on the CPU"
        )


def interpreting():
    """Whether Triton's kernels run in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def room(backend, name, tensor):
    """The module `name` of the backend's room. An empty tensor has nothing to launch: eager knows what its sums are."""
    return _module("kernels" if backend == "triton" and tensor.numel() else "eager", name)


@functools.cache
def _module(package, name):
    return importlib.import_module(f"vae_fast.{package}.{name}")
