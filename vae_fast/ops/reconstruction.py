"""The reconstruction loss as raw ops and Functions; a scalar loss makes its gradient in the forward pass."""

from typing import NamedTuple

import torch
from torch.autograd import Function

from vae_fast.eager import reconstruction as eager
from vae_fast.eager.reductions import accumulator
from vae_fast.ops import autograd
from vae_fast.ops.backend import room
from vae_fast.ops.library import define, plain


class Spec(NamedTuple):
    likelihood: str
    reduction: str
    backend: str


def reconstruct(params, target, spec):
    """The reduced nll of `target`."""
    if takes_native(spec.backend, *params, target):
        loss = eager.native(params, target, spec.likelihood, spec.reduction)
        if loss is not None:
            return loss
    function = autograd.select(_Ordinary, _Transformable, *params)
    if function is None:
        return _forward(params, target, spec.likelihood, spec.reduction, [False] * len(params), spec.backend)[0]
    return function.apply(spec, target, *params)


def takes_native(backend, *tensors):
    """Whether PyTorch's own op may stand in for ours: not where someone looks for ours, or transforms it."""
    return backend == "eager" and not torch.compiler.is_compiling() and plain(tensors)


def made_in_forward(params, wanted):
    """Which gradients forward makes. None in float16: a unit gradient divided by the batch underflows there."""
    return [want and p.dtype != torch.float16 for want, p in zip(wanted, params, strict=True)]


def fake_grads(params, wanted):
    return [torch.empty_like(p) for p, want in zip(params, wanted, strict=True) if want]


def place(grads, wanted):
    """One gradient or None a parameter."""
    made = iter(grads)
    return [next(made) if want else None for want in wanted]


def _forward_impl(params, target, likelihood, reduction, wanted, backend):
    loss, grads = room(backend, "reconstruction", target).forward(params, target, likelihood, reduction, wanted)
    return [loss, *(g for g in grads if g is not None)]


def _forward_fake(params, target, likelihood, reduction, wanted, backend):
    dtype = accumulator(params[0].dtype)
    if reduction == "none":
        loss = torch.empty_like(params[0], dtype=dtype)
    else:
        loss = target.new_empty(target.shape[:1] if reduction == "sample" else (), dtype=dtype)
    return [loss, *fake_grads(params, wanted)]


def _backward_impl(grad_loss, params, target, likelihood, reduction, wanted, backend):
    grads = room(backend, "reconstruction", target).backward(grad_loss, params, target, likelihood, reduction, wanted)
    return [g for g in grads if g is not None]


def _backward_fake(grad_loss, params, target, likelihood, reduction, wanted, backend):
    return fake_grads(params, wanted)


def _scale_impl(grads, grad_loss, backend):
    room(backend, "reconstruction", grads[0]).scale_(grads, grad_loss)


_SPEC = "Tensor[] params, Tensor target, str likelihood, str reduction, bool[] wanted, str backend"
_forward, _forward_direct = define(f"reconstruction_forward({_SPEC}) -> Tensor[]", _forward_impl, _forward_fake)
_backward, _backward_direct = define(
    f"reconstruction_backward(Tensor grad_loss, {_SPEC}) -> Tensor[]", _backward_impl, _backward_fake
)
_, _scale = define(
    "reconstruction_scale_(Tensor(a!)[] grads, Tensor grad_loss, str backend) -> ()",
    _scale_impl,
    lambda *_: None,
    vmap=False,
)


def _recompute(ctx, grad_loss, call):
    target, *params = ctx.saved_tensors
    wanted, spec = ctx.needs_input_grad[2:], ctx.spec

    def backward(grad_loss, target, *params):
        return call(grad_loss, params, target, spec.likelihood, spec.reduction, wanted, spec.backend)

    return None, None, *place(autograd.once(backward, grad_loss, target, *params), wanted)


class _Ordinary(Function):
    """For plain calls: keeps the gradient that forward made for one backward, in a plain attribute and nowhere else."""

    @staticmethod
    def forward(ctx, spec, target, *params):
        scalar = spec.reduction not in ("none", "sample")
        wanted = made_in_forward(params, [scalar and want for want in ctx.needs_input_grad[2:]])
        loss, *ctx.grads = _forward_direct(params, target, spec.likelihood, spec.reduction, wanted, spec.backend)
        ctx.spec = spec
        ctx.save_for_backward(target, *params)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        grads, ctx.grads = ctx.grads, None
        if not grads or torch.is_grad_enabled():
            return _recompute(ctx, grad_loss, _backward_direct)
        _scale(grads, grad_loss, ctx.spec.backend)
        return None, None, *place(grads, ctx.needs_input_grad[2:])


class _Transformable(Function):
    """For torch.compile and torch.func: no state, so the backward pass recomputes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(spec, target, *params):
        wanted = [False] * len(params)
        return _forward(params, target, spec.likelihood, spec.reduction, wanted, spec.backend)[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.spec, target, *params = inputs
        ctx.save_for_backward(target, *params)

    @staticmethod
    def backward(ctx, grad_loss):
        return _recompute(ctx, grad_loss, _backward)
