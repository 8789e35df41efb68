"""The latent op: reparameterised sample and KL of a diagonal Gaussian, as raw ops and Functions."""

from typing import NamedTuple

import torch
from torch.autograd import Function

from vae_fast import checks
from vae_fast.eager import gaussian as eager
from vae_fast.eager.general import sampled_like
from vae_fast.eager.reductions import accumulator, latent_like
from vae_fast.ops import autograd
from vae_fast.ops.autograd import place
from vae_fast.ops.backend import room
from vae_fast.ops.kinds import Replay, Replays, present
from vae_fast.ops.library import define, differentiate
from vae_fast.ops.reconstruction import fake_loss

APART = object()  # in place of a dim: mu and logvar are tensors of their own
NO_KL = object()  # in place of a reduction


class Spec(NamedTuple):
    """What is asked of the op. The posterior is (mu, logvar), or moments that hold both along `dim` and None."""

    reduction: str | None
    low: float | None
    high: float | None
    scale: str
    bound: float
    epsilon: float
    kl: str
    samples: int | None
    dim: int
    backend: str


def latent(mu, logvar, prior_mu, prior_logvar, seed, eps, spec):
    """The tensors asked for: z where seed or eps is given, kl where a reduction is."""
    tensors = (mu, logvar, prior_mu, prior_logvar, seed, eps)
    function = autograd.select(Ordinary, _Transformable, *tensors[:4])
    return _forward(*tensors, *spec, False) if function is None else function.apply(*tensors, spec)


def _halves(mu, logvar, dim):
    return (mu, logvar) if logvar is not None else mu.chunk(2, dim)


def _forward_impl(mu, logvar, prior_mu, prior_logvar, seed, eps, *spec):
    *spec, keep = spec
    spec = Spec(*spec)
    mu, logvar = _halves(mu, logvar, spec.dim)
    forward = eager.forward_keeping if keep else room(spec.backend, "gaussian", mu).forward
    made = forward(mu, logvar, prior=(prior_mu, prior_logvar), seed=seed, eps=eps, **_options(spec))
    if keep:
        made = (*made[:2], *made[2])
    return [t for t in made if t is not None]


def _asked(seed, eps, reduction):
    """Whether z, and whether the KL is asked for."""
    return seed is not None or eps is not None, reduction is not None


def _options(spec):
    """What the rooms' forward and backward both take."""
    return {
        "clamp": (spec.low, spec.high),
        "scale": (spec.scale, spec.bound, spec.epsilon),
        "kl": spec.kl,
        "samples": spec.samples,
        "reduction": spec.reduction,
    }


def _forward_fake(mu, logvar, prior_mu, prior_logvar, seed, eps, *spec):
    *spec, keep = spec
    spec = Spec(*spec)
    reduction = spec.reduction
    asked = _asked(seed, eps, reduction)
    mu, logvar = _halves(mu, logvar, spec.dim)
    made = [sampled_like(mu, spec.samples)] if asked[0] else []
    dtype, each = accumulator(mu.dtype), spec.samples if spec.kl == "monte_carlo" else None
    if reduction == "none":
        made.append(sampled_like(mu, each, dtype))
    elif reduction is not None:
        one = latent_like(mu, dtype) if reduction == "latent" else fake_loss(mu, dtype, reduction)
        made.append(sampled_like(one, each))
    kept = eager.empty_kept(logvar, *asked) if keep else ()
    return [*made, *(t for t in kept if t is not None)]


def _backward_impl(grad_z, grad_kl, mu, logvar, prior_mu, prior_logvar, seed, eps, *spec):
    *spec, prior_grad, kept = spec
    spec = Spec(*spec)
    options = {"kept": place(kept, _asked(seed, eps, spec.reduction))} if kept else {}
    packed = torch.empty_like(mu) if logvar is None else None
    mu, logvar = _halves(mu, logvar, spec.dim)
    out = None if packed is None else packed.chunk(2, spec.dim)
    grads = room(spec.backend, "gaussian", mu).backward(
        grad_z, grad_kl, mu, logvar, prior=(prior_mu, prior_logvar), seed=seed, eps=eps, prior_grad=prior_grad,
        out=out, **_options(spec), **options,
    )  # fmt: skip
    return present(*(grads[:2] if packed is None else [packed]), *grads[2:])


def _backward_fake(grad_z, grad_kl, mu, logvar, prior_mu, prior_logvar, seed, eps, *spec):
    *spec, prior_grad, _ = spec
    spec = Spec(*spec)
    passed = logvar is not None and eager.passes(grad_kl, spec.scale, spec.samples)
    grads = [] if passed else [torch.empty_like(mu)]
    if logvar is not None:
        grads.append(torch.empty_like(logvar))
    if prior_grad:
        grads += [torch.empty_like(prior_mu), torch.empty_like(prior_logvar)]
    return grads


_TENSORS = "Tensor mu, Tensor? logvar, Tensor? prior_mu, Tensor? prior_logvar, Tensor? seed, Tensor? eps"
_SPEC = (
    "str? reduction, float? low, float? high, str scale, float bound, float epsilon, str kl, int? samples, int dim, "
    "str backend"
)
_forward, _forward_direct = define(
    f"gaussian_forward({_TENSORS}, {_SPEC}, bool keep) -> Tensor[]", _forward_impl, _forward_fake
)
_UPSTREAM = "Tensor? grad_z, Tensor? grad_kl"
_backward, _backward_direct = define(
    f"gaussian_backward({_UPSTREAM}, {_TENSORS}, {_SPEC}, bool prior_grad, Tensor[] kept) -> Tensor[]",
    _backward_impl,
    _backward_fake,
)


