"""The negative ELBO as raw ops and Functions: (total, reconstruction, kl), each differentiable."""

from typing import NamedTuple

from torch.autograd import Function

from vae_fast import checks
from vae_fast.eager.elementary import is_compiling_calls, varying
from vae_fast.eager.reductions import accumulator
from vae_fast.ops import autograd
from vae_fast.ops.autograd import made_in_forward, place
from vae_fast.ops.backend import room
from vae_fast.ops.kinds import Replay, Replays, present
from vae_fast.ops.library import define, differentiate
from vae_fast.ops.reconstruction import TARGET, fake_grads


class Spec(NamedTuple):
    """scale: what the target is multiplied by; beta is used where the Functions get no beta tensor."""

    scale: float
    beta: float
    likelihood: str
    backend: str


def negative_elbo(params, target, weight, seed, beta_tensor, kl, spec):
    """(total, reconstruction, kl), 0-d, in nats per sample. kl: [B] or 0-d; the three before it may be None."""
    function = autograd.select(Ordinary, _Transformable, kl, *params)
    if function is None:
        if is_compiling_calls() and beta_tensor is None and spec.beta != 1:  # else each number would make another op
            beta_tensor, spec = varying(spec.beta, accumulator(params[0].dtype), kl.device), spec._replace(beta=0.0)
        arguments = _arguments(spec, target, weight, seed, beta_tensor, kl)
        return _forward(params, *arguments, [False] * len(params), spec.backend)
    return function.apply(spec, target, weight, seed, beta_tensor, kl, *params)


def _arguments(spec, target, weight, seed, beta_tensor, kl):
    """The raw ops' arguments from the target to the likelihood, of the Functions' inputs up to the kl."""
    return target, weight, seed, spec.scale, kl, beta_tensor, spec.beta, spec.likelihood


def _forward_impl(params, target, weight, seed, scale, kl, beta_tensor, beta, likelihood, wanted, backend):
    forward = room(backend, "elbo", target).forward
    made = forward(params, target, kl, beta_tensor, beta, likelihood, wanted, (weight, seed, scale))
    return [*made[:3], *present(*made[3])]


def _forward_fake(params, target, weight, seed, scale, kl, beta_tensor, beta, likelihood, wanted, backend):
    dtype = accumulator(params[0].dtype)
    return [*(params[0].new_empty((), dtype=dtype) for _ in range(3)), *fake_grads(params, wanted)]


def _backward_impl(
    grad_total, grad_reconstruction, grad_kl,
    params, target, weight, seed, scale, kl, beta_tensor, beta, likelihood, wanted, backend,
):  # fmt: skip
    kl_grad, grads = room(backend, "elbo", target).backward(
        grad_total, grad_reconstruction, grad_kl,
        params, target, kl, beta_tensor, beta, likelihood, wanted, (weight, seed, scale),
    )  # fmt: skip
    return [kl_grad, *present(*grads)]


def _backward_fake(
    grad_total, grad_reconstruction, grad_kl,
    params, target, weight, seed, scale, kl, beta_tensor, beta, likelihood, wanted, backend,
):  # fmt: skip
    return [kl.new_empty(()), *fake_grads(params, wanted)]


def _scale_impl(grads, grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta, backend):
    return room(backend, "elbo", grads[0]).scale_(
        grads, grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta
    )


_UPSTREAM = "Tensor? grad_total, Tensor? grad_reconstruction, Tensor? grad_kl"
_BETA = "Tensor kl, Tensor? beta_tensor, float beta"
_SPEC = f"Tensor[] params, {TARGET}, {_BETA}, str likelihood, bool[] wanted, str backend"
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
        kl = ctx.saved_tensors[4]
        grad_kl = (grad_kl / max(kl.numel(), 1)).to(kl.dtype).expand(kl.shape)
    return _gradients(grad_kl, (None for _ in ctx.needs_input_grad[6:]))


def _recompute(ctx, upstream, call):
    wanted, spec = ctx.needs_input_grad[6:], ctx.spec
    tensors = ctx.saved_tensors  # once: activation checkpointing gives them no second time

    def backward(grad_total, grad_reconstruction, grad_kl, *saved):
        _, _, seed, _, _, first, *others = saved
        params = first if seed is None else autograd.laid_out(first, ctx.strides), *others
        arguments = _arguments(spec, *saved[:5])
        return call(grad_total, grad_reconstruction, grad_kl, params, *arguments, wanted, spec.backend)

    kl_grad, *grads = autograd.once(backward, *upstream, *tensors)
    return _gradients(_of_each(kl_grad, tensors[4], upstream), place(grads, wanted))


def _of_each(kl_grad, kl, upstream):
    """The gradient of each kl; None where only the reconstruction was used: zeros times a slope of inf would be NaN."""
    return None if upstream[0] is upstream[2] is None else kl_grad.expand(kl.shape)


def _gradients(kl_grad, grads):
    """One a Function's input: none for the spec, and for the tensors between it and the kl."""
    return None, None, None, None, None, kl_grad, *grads


