"""Registration of raw ops: functional, opaque to compilers, and looped over by vmap and by `is_grads_batched`.

Each op takes the backend as an argument, chosen once in forward, so that the backward pass uses the same one after
`use_backend` has ended; hence one implementation for every device, which picks the room.
"""

import operator

import torch
from torch._C import _are_functorch_transforms_active, _dispatch_tls_is_dispatch_key_included, _len_torch_dispatch_stack
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import profiler
from torch.compiler import is_compiling
from torch.utils import _pytree as pytree

from vae_fast.eager.elementary import number

_library = torch.library.Library("vae_fast", "DEF")
PLAIN = (torch.Tensor, torch.nn.Parameter)
_is_batched = torch._C._functorch.is_legacy_batchedtensor
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
    """Whether any of those is, a compiler, or a batch of gradients: then what is not PyTorch's own must be an op too.

    In one function, as it is asked in each call: every other would take half a microsecond.
    """
    return (
        is_compiling()
        or _len_torch_dispatch_stack()
        or _are_functorch_transforms_active()
        or profiler._is_profiler_enabled
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
        and not (value.is_neg() or value._is_zerotensor() or is_functorch_wrapped_tensor(value))
    )


def constant(value, dtype, like):
    """A number as a 0-d tensor on the device of `like`: the same one in each plain call, where PyTorch would fill it.

    A graph that is captured or traced gets its own: it must not depend on what the cache drops.
    """
    plain = type(like) in PLAIN and not (is_compiling() or _len_torch_dispatch_stack())
    if not plain or (like.is_cuda and torch.cuda.is_current_stream_capturing()):
        return like.new_full((), value, dtype=dtype)
    stream = torch._C._cuda_getCurrentRawStream(like.device.index) if like.is_cuda else None
    return number(value, dtype, like.device, stream)


def _is_special(tensor):
    """Whether a tensor's memory does not hold its values: of a subclass, lazily negated, zero, or any of a list."""
    if tensor is None:
        return False
    if type(tensor) in PLAIN:
        return tensor.is_neg() or tensor._is_zerotensor()
    return any(map(_is_special, tensor)) if type(tensor) in (list, tuple) else True


def _direct(op, implementation):
    """The implementation behind `op`, without the way through the dispatcher, which costs 10 microseconds.

    Where something listens there (a dispatch mode, a transform, the profiler, a special tensor) it is the op, and where
    a compiler traces the backward pass of an uncompiled call: it is not to trace how kernels are launched.
    """
    arguments = op._schema.arguments
    tensors = operator.itemgetter(*(i for i, argument in enumerate(arguments) if "Tensor" in str(argument.type)))

    def call(*args):
        if overheard() or any(map(_is_special, tensors(args))):
            return op(*args)
        return implementation(*args)

    return call


def define(schema, implementation, fake, vmap=True):
    """Register an op; returns it, and a cheaper way to call it where nothing is traced or transformed.

    `fake` makes outputs of the right shape, dtype and strides.
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vae_fast::{name}", fake, lib=_library)
    op = getattr(torch.ops.vae_fast, name).default
    if vmap:
        torch.library.register_vmap(op, _loop(op), lib=_library)
        _library.impl(name, _loop_over_gradients(op), "Batched")
    return op, _direct(op, implementation)


def differentiate(op, apply):
    """Have `op` called by itself, as a program of torch.export does, computed by `apply` where a gradient is asked for.

    apply: of the op's arguments, gives (the outputs that have a derivative, by a Function; whether the op has others,
    which come after them). Without this the implementation would be differentiated, which writes into buffers and takes
    floats for integers.
    """

    def below(*args):
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    def kernel(*args):
        if not _is_differentiated(args):
            return below(*args)
        with enable_single_level_autograd_function():  # within a transform of torch.func, which has brought us here
            made, others = apply(*args)
        return [*made, *below(*args)[len(made) :]] if others else list(made)

    _library.impl(op.name().partition(".")[0], kernel, "Autograd")


def _is_differentiated(args):
    """Whether backward or forward mode wants a derivative; within a Function's forward neither does."""
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
        return True
    return torch.autograd.forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()


def _loop(op):
    """A vmap rule that calls the op once for each example."""

    def rule(info, in_dims, *args):
        if info.batch_size == 0:
            raise ValueError(f"{op} was vmapped over a dimension of size 0: expected at least 1")
        flat, spec = pytree.tree_flatten(args)
        dims, _ = pytree.tree_flatten(in_dims)
        outputs = _stacked(op, info.batch_size, flat, dims, spec)
        return outputs, [0] * len(outputs)

    return rule


def _loop_over_gradients(op):
    """The same for `is_grads_batched`, whose batches are of another kind than torch.func's, with no public rules."""

    def rule(*args):
        flat, spec = pytree.tree_flatten(args)
        levels = [_level(x) if isinstance(x, torch.Tensor) else 0 for x in flat]
        innermost = max(levels)
        dims = [0 if level == innermost else None for level in levels]
        flat = [
            x if dim is None else torch._remove_batch_dim(x, innermost, 0, 0) for x, dim in zip(flat, dims, strict=True)
        ]
        size = next(len(x) for x, dim in zip(flat, dims, strict=True) if dim is not None)
        return [torch._add_batch_dim(output, 0, innermost) for output in _stacked(op, size, flat, dims, spec)]

    return rule


def _level(tensor):
    """The innermost level at which it is batched, 0 if at none: the one whose removal leaves an ordinary tensor.

    PyTorch counts levels for each thread, and the backward pass of a GPU runs in another than its caller's.
    """
    level = 0
    while _is_batched(tensor):
        level += 1
        tensor = torch._remove_batch_dim(tensor, level, 0, 0)  # or an empty dimension, at a level that it has not
    return level


def _stacked(op, size, flat, dims, spec):
    """The outputs of op for each of `size` examples, side by side in dimension 0."""

    def example(i):
        leaves = [x if dim is None else x.select(dim, i) for x, dim in zip(flat, dims, strict=True)]
        return op(*pytree.tree_unflatten(leaves, spec))

    return [torch.stack(same) for same in zip(*map(example, range(size)), strict=True)]
