"""Registration of raw ops: functional, opaque to compilers, and looped over by vmap and by `is_grads_batched`.

Each op takes the backend as an argument, chosen once in forward, so that the backward pass uses the same one after
`use_backend` has ended; hence one implementation for every device, which picks the room.
"""

import operator

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.utils import _pytree as pytree

from vae_fast.ops.plain import is_special, overheard

_library = torch.library.Library("vae_fast", "DEF")
_is_batched = torch._C._functorch.is_legacy_batchedtensor


def _direct(op, implementation):
    """The implementation behind `op`, without the way through the dispatcher, which costs 10 microseconds.

    Where something listens there (a dispatch mode, a transform, the profiler, a special tensor) it is the op, and where
    a compiler traces the backward pass of an uncompiled call: it is not to trace how kernels are launched.
    """
    arguments = op._schema.arguments
    tensors = operator.itemgetter(*(i for i, argument in enumerate(arguments) if "Tensor" in str(argument.type)))

    def call(*args):
        if overheard() or any(map(is_special, tensors(args))):
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
