"""The negative ELBO as raw ops and Functions: (total, reconstruction, kl), each differentiable."""

from typing import NamedTuple

import torch
from torch.autograd import Function

from vae_fast.eager import elbo as eager
from vae_fast.eager.reductions import accumulator
from vae_fast.ops import autograd
from vae_fast.ops.backend import room
from vae_fast.ops.library import define
from vae_fast.ops.reconstruction import fake_grads, made_in_forward, place, takes_native


class Spec(NamedTuple):
    """beta is used where the Functions get no beta tensor."""

    beta: float
    likelihood: str
    backend: str


def elbo(params, target, kl, beta_tensor, spec):
    """(total, reconstruction, kl), 0-d, in nats per sample. kl: [B] or 0-d."""
    if takes_native(spec.backend, kl, *params, target):
        losses = eager.native(params, target, kl, beta_tensor, *spec[:2])
        if losses is not None:
            return losses
    function = autograd.select(_Ordinary, _Transformable, kl, *params)
    if function is None:
        return _forward(params, target, kl, beta_tensor, *spec[:2], [False] * len(params), spec.backend)
    return function.apply(spec, beta_tensor, target, kl, *params)


def _forward_impl(params, target, kl, beta_tensor, beta, likelihood, wanted, backend):
    made = room(backend, "elbo", target).forward(params, target, kl, beta_tensor, beta, likelihood, wanted)
    return [*made[:3], *(g for g in made[3] if g is not None)]


def _forward_fake(params, target, kl, beta_tensor, beta, likelihood, wanted, backend):
    dtype = accumulator(params[0].dtype)
    return [*(target.new_empty((), dtype=dtype) for _ in range(3)), *fake_grads(params, wanted)]


def _backward_impl(
    grad_total, grad_reconstruction, grad_kl, params, target, kl, beta_tensor, beta, likelihood, wanted, backend
):
    kl_grad, grads = room(backend, "elbo", target).backward(
        grad_total, grad_reconstruction, grad_kl, params, target, kl, beta_tensor, beta, likelihood, wanted
    )
    return [kl_grad, *(g for g in grads if g is not None)]


def _backward_fake(
    grad_total, grad_reconstruction, grad_kl, params, target, kl, beta_tensor, beta, likelihood, wanted, backend
):
    return [kl.new_empty(()), *fake_grads(params, wanted)]


def _scale_impl(grads, grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta, backend):
    return room(backend, "elbo", grads[0]).scale_(
        grads, grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta
    )


_UPSTREAM = "Tensor? grad_total, Tensor? grad_reconstruction, Tensor? grad_kl"
_BETA = "Tensor kl, Tensor? beta_tensor, float beta"
_SPEC = f"Tensor[] params, Tensor target, {_BETA}, str likelihood, bool[] wanted, str backend"
_forward, _forward_direct = define(f"elbo_forward({_SPEC}) -> Tensor[]", _forward_impl, _forward_fake)
_backward, _backward_direct = define(f"elbo_backward({_UPSTREAM}, {_SPEC}) -> Tensor[]", _backward_impl, _backward_fake)
_, _scale = define(
    f"elbo_scale_(Tensor(a!)[] grads, {_UPSTREAM}, {_BETA}, str backend) -> Tensor",
    _scale_impl,
    lambda grads, total, reconstruction, grad_kl, kl, beta_tensor, beta, backend: kl.new_empty(()),
    vmap=False,
)


def _only_kl(ctx, grad_kl):
    """Backward where at most the kl was used: the reconstruction's gradient is not even zero."""
    if grad_kl is not None:
        kl = ctx.saved_tensors[2]
        grad_kl = (grad_kl / max(kl.numel(), 1)).to(kl.dtype).expand(kl.shape)
    return None, None, None, grad_kl, *(None for _ in ctx.needs_input_grad[4:])


def _recompute(ctx, grad_total, grad_reconstruction, grad_kl, call):
    kl = ctx.saved_tensors[2]
    wanted, spec = ctx.needs_input_grad[4:], ctx.spec

    def backward(grad_total, grad_reconstruction, grad_kl, beta_tensor, target, kl, *params):
        upstream = (grad_total, grad_reconstruction, grad_kl)
        return call(*upstream, params, target, kl, beta_tensor, *spec[:2], wanted, spec.backend)

    kl_grad, *grads = autograd.once(backward, grad_total, grad_reconstruction, grad_kl, *ctx.saved_tensors)
    return None, None, None, kl_grad.expand(kl.shape), *place(grads, wanted)


class _Ordinary(Function):
    """For plain calls: keeps the gradients that forward made, as the reconstruction does."""

    @staticmethod
    def forward(ctx, spec, beta_tensor, target, kl, *params):
        wanted = made_in_forward(params, ctx.needs_input_grad[4:])
        *losses, ctx.grads = _split(_forward_direct(params, target, kl, beta_tensor, *spec[:2], wanted, spec.backend))
        ctx.spec = spec
        ctx.save_for_backward(beta_tensor, target, kl, *params)
        ctx.set_materialize_grads(False)
        return tuple(losses)

    @staticmethod
    def backward(ctx, *upstream):
        grads, ctx.grads = ctx.grads, None
        if upstream[0] is None and upstream[1] is None:
            return _only_kl(ctx, upstream[2])
        if not grads or torch.is_grad_enabled():
            return _recompute(ctx, *upstream, _backward_direct)
        beta_tensor, _, kl, *_ = ctx.saved_tensors
        kl_grad = _scale(grads, *upstream, kl, beta_tensor, ctx.spec.beta, ctx.spec.backend)
        return None, None, None, kl_grad.expand(kl.shape), *place(grads, ctx.needs_input_grad[4:])


class _Transformable(Function):
    """For torch.compile and torch.func: no state, so the backward pass recomputes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(spec, beta_tensor, target, kl, *params):
        return tuple(_forward(params, target, kl, beta_tensor, *spec[:2], [False] * len(params), spec.backend))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.spec, beta_tensor, target, kl, *params = inputs
        ctx.save_for_backward(beta_tensor, target, kl, *params)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *upstream):
        if upstream[0] is None and upstream[1] is None:
            return _only_kl(ctx, upstream[2])
        return _recompute(ctx, *upstream, _backward)


def _split(made):
    total, reconstruction, kl, *grads = made
    return total, reconstruction, kl, grads
