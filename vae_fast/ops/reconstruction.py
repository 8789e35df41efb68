"""The reconstruction loss as raw ops and Functions; a scalar loss makes its gradient in the forward pass."""

from typing import NamedTuple

import torch
from torch.autograd import Function

from vae_fast import checks
from vae_fast.eager import reconstruction as eager
from vae_fast.eager.reductions import accumulator
from vae_fast.ops import autograd
from vae_fast.ops.autograd import made_in_forward, place
from vae_fast.ops.backend import room
from vae_fast.ops.kinds import Replay, Replays, present
from vae_fast.ops.library import define, differentiate


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
        return _forward(params, target, weight, seed, *spec[:3], [False] * len(params), spec.backend, False)[0]
    return function.apply(spec, target, weight, seed, *params)


def is_scalar(reduction):
    """Whether the loss is one number, whose gradient forward makes."""
    return reduction not in ("none", "sample")


def fake_loss(like, dtype, reduction):
    """A loss of elements `like` these, by any reduction but "latent", whose numbers nobody reads."""
    if reduction == "none":
        return torch.empty_like(like, dtype=dtype)
    return like.new_empty(like.shape[:1] if reduction == "sample" else (), dtype=dtype)


def fake_grads(params, wanted):
    return [torch.empty_like(p) for p, want in zip(params, wanted, strict=True) if want]


def _forward_impl(params, target, weight, seed, scale, likelihood, reduction, wanted, backend, keep):
    forward = eager.forward_keeping if keep else room(backend, "reconstruction", target).forward
    loss, made = forward(params, target, likelihood, reduction, wanted, (weight, seed, scale))
    return [loss, *present(*made)]


def _forward_fake(params, target, weight, seed, scale, likelihood, reduction, wanted, backend, keep):
    dtype = accumulator(params[0].dtype)
    loss = fake_loss(params[0], dtype, reduction)
    if not keep:
        return [loss, *fake_grads(params, wanted)]
    kept = wanted if eager.keeps(likelihood, weight) else ()
    return [loss, *(torch.empty_like(params[0], dtype=dtype) for want in kept if want)]


def _backward_impl(grad_loss, params, target, weight, seed, scale, likelihood, reduction, wanted, backend, kept):
    backward, options = room(backend, "reconstruction", target).backward, {"kept": place(kept, wanted)} if kept else {}
    grads = backward(grad_loss, params, target, likelihood, reduction, wanted, (weight, seed, scale), **options)
    return present(*grads)


def _backward_fake(grad_loss, params, target, weight, seed, scale, likelihood, reduction, wanted, backend, kept):
    return fake_grads(params, wanted)


def _scale_impl(grads, grad_loss, backend):
    room(backend, "reconstruction", grads[0]).scale_(grads, grad_loss)


TARGET = "Tensor target, Tensor? weight, Tensor? seed, float scale"
_SPEC = f"Tensor[] params, {TARGET}, str likelihood, str reduction, bool[] wanted, str backend"
_forward, _forward_direct = define(
    f"reconstruction_forward({_SPEC}, bool keep) -> Tensor[]", _forward_impl, _forward_fake
)
_backward, _backward_direct = define(
    f"reconstruction_backward(Tensor grad_loss, {_SPEC}, Tensor[] kept) -> Tensor[]", _backward_impl, _backward_fake
)
_, scale_ = define(
    "reconstruction_scale_(Tensor(a!)[] grads, Tensor grad_loss, str backend) -> ()",
    _scale_impl,
    lambda *_: None,
    vmap=False,
)


def _recompute(ctx, grad_loss, call):
    wanted, spec, saved = ctx.needs_input_grad[4:], ctx.spec, ctx.saved_tensors
    tensors, kept = saved[: 3 + len(wanted)], saved[3 + len(wanted) :]

    def backward(grad_loss, target, weight, seed, first, *others):
        params = first if seed is None else autograd.laid_out(first, ctx.strides), *others
        return call(grad_loss, params, target, weight, seed, *spec[:3], wanted, spec.backend, kept)

    return None, None, None, None, *place(autograd.once(backward, grad_loss, *tensors), wanted)


