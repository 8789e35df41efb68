"""What the autograd Functions share: which kind to apply, what forward makes, and the guard against double backward."""

import functools

import torch
from torch.autograd import Function, forward_ad
from torch.autograd.function import _SingleLevelFunction

from vae_fast.ops.plain import PLAIN, batching, vmapping

TWICE = (
    "vae_fast's losses cannot be differentiated twice (gradient penalty, grad of grad, Hessian): "
    "compute that term with PyTorch's own functions"
)

_PLAIN_OR_NONE = frozenset((*PLAIN, type(None)))


class Short(Function):
    """A Function of tensors known to be plain: its apply skips what Function's own does for torch.func.

    That saves 2 microseconds, and 5 where the code has left the cache.
    """

    apply = vars(torch._C._FunctionBase)["apply"]


def select(ordinary, transformable, *tensors):
    """The Function to apply for these inputs, or None where the raw op is to be called.

    That is where no derivative can be asked for, and where a compiler traces, which the op's own derivative is for: in
    a Function it would not see that what is saved is written to before the backward pass. `ordinary` is for plain
    calls; `transformable`, for torch.func, costs more host time. Decided before apply, where grad mode is the caller's.
    """
    compiling = torch.compiler.is_compiling()
    if torch._C._are_functorch_transforms_active():
        if compiling:
            # Opaque ops inside torch.compile(torch.func.grad(f)) give silent zeros.
            raise RuntimeError(
                "vae_fast does not support torch.compile over torch.func transforms: compile the function inside the "
                "transform, or leave out one of the two"
            )
        return transformable
    tracked = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    # Forward mode is seen by the op itself, which has a Function raise.
    return ordinary if tracked and not compiling else None


def apply_alone(function, *inputs):
    """function.apply for a raw op that is called by itself: at this level of torch.func's transforms alone."""
    return _alone(function).apply(*inputs)


@functools.cache
def _alone(function):
    """Its twin without Function's apply, which would enter those transforms again."""
    names = "forward", "setup_context", "backward", "_compiled_autograd_key"  # which a compiled backward pass asks for
    members = {name: staticmethod(getattr(function, name)) for name in names}
    return type(function.__name__, (_SingleLevelFunction,), members)


def made_in_forward(params, wanted):
    """Which gradients forward makes: none if one is float16, where a unit gradient divided by the batch underflows."""
    if any(want and p.dtype == torch.float16 for want, p in zip(wanted, params, strict=True)):
        return [False] * len(params)
    return list(wanted)


def take(ctx, *upstream):
    """The gradients that forward made, which serve once and have no graph; None where backward must recompute them.

    An empty list, or None, where forward made none. They are scaled in place by the `upstream` gradients, once: a
    subclass of tensors may run an op several times.
    """
    grads, ctx.grads = ctx.grads, None
    if torch.is_grad_enabled() or vmapping() or forward_ad._current_level >= 0:
        return None
    return grads if _PLAIN_OR_NONE.issuperset(map(type, upstream)) else None


def place(grads, wanted):
    """One gradient, or None where it is not wanted, for each parameter."""
    made = iter(grads)
    return [next(made) if want else None for want in wanted]


def laid_out(tensor, strides):
    """A saved tensor in the memory format of forward, by which noise is numbered: a hook may have saved a dense copy.

    strides: those it had, or None where no hook can have changed them.
    """
    if strides is None or tensor.stride() == strides:
        return tensor
    like = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device="meta")
    return torch.empty_like(like, device=tensor.device).copy_(tensor)


def once(backward, *tensors):
    """backward(*tensors), whose own gradient raises: `once_differentiable` would lose it silently under torch.func.

    While compiling there is no double backward, and PyTorch says so itself.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        if batching():  # the batch that autograd makes of the results has no history of theirs
            raise RuntimeError(TWICE)
        return _Once.apply(backward, *tensors)
    return tuple(backward(*tensors))


def refuse(*arguments):
    """As `library.differentiate` takes it, for a raw backward op: it has no derivative, and without this one of 0."""
    raise RuntimeError(TWICE)


class _Once(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(backward, *tensors):
        return tuple(backward(*tensors))

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(TWICE)
