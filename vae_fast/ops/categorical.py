"""The categorical reconstruction loss as raw ops and Functions: as `reconstruction`, for logits with a class dimension.

Its target has another shape than its parameter, so it has a kernel of its own; the gradient made in forward is kept and
scaled in the same way.
"""

from typing import NamedTuple

import torch
from torch.autograd import Function

from vae_fast import checks
from vae_fast.eager.elbo import compose
from vae_fast.eager.reductions import accumulator
from vae_fast.ops import autograd, reconstruction
from vae_fast.ops.autograd import made_in_forward
from vae_fast.ops.backend import room
from vae_fast.ops.kinds import present
from vae_fast.ops.library import define, differentiate
from vae_fast.ops.reconstruction import fake_loss, is_scalar, scale_


class Spec(NamedTuple):
    """ignore_index: the target of elements that are left out, or None."""

    ignore_index: int | None
    reduction: str
    backend: str

    @classmethod
    def of(cls, row, reduction, backend):
        """That of a row of the likelihoods."""
        return cls(row.constants[0] if row.constants else None, reduction, backend)


def reconstruct(logits, target, weight, spec):
    """The reduced nll of `target` [B, ...], of integers, under logits [B, ..., K]; weight: of its shape, or None."""
    function = autograd.select(Ordinary, _Transformable, logits)
    if function is None:
        return _forward(logits, target, weight, *spec[:2], False, spec.backend)[0]
    return function.apply(spec, target, weight, logits)


def negative_elbo(logits, target, weight, kl, beta_tensor, beta, spec):
    """(total, reconstruction, kl), 0-d, composed of the op, reduced to "batchmean", and PyTorch's: kl is [B] or 0-d."""
    return compose(reconstruct(logits, target, weight, spec), kl, beta_tensor, beta)


def _forward_impl(logits, target, weight, ignore_index, reduction, wanted, backend):
    forward = room(backend, "categorical", target).forward
    loss, grad = forward(logits, target, ignore_index, reduction, wanted, weight)
    return [loss] if grad is None else [loss, grad]


def _forward_fake(logits, target, weight, ignore_index, reduction, wanted, backend):
    loss = fake_loss(target, accumulator(logits.dtype), reduction)
    return [loss, torch.empty_like(logits)] if wanted else [loss]


def _backward_impl(grad_loss, logits, target, weight, ignore_index, reduction, backend):
    return [room(backend, "categorical", target).backward(grad_loss, logits, target, ignore_index, reduction, weight)]


def _backward_fake(grad_loss, logits, target, weight, ignore_index, reduction, backend):
    return [torch.empty_like(logits)]


_SPEC = "Tensor logits, Tensor target, Tensor? weight, int? ignore_index, str reduction"
_forward, _forward_direct = define(
    f"categorical_forward({_SPEC}, bool wanted, str backend) -> Tensor[]", _forward_impl, _forward_fake
)
_backward, _backward_direct = define(
    f"categorical_backward(Tensor grad_loss, {_SPEC}, str backend) -> Tensor[]", _backward_impl, _backward_fake
)


def _recompute(ctx, grad_loss, call):
    spec = ctx.spec

    def backward(grad_loss, target, weight, logits):
        return call(grad_loss, logits, target, weight, *spec)

    return None, None, None, *autograd.once(backward, grad_loss, *ctx.saved_tensors)


def _run(ctx, call, spec, target, weight, logits):
    (wanted,) = made_in_forward([logits], [is_scalar(spec.reduction)])
    loss, *ctx.grads = call(logits, target, weight, *spec[:2], wanted, spec.backend)
    ctx.spec, ctx.kind = spec, None
    ctx.save_for_backward(target, weight, logits)
    return loss


class Ordinary(Function):
    """For plain calls: keeps the gradient that forward made for one backward, in a plain attribute and nowhere else."""

    @staticmethod
    def forward(ctx, *inputs):
        return _run(ctx, _forward_direct, *inputs)

    @staticmethod
    def backward(ctx, grad_loss):
        grads, kind = autograd.take(ctx, grad_loss), ctx.kind
        if not grads:
            return _recompute(ctx, grad_loss, _backward_direct if kind is None else kind.backward)
        scale_(grads, grad_loss, ctx.spec.backend)
        return None, None, None, *grads


class Short(autograd.Short, Ordinary):
    """`Ordinary` of tensors that are known to be plain."""

    @staticmethod
    def forward(ctx, *inputs):
        return _run(ctx, _forward_impl, *inputs)


class _Played(autograd.Short, Ordinary):
    """`Ordinary` of a `Kind`, and of tensors that are known to be plain."""

    @staticmethod
    def forward(ctx, kind, target, weight, logits):
        made = kind.forward.play(present(logits, target, weight))
        if made is None:
            made = kind.forward.call(logits, target, *kind.spec[:2], *kind.wanted, weight)
        loss, grad = made
        ctx.spec, ctx.kind, ctx.grads = kind.spec, kind, present(grad)
        ctx.save_for_backward(target, weight, logits)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        grads = reconstruction.played_scale(ctx, grad_loss)
        return (None, None, None, *grads) if grads else Ordinary.backward(ctx, grad_loss)


class Kind(reconstruction.Kind):
    """As that of the other reconstructions, whose kernel scales this one's gradient."""

    launchers = "categorical"

    def __call__(self, params, target, weight, _seed):
        """The loss."""
        return _Played.apply(self, target, weight, *params)

    def backward(self, grad_loss, logits, target, weight, *spec):
        """As the raw op."""
        calls, given = self._backward.of(grad_loss, logits, target, weight)
        if calls is None:
            return _backward_direct(grad_loss, logits, target, weight, *spec)
        grad = calls.play(given)
        return [calls.call(grad_loss, logits, target, *self.spec[:2], weight) if grad is None else grad]


class WholeKind(Kind):
    """That of the whole loss: the kl is PyTorch's, as in `negative_elbo`."""

    def __call__(self, params, target, weight, seed, beta_tensor, kl, beta):
        """(total, reconstruction, kl)."""
        return compose(super().__call__(params, target, weight, seed), kl, beta_tensor, beta)


class _Transformable(Function):
    """For torch.func and the raw op: no state, so the backward pass recomputes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(spec, target, weight, logits):
        return _forward(logits, target, weight, *spec[:2], False, spec.backend)[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.spec, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad_loss):
        return _recompute(ctx, grad_loss, _backward)


def _apply(logits, target, weight, ignore_index, reduction, wanted, backend):
    checks.no_grad("weight", weight)
    return [
        autograd.apply_alone(_Transformable, Spec(ignore_index, reduction, backend), target, weight, logits)
    ], wanted


differentiate(_forward, _apply)
differentiate(_backward, autograd.refuse)