class Ordinary(Function):
    """For plain calls: keeps the gradient that forward made for one backward, in a plain attribute and nowhere else.

    A loss that is not a scalar has none; what eager's `forward_keeping` keeps for it is saved as the inputs are.
    """

    @staticmethod
    def forward(ctx, spec, target, weight, seed, *params):
        scalar, wanted = is_scalar(spec.reduction), list(ctx.needs_input_grad[4:])
        keep = not scalar and spec.backend == "eager"
        if not keep:
            wanted = made_in_forward(params, [scalar and want for want in wanted])
        loss, *made = _forward_direct(params, target, weight, seed, *spec[:3], wanted, spec.backend, keep)
        ctx.spec, ctx.kind, ctx.grads, ctx.strides = spec, None, made if scalar else None, params[0].stride()
        ctx.save_for_backward(target, weight, seed, *params, *(made if keep else ()))
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        grads, kind = autograd.take(ctx, grad_loss), ctx.kind
        if not grads:
            return _recompute(ctx, grad_loss, _backward_direct if kind is None else kind.backward)
        scale_(grads, grad_loss, ctx.spec.backend)
        return None, None, None, None, *place(grads, ctx.needs_input_grad[4:])


class _Played(autograd.Short, Ordinary):
    """`Ordinary` of a `Kind`, and of tensors that are known to be plain."""

    @staticmethod
    def forward(ctx, kind, target, weight, seed, *params):
        made = kind.forward.play(present(*params, target, weight, seed))
        if made is None:
            scale, likelihood, reduction, _ = kind.spec
            made = kind.forward.call(params, target, likelihood, reduction, kind.wanted, (weight, seed, scale))
        loss, grads = made
        ctx.spec, ctx.kind, ctx.grads, ctx.strides = kind.spec, kind, present(*grads), params[0].stride()
        ctx.save_for_backward(target, weight, seed, *params)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        grads = played_scale(ctx, grad_loss)
        if not grads:
            return Ordinary.backward(ctx, grad_loss)
        return None, None, None, None, *place(grads, ctx.needs_input_grad[4:])


def played_scale(ctx, grad_loss):
    """The gradients that a played forward made, scaled by the launch of a `Kind`; none where they are not to be.

    They are taken before: another thread's backward pass through the same graph must not scale them again.
    """
    if not ctx.grads or torch.is_grad_enabled():
        return None
    calls, _ = ctx.kind.scale.of(grad_loss)
    if calls is None:
        return None
    grads, ctx.grads = ctx.grads, None
    if grads and calls.play([*grads, grad_loss]) is None:
        calls.call(grads, grad_loss)
    return grads


class Kind:
    """Calls of the kernels of one kind: their spec, the gradients that forward makes, and their launches."""

    launchers = "reconstruction"

    def __init__(self, spec, params, target):
        launchers, scalar = room("triton", self.launchers, target), is_scalar(spec.reduction)
        self.spec, self.wanted = spec, made_in_forward(params, [scalar and p.requires_grad for p in params])
        self.forward, self._backward = Replay(launchers.forward), Replays(launchers.backward)
        self.scale = Replays(room("triton", "reconstruction", target).scale_)

    def __call__(self, params, target, weight, seed):
        """The loss."""
        return _Played.apply(self, target, weight, seed, *params)

    def backward(self, grad_loss, params, target, weight, seed, *spec):
        """As the raw op."""
        calls, given = self._backward.of(grad_loss, *params, target, weight, seed)
        if calls is None:
            return _backward_direct(grad_loss, params, target, weight, seed, *spec)
        grads = calls.play(given)
        if grads is None:
            scale, likelihood, reduction, wanted, *_ = spec
            grads = calls.call(grad_loss, params, target, likelihood, reduction, wanted, (weight, seed, scale))
        return present(*grads)


class _Transformable(Function):
    """For torch.func and the raw op: no state, so the backward pass recomputes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(spec, target, weight, seed, *params):
        return _forward(params, target, weight, seed, *spec[:3], [False] * len(params), spec.backend, False)[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.spec, *tensors = inputs
        ctx.strides = None
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad_loss):
        return _recompute(ctx, grad_loss, _backward)


def _apply(params, target, weight, seed, scale, likelihood, reduction, wanted, backend, keep):
    checks.no_grad("target", target)
    checks.no_grad("weight", weight)
    loss = autograd.apply_alone(
        _Transformable, Spec(scale, likelihood, reduction, backend), target, weight, seed, *params
    )
    return [loss], keep or any(wanted)


differentiate(_forward, _apply)
differentiate(_backward, autograd.refuse)
