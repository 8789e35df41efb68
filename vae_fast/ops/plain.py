"""Whether a call is plain: of dense tensors, with nobody who is to see each op of it. Then there are shorter ways."""

import torch
from torch._C import _are_functorch_transforms_active, _dispatch_tls_is_dispatch_key_included, _len_torch_dispatch_stack
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad, profiler
from torch.compiler import is_compiling

from vae_fast.eager.elementary import number

PLAIN = (torch.Tensor, torch.nn.Parameter)
_VMAP_MODE = torch._C._parse_dispatch_key("VmapMode")


def batching():
    """Whether upstream gradients may be batches of them: torch.autograd.grad(is_grads_batched=True)."""
    # In a traced backward pass they are not, and torch 2.11 cannot trace the question.
    return not is_compiling() and _dispatch_tls_is_dispatch_key_included(_VMAP_MODE)


def vmapping():
    """The same, or torch.func.vmap of torch.autograd.grad: none of them can be written to what is no batch."""
    return batching() or _are_functorch_transforms_active()


def listening():
    """Whether a dispatch mode, a transform or the profiler is to see every op of PyTorch's own."""
    return _len_torch_dispatch_stack() or _are_functorch_transforms_active() or profiler._is_profiler_enabled


def overheard():
    """Whether any of those is, a compiler, forward mode, or a batch of gradients: then all must be ops of PyTorch.

    In one function, as it is asked in each call: every other would take half a microsecond.
    """
    return (
        is_compiling()
        or _len_torch_dispatch_stack()
        or _are_functorch_transforms_active()
        or profiler._is_profiler_enabled
        or forward_ad._current_level >= 0
        or _dispatch_tls_is_dispatch_key_included(_VMAP_MODE)
    )


def hooked():
    """Whether hooks take what is saved for backward.

    Checkpointing hands what a second forward saves to the backward of the first, by its place alone: both must go the
    same way, though the profiler, say, listens to one of them.
    """
    return _top_saved_tensors_default_hooks(True) is not None


def is_plain(value):
    """Whether it is a dense tensor whose memory holds its values, and none that a transform left behind."""
    return (
        type(value) in PLAIN
        and value.layout is torch.strided
        and not value.is_nested
        and not (value.is_neg() or value._is_zerotensor() or is_functorch_wrapped_tensor(value))
    )


def is_special(tensor):
    """Whether a tensor's memory does not hold its values: of a subclass, lazily negated, zero, or any of a list."""
    if tensor is None:
        return False
    if type(tensor) in PLAIN:
        return tensor.is_neg() or tensor._is_zerotensor()
    return any(map(is_special, tensor)) if type(tensor) in (list, tuple) else True


def constant(value, dtype, like):
    """A number as a 0-d tensor on the device of `like`: the same one in each plain call, where PyTorch would fill it.

    A graph that is captured or traced gets its own: it must not depend on what the cache drops.
    """
    plain = type(like) in PLAIN and not (is_compiling() or _len_torch_dispatch_stack())
    if not plain or (like.is_cuda and torch.cuda.is_current_stream_capturing()):
        return like.new_full((), value, dtype=dtype)
    stream = torch._C._cuda_getCurrentRawStream(like.device.index) if like.is_cuda else None
    return number(value, dtype, like.device, stream)
