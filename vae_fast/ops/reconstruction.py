"""The reconstruction loss as raw ops and Functions; a scalar loss makes its gradient in the forward pass."""

import functools
from typing import NamedTuple

import torch
from torch.autograd import Function

from vae_fast.eager import reconstruction as eager
from vae_fast.eager.reductions import accumulator
from vae_fast.ops import autograd
from vae_fast.ops.backend import room
from vae_fast.ops.library import batching, define, plain


class Spec(NamedTuple):
    """scale: what the target is multiplied by."""

    scale: float
    likelihood: str
    reduction: str
    backend: str


def reconstruct(params, target, weight, seed, spec):
    """The reduced nll of `target`, or with a seed of a sample of it; weight: of the target's shape, or None."""
    function = autograd.select(Ordinary, _Transformable, *params)
    if function is None:
        return _forward(params, target, weight, seed, *spec[:3], [False] * len(params), spec.backend)[0]
    return function.apply(spec, target, weight, seed, *params)


def made_in_forward(params, wanted):
    """Which gradients forward makes. None in float16: a unit gradient divided by the batch underflows there."""
    return [want and p.dtype != torch.float16 for want, p in zip(wanted, params, strict=True)]


def fake_grads(params, wanted):
    return [torch.empty_like(p) for p, want in zip(params, wanted, strict=True) if want]


def place(grads, wanted):
    """One gradient or None a parameter."""
    made = iter(grads)
    return [next(made) if want else None for want in wanted]


def _forward_impl(params, target, weight, seed, scale, likelihood, reduction, wanted, backend):
    forward = room(backend, "reconstruction", target).forward
    loss, grads = forward(params, target, likelihood, reduction, wanted, (weight, seed, scale))
    return [loss, *(g for g in grads if g is not None)]


def _forward_fake(params, target, weight, seed, scale, likelihood, reduction, wanted, backend):
    dtype = accumulator(params[0].dtype)
    if reduction == "none":
        loss = torch.empty_like(params[0], dtype=dtype)
    else:
        loss = params[0].new_empty(target.shape[:1] if reduction == "sample" else (), dtype=dtype)
    return [loss, *fake_grads(params, wanted)]


def _backward_impl(grad_loss, params, target, weight, seed, scale, likelihood, reduction, wanted, backend, **kept):
    backward = room(backend, "reconstruction", target).backward
    grads = backward(grad_loss, params, target, likelihood, reduction, wanted, (weight, seed, scale), **kept)
    return [g for g in grads if g is not None]


def _backward_fake(grad_loss, params, target, weight, seed, scale, likelihood, reduction, wanted, backend):
    return fake_grads(params, wanted)


def _scale_impl(grads, grad_loss, backend):
    room(backend, "reconstruction", grads[0]).scale_(grads, grad_loss)


TARGET = "Tensor target, Tensor? weight, Tensor? seed, float scale"
_SPEC = f"Tensor[] params, {TARGET}, str likelihood, str reduction, bool[] wanted, str backend"
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


def _forward_keeping(spec, target, weight, seed, params):
    """The loss, and the derivatives that come with it; a kernel makes them again sooner than it reads them."""
    if spec.backend != "eager" or not plain((target, weight, seed, *params)):
        wanted = [False] * len(params)
        return _forward_direct(params, target, weight, seed, *spec[:3], wanted, spec.backend)[0], ()
    return eager.forward_keeping(params, target, spec.likelihood, spec.reduction, (weight, seed, spec.scale))


def _recompute(ctx, grad_loss, call):
    wanted, spec = ctx.needs_input_grad[4:], ctx.spec

    saved = ctx.saved_tensors
    tensors, kept = saved[: 3 + len(wanted)], saved[3 + len(wanted) :]
    call = functools.partial(_backward_impl, kept=kept) if kept and plain((grad_loss,)) else call

    def backward(grad_loss, target, weight, seed, *params):
        return call(grad_loss, params, target, weight, seed, *spec[:3], wanted, spec.backend)

    return None, None, None, None, *place(autograd.once(backward, grad_loss, *tensors), wanted)


class Ordinary(Function):
    """For plain calls: keeps the gradient that forward made for one backward, in a plain attribute and nowhere else.

    A loss that is not a scalar has none of those; what `_forward_keeping` keeps is no gradient yet.
    """

    @staticmethod
    def forward(ctx, spec, target, weight, seed, *params):
        ctx.spec, kept = spec, ()
        if spec.reduction in ("none", "sample"):
            (loss, kept), ctx.grads = _forward_keeping(spec, target, weight, seed, params), None
        else:
            wanted = made_in_forward(params, ctx.needs_input_grad[4:])
            loss, *ctx.grads = _forward_direct(params, target, weight, seed, *spec[:3], wanted, spec.backend)
        ctx.save_for_backward(target, weight, seed, *params, *kept)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        grads, ctx.grads = ctx.grads, None
        if not grads or torch.is_grad_enabled() or batching():
            return _recompute(ctx, grad_loss, _backward_direct)
        _scale(grads, grad_loss, ctx.spec.backend)
        return None, None, None, None, *place(grads, ctx.needs_input_grad[4:])


class _Transformable(Function):
    """For torch.compile and torch.func: no state, so the backward pass recomputes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(spec, target, weight, seed, *params):
        return _forward(params, target, weight, seed, *spec[:3], [False] * len(params), spec.backend)[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.spec, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad_loss):
        return _recompute(ctx, grad_loss, _backward)