def _keeps(spec):
    """Whether forward keeps what spares backward work; kernels make it again sooner than they read it."""
    return spec.backend == "eager" and eager.is_default(spec.scale, spec.kl, spec.samples)


def _differentiate(ctx, grads, call):
    """Gradients of the Functions' inputs: the four parameters, seed, eps and spec. `call` calls the raw backward."""
    spec, (mu, *saved) = ctx.spec, ctx.saved_tensors
    tensors, kept = (autograd.laid_out(mu, ctx.strides), *saved[:5]), saved[5:]
    sampled, measured = _asked(*tensors[4:], spec.reduction)
    grad_z = grads[0] if sampled else None
    grad_kl = grads[-1] if measured else None
    if grad_z is None and grad_kl is None:
        return (None,) * 7
    prior_grad = grad_kl is not None and (ctx.needs_input_grad[2] or ctx.needs_input_grad[3])
    made = autograd.once(lambda *args: call(*args, *spec, prior_grad, kept), grad_z, grad_kl, *tensors)
    posterior, prior = (made[:-2], made[-2:]) if prior_grad else (made, (None, None))
    if tensors[1] is None:
        return posterior[0], None, *prior, None, None, None
    if len(posterior) == 1:  # the gradient in mu is that of z itself
        return grad_z, posterior[0], *prior, None, None, None
    return *posterior, *prior, None, None, None


class Ordinary(Function):
    """For plain calls: `ctx` in forward costs 10 microseconds less than `setup_context`."""

    @staticmethod
    def forward(ctx, *inputs):
        *tensors, spec = inputs
        made = _forward_direct(*tensors, *spec, _keeps(spec))
        outputs = sum(_asked(*tensors[4:], spec.reduction))
        ctx.spec, ctx.strides, ctx.raw_backward = spec, tensors[0].stride(), _backward_direct
        ctx.save_for_backward(*tensors, *made[outputs:])
        ctx.set_materialize_grads(False)
        return tuple(made[:outputs])

    @staticmethod
    def backward(ctx, *grads):
        return _differentiate(ctx, grads, ctx.raw_backward)


class _Played(autograd.Short, Ordinary):
    """`Ordinary` of a `Kind`, and of tensors that are known to be plain."""

    @staticmethod
    def forward(ctx, *inputs):
        *tensors, kind = inputs
        ctx.spec, ctx.strides, ctx.raw_backward = kind.spec, tensors[0].stride(), kind.backward
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return tuple(present(*kind.forward(*tensors)))


class Kind:
    """Calls of the kernels of one kind: see that of `reconstruction`."""

    def __init__(self, spec, mu):
        launchers, packed = room("triton", "gaussian", mu), "_packed" if spec.dim else ""
        self.spec, self.shape, self._options = spec, mu.shape, _options(spec)
        self._forward = Replay(getattr(launchers, f"forward{packed}"))
        self._backward = Replays(getattr(launchers, f"backward{packed}"))

    def __call__(self, *tensors):
        """The tensors asked for, as `latent`."""
        return _Played.apply(*tensors, self)

    def forward(self, mu, logvar, prior_mu, prior_logvar, seed, eps):
        """(z or None, kl or None)."""
        made = self._forward.play(present(mu, logvar, prior_mu, prior_logvar, seed, eps))
        if made is None:
            options = {"prior": (prior_mu, prior_logvar), "seed": seed, "eps": eps, **self._options}
            made = self._forward.call(*self._posterior(mu, logvar), **options)
        return made

    def backward(self, grad_z, grad_kl, mu, logvar, prior_mu, prior_logvar, seed, eps, *rest):
        """As the raw op."""
        tensors = mu, logvar, prior_mu, prior_logvar, seed, eps
        calls, given = self._backward.of(grad_z, grad_kl, *tensors)
        if calls is None:
            return _backward_direct(grad_z, grad_kl, *tensors, *rest)
        made = calls.play(given)
        if made is None:
            options = {"prior": (prior_mu, prior_logvar), "seed": seed, "eps": eps, **self._options}
            made = calls.call(grad_z, grad_kl, *self._posterior(mu, logvar), prior_grad=rest[-2], **options)
        return present(*made)

    def _posterior(self, mu, logvar):
        """As the launchers take it: mu and logvar, or moments and a dim."""
        return mu, self.spec.dim if logvar is None else logvar


class _Transformable(Function):
    """For torch.func and the raw op."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs):
        *tensors, spec = inputs
        return tuple(_forward(*tensors, *spec, False))

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.spec = inputs
        ctx.strides = None
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        return _differentiate(ctx, grads, _backward)


def _apply(mu, logvar, prior_mu, prior_logvar, seed, eps, *spec):
    checks.no_grad("eps", eps)
    *spec, keep = spec
    return autograd.apply_alone(_Transformable, mu, logvar, prior_mu, prior_logvar, seed, eps, Spec(*spec)), keep


differentiate(_forward, _apply)
differentiate(_backward, autograd.refuse)
