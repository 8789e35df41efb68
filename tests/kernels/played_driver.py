"""Triton's own launcher without a GPU, on CPU tensors: a plugin, `pytest -p tests.kernels.played_driver`.

Triton binds the arguments, compiles for an H200 and launches as it would there, and so do our plans, which call its
launcher in C themselves. The driver below it is played (`played_driver.c`): a launch is run by `ptx`, on the very bytes
that came with it. Needs a C compiler and Python's headers, as Triton does, and a machine without a CUDA driver.
"""

import ctypes
import ctypes.util
import itertools
import shutil
import subprocess
import sysconfig
import tempfile
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import triton
from torch._C._dynamo.guards import _empty_strided_cpu
from triton.backends.nvidia import driver as nvidia
from triton.compiler.compiler import CompiledKernel

from tests.kernels import ptx, ptx_code
from tests.kernels.ptx_arithmetic import TYPES
from tests.kernels.ptx_memory import Fault
from tests.support import environment
from vae_fast.kernels import launching, plans
from vae_fast.ops import backend

ON_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_size_t, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_void_p),
)  # fmt: skip
_streams = itertools.count(7)  # a new one each time that Triton, or a plan, asks for the current one
_current = [None]
_kernels = {}  # function -> what was compiled, which is not kept alive: nor does the driver
_launches = []  # the name of the kernel of each


class HostMemory:
    """The process's own, as `ptx_memory.Memory`; which address is a tensor's it cannot know."""

    def load(self, address, width):
        return self._bytes(address, width)[self._places(address, width)]

    def store(self, address, data):
        width = data.shape[1]
        self._bytes(address, width)[self._places(address, width)] = data

    def _bytes(self, address, width):
        first = int(address.min())
        if first < 4096 or (address % width).any():
            raise Fault(f"an access of {width} bytes at {first:#x}")
        return np.ctypeslib.as_array((ctypes.c_uint8 * (int(address.max()) + width - first)).from_address(first))

    def _places(self, address, width):
        return (address - address.min())[:, None] + np.arange(width)


def _launch(function, programs, threads, shared, stream, parameters):
    """0 if it went well."""
    try:
        _run(_kernels[function], programs, threads, shared, stream, parameters)
    except Exception:  # it would be lost in C
        traceback.print_exc()
        return 1
    return 0


def _run(kernel, programs, threads, shared, stream, parameters):
    metadata = kernel.metadata
    given, wanted = (threads, shared, stream), (32 * metadata.num_warps, metadata.shared, _current[0])
    if given != wanted:
        raise Fault(f"threads, shared memory and stream are {given}: expected {wanted}")
    _launches.append(metadata.name)
    code, values = ptx_code.parse(kernel.asm["ptx"]), {}
    for k, (name, kind) in enumerate(code.parameters.items()):
        values[name] = np.frombuffer(ctypes.string_at(parameters[k], TYPES[kind].itemsize), np.uint8)
    ptx.run_programs(code, values, HostMemory(), shared, threads, programs)


def _current_stream(device):
    _current[0] = next(_streams)
    return _current[0]


def _what_stands_in_the_way():
    if ctypes.util.find_library("cuda"):
        return "this machine has a CUDA driver of its own, which would be loaded instead"
    if not shutil.which("cc") or not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Triton's launcher needs a C compiler, cc, and Python's headers"
    return None


def _build(folder):
    include, source = Path(nvidia.__file__).parent / "include", Path(__file__).with_suffix(".c")
    library = folder / "libcuda.so.1"  # by this name what Triton compiles finds it, in a process that has loaded it
    command = ["cc", "-shared", "-fPIC", f"-I{include}", f"-Wl,-soname,{library.name}", source, "-o", library]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _install(folder):
    library = _build(folder)
    library.on_launch(_on_launch)
    triton.knobs.nvidia.libcuda_path = str(folder)
    init_handles = CompiledKernel._init_handles

    def noting(kernel):
        init_handles(kernel)
        _kernels[kernel.function] = SimpleNamespace(metadata=kernel.metadata, asm=kernel.asm)

    CompiledKernel._init_handles = noting
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.current_device = lambda: 0
    torch.cuda.set_device = lambda device: None
    torch.cuda.device_count = lambda: 1
    driver = nvidia.CudaDriver()
    driver.get_current_stream = _current_stream
    triton.runtime.driver.set_active(driver)
    # CPU tensors stand for a GPU's.
    environment.BACKENDS.append(environment.Backend("triton", "cpu"))
    environment.PLUGINS.append(__name__)
    backend.interpreting = lambda: True
    plans._empty_strided_cuda = _empty_strided_cpu
    launching._can_be_written_down = launching._are_told_apart


def pytest_configure():
    if _obstacle:
        pytest.exit(f"skipped: {_obstacle}", returncode=0)


def pytest_report_header():
    return "CUDA's driver is played: Triton's launcher calls it, and the code for sm_90 is run by NumPy"


def pytest_sessionfinish(session):
    """What is patched here has other names, or goes unused, if nothing was launched."""
    if session.testscollected and not session.config.option.collectonly and not _launches:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"{len(_launches)} launches of {len(set(_launches))} kernels through Triton's launcher")


_on_launch = ON_LAUNCH(_launch)
_obstacle = _what_stands_in_the_way()
if not _obstacle:
    _folder = tempfile.TemporaryDirectory()  # as long as the process: triton 3.6 links each launcher it makes to it
    _install(Path(_folder.name))  # now: the tests' parameters are made of what runs here