class Ordinary(Function):
    """For plain calls: keeps the gradients that forward made, as the reconstruction does."""

    @staticmethod
    def forward(ctx, spec, target, weight, seed, beta_tensor, kl, *params):
        wanted = made_in_forward(params, ctx.needs_input_grad[6:])
        arguments = _arguments(spec, target, weight, seed, beta_tensor, kl)
        total, reconstruction, kl_mean, *ctx.grads = _forward_direct(params, *arguments, wanted, spec.backend)
        ctx.spec, ctx.kind, ctx.strides = spec, None, params[0].stride()
        ctx.save_for_backward(target, weight, seed, beta_tensor, kl, *params)
        ctx.set_materialize_grads(False)
        return total, reconstruction, kl_mean

    @staticmethod
    def backward(ctx, *upstream):
        grads, kind = autograd.take(ctx, *upstream), ctx.kind
        if upstream[0] is None and upstream[1] is None:
            return _only_kl(ctx, upstream[2])
        if not grads:
            return _recompute(ctx, upstream, _backward_direct if kind is None else kind.backward)
        _, _, _, beta_tensor, kl, *_ = ctx.saved_tensors
        scale = _scale if kind is None else kind.scale
        kl_grad = scale(grads, *upstream, kl, beta_tensor, ctx.spec.beta, ctx.spec.backend)
        return _gradients(_of_each(kl_grad, kl, upstream), place(grads, ctx.needs_input_grad[6:]))


class _Played(autograd.Short, Ordinary):
    """`Ordinary` of a `Kind` and a beta, and of tensors that are known to be plain."""

    @staticmethod
    def forward(ctx, kind_and_beta, target, weight, seed, beta_tensor, kl, *params):
        kind, beta = kind_and_beta
        scale, _, likelihood, backend = kind.spec
        made = kind.forward.play(present(*params, target, kl, beta_tensor, weight, seed), beta)
        if made is None:
            extras = weight, seed, scale
            made = kind.forward.call(params, target, kl, beta_tensor, beta, likelihood, kind.wanted, extras)
        total, reconstruction, kl_mean, grads = made
        ctx.spec, ctx.kind, ctx.strides = Spec(scale, beta, likelihood, backend), kind, params[0].stride()
        ctx.grads = present(*grads)
        ctx.save_for_backward(target, weight, seed, beta_tensor, kl, *params)
        ctx.set_materialize_grads(False)
        return total, reconstruction, kl_mean


class Kind:
    """Calls of the kernels of one kind, whose spec has any beta: see that of `reconstruction`."""

    def __init__(self, spec, params, target):
        launchers = room("triton", "elbo", target)
        self.spec, self.wanted = spec, made_in_forward(params, [p.requires_grad for p in params])
        self.forward, self._backward = Replay(launchers.forward), Replays(launchers.backward)
        self._scale = Replays(launchers.scale_)

    def __call__(self, params, target, weight, seed, beta_tensor, kl, beta):
        """(total, reconstruction, kl)."""
        return _Played.apply((self, beta), target, weight, seed, beta_tensor, kl, *params)

    def backward(
        self, total, reconstruction, grad_kl, params, target, weight, seed, scale, kl, beta_tensor, beta, *rest
    ):
        """As the raw op."""
        *upstream, beta_tensor, beta = _of_the_sum(total, reconstruction, grad_kl, beta_tensor, beta)
        calls, given = self._backward.of(*upstream, *params, target, kl, beta_tensor, weight, seed)
        if calls is None:
            return _backward_direct(*upstream, params, target, weight, seed, scale, kl, beta_tensor, beta, *rest)
        made = calls.play(given, beta)
        if made is None:
            likelihood, wanted, _ = rest
            extras = weight, seed, scale
            made = calls.call(*upstream, params, target, kl, beta_tensor, beta, likelihood, wanted, extras)
        kl_grad, grads = made
        return [kl_grad, *present(*grads)]

    def scale(self, grads, total, reconstruction, grad_kl, kl, beta_tensor, beta, backend):
        """As the raw op."""
        *upstream, beta_tensor, beta = _of_the_sum(total, reconstruction, grad_kl, beta_tensor, beta)
        calls, given = self._scale.of(*upstream, kl, beta_tensor)
        if calls is None:
            return _scale(grads, *upstream, kl, beta_tensor, beta, backend)
        kl_grad = calls.play([*grads, *given], beta)
        return calls.call(grads, *upstream, kl, beta_tensor, beta) if kl_grad is None else kl_grad


def _of_the_sum(total, reconstruction, grad_kl, beta_tensor, beta):
    """The one gradient of reconstruction + kl as a total's, of beta 1: a tensor given twice cannot be recorded."""
    if total is None and reconstruction is grad_kl:
        return reconstruction, None, None, None, 1.0
    return total, reconstruction, grad_kl, beta_tensor, beta


class _Transformable(Function):
    """For torch.func and the raw op: no state, so the backward pass recomputes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(spec, target, weight, seed, beta_tensor, kl, *params):
        arguments = _arguments(spec, target, weight, seed, beta_tensor, kl)
        return tuple(_forward(params, *arguments, [False] * len(params), spec.backend))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.spec, *tensors = inputs
        ctx.strides = None
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *upstream):
        if upstream[0] is None and upstream[1] is None:
            return _only_kl(ctx, upstream[2])
        return _recompute(ctx, upstream, _backward)


def _apply(params, target, weight, seed, scale, kl, beta_tensor, beta, likelihood, wanted, backend):
    for name, given in (("target", target), ("weight", weight), ("beta", beta_tensor)):
        checks.no_grad(name, given)
    spec = Spec(scale, beta, likelihood, backend)
    return autograd.apply_alone(_Transformable, spec, target, weight, seed, beta_tensor, kl, *params), any(wanted)


differentiate(_forward, _apply)
differentiate(_backward, autograd.refuse)
