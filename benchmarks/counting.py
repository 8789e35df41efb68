"""Counts that need no clock: kernel launches, and the bytes that PyTorch's own ops read and write."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# In-place ops that do not read what they write.
OVERWRITE = ("fill_", "zero_", "copy_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_")
COMPOSITE = ("CompositeExplicitAutograd", "CompositeImplicitAutograd")  # kernels made of other ops


class Counted(NamedTuple):
    """What PyTorch's ops did in a call. bytes: their inputs and outputs; passes: ops that touched memory."""

    bytes: int
    passes: int


def count_ops(call: Callable) -> Counted:
    """Count every op that PyTorch runs in `call`; those made of others are taken apart.

    An op reads its inputs and writes its outputs, each number once: an expanded tensor is as large as what it
    expands. Views and allocations move nothing. A Triton kernel inside an op of ours is not seen.
    """
    counter = _OpCounter()
    with counter:
        call()
    return Counted(counter.bytes, counter.passes)


class _Frame:
    """What the ops inside another op have read, written and allocated: sets of storages, and sizes of the last.

    unseen: what they have read that none of them had written.
    """

    def __init__(self):
        self.read, self.unseen, self.written, self.allocated = set(), set(), set(), {}


class _OpCounter(TorchDispatchMode):
    """Runs each op with itself in force, so that the ops inside are seen; what they leave over was the op's own loop.

    mse_loss, for one, squares in a loop of its own into a tensor that an inner sum reads.
    """

    def __init__(self):
        super().__init__()
        self.bytes = self.passes = 0
        self.frames = [_Frame()]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _allocates(func) or _is_view(func):
            result = func(*args, **kwargs)
            if _allocates(func):
                self.frames[-1].allocated.update({_storage(t): _size(t) for t in _tensors(result)})
            return result
        key, is_composite = _kernel(func, (args, kwargs))
        self.frames.append(_Frame())
        with self:
            result = func._op_dk(key, *args, **kwargs)
        frame, (reads, writes) = self.frames.pop(), _operands(func, args, kwargs, result)
        # copy_ is called composite and has a loop; ones_like has none, and does not read the tensor it is like.
        if not is_composite or (writes and not (frame.read or frame.written)):
            self._count_own(frame, reads, writes)
        outer = self.frames[-1]
        outer.unseen |= frame.unseen - outer.written
        outer.read |= frame.read
        outer.written |= frame.written
        outer.allocated.update(frame.allocated)
        return result

    def _count_own(self, frame, reads, writes):
        """Add what an op with a kernel of its own moved beside the ops inside it."""
        own_reads = [t for t in reads if _storage(t) not in frame.read]
        own_writes = [t for t in writes if own_reads or _storage(t) not in frame.written]
        results = {_storage(t): _size(t) for t in writes}  # one may be made small in the end, as a loss is
        hidden = [s for s, size in frame.allocated.items() if s in frame.unseen and results.get(s, 0) < size]
        moved = sum(map(_size, own_reads + own_writes)) + sum(frame.allocated[s] for s in hidden)
        frame.unseen |= {_storage(t) for t in reads}
        frame.read |= {_storage(t) for t in reads}
        frame.written |= {_storage(t) for t in writes} | set(hidden)
        self.bytes += moved
        self.passes += moved > 0


def _kernel(func, arguments):
    """The dispatch key of the kernel that runs, and whether that is made of other ops only."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    backend = "CUDA" if any(t.is_cuda for t in _tensors(arguments)) else "CPU"
    key = next(key for key in (backend, *COMPOSITE) if has_kernel(func.name(), key))
    return getattr(torch._C.DispatchKey, key), key != backend


def _operands(func, args, kwargs, result):
    """The tensors that an op reads, and those that it writes."""
    given = dict(zip((argument.name for argument in func._schema.arguments), args)) | kwargs
    reads = []
    for argument in func._schema.arguments:
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        if not (is_written and (argument.is_out or _name(func) in OVERWRITE)):
            reads += _tensors(given.get(argument.name))  # an in-place op reads too, and returns what it writes
    return reads, _tensors(result)


def _name(func):
    return func.name().partition("::")[2].partition(".")[0]


def _allocates(func):
    return _name(func).startswith(("empty", "new_empty"))


def _is_view(func):
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _tensors(value):
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _storage(tensor):
    return tensor.untyped_storage().data_ptr()


def _size(tensor):
    """Bytes that the tensor really has: a dimension of stride 0 repeats one number."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride()):
        count *= size if stride or not size else 1
    return count * tensor.element_size()


@contextmanager
def quiet_profiler() -> Iterator[None]:
    """Without the two lines that the profiler prints each time, and torch 2.11's that an earlier cycle is forgotten."""
    with patch.dict(os.environ, {"KINETO_LOG_LEVEL": "99"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: Profiler clears events")
        yield


def count_launches(call: Callable) -> int | None:
    """Kernels, copies and fills that `call` puts on the GPU; None where the profiler sees none.

    The profiler's hold on CUDA stays with the process, where each launch costs more from then on: time none there.
    """
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with quiet_profiler(), torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    return sum(e.device_type == on_device and not e.is_user_annotation for e in profile.events()) or None
