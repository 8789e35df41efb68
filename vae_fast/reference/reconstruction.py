"""The reconstruction loss under any likelihood, and the negative ELBO."""

import numpy as np

from .reductions import expand, reduce
from .targets import binarize, read, weighted


def forward(params, target, likelihood, reduction, *, weight=None, seed=None, scale=1.0):
    """The reduced negative log-likelihood of target [B, ...] in nats.

    params: tuple of arrays like target, as many as the likelihood takes; for classes, with a dimension for them.
    likelihood: a function of `likelihoods`. reduction: see `reductions.reduce`.
    weight: of each element's nll, see `targets.weighted`; it does not change what a mean divides by.
    seed: of a target that is sampled, see `targets.binarize`, or None; scale: what the target is multiplied by.
    """
    nll, _ = likelihood(*params, _read(target, seed, scale))
    return reduce(weighted(nll, weight), reduction)


@np.errstate(over="ignore", invalid="ignore")
def backward(grad_loss, params, target, likelihood, reduction, *, weight=None, seed=None, scale=1.0):
    """Gradients of `forward` in each of params, from the gradient of its result."""
    nll, derivatives = likelihood(*params, _read(target, seed, scale))
    grad = expand(grad_loss, nll.shape, reduction)
    weight = weighted(np.ones(nll.shape), weight)
    return tuple(weighted(_beside(grad, d) * d, _beside(weight, d)) for d in derivatives)


def _beside(values, derivative):
    """Values of each element, with a dimension for the classes where the derivative has one."""
    return values.reshape(values.shape + (1,) * (derivative.ndim - values.ndim))


def _read(target, seed, scale):
    return read(target, scale) if seed is None else binarize(target, seed, scale)


@np.errstate(over="ignore", invalid="ignore")
def elbo_forward(params, target, kl, beta, likelihood, **options):
    """The negative ELBO in nats per sample (Kingma & Welling 2014, eq. 3; beta: Higgins et al. 2017, eq. 4).

    kl: per sample, [B], or its mean over the batch, 0-d. options: of `forward`, for the reconstruction.
    Returns (total, reconstruction, kl_mean), with total = reconstruction + beta kl_mean.
    """
    reconstruction = forward(params, target, likelihood, "batchmean", **options)
    kl_mean = reduce(_checked_kl(kl, target), "mean")
    return reconstruction + float(beta) * kl_mean, reconstruction, kl_mean


def elbo_backward(grad_total, grad_reconstruction, grad_kl, params, target, kl, beta, likelihood, **options):
    """Gradients of `elbo_forward` from those of its three results, each 0-d or None where that result is not used.

    Returns (the tuple of gradients in params, the gradient in kl, of kl's shape).
    """
    grads = (grad_total, grad_reconstruction, grad_kl)
    grad_total, grad_reconstruction, grad_kl = (0.0 if grad is None else float(grad) for grad in grads)
    grad_params = backward(grad_total + grad_reconstruction, params, target, likelihood, "batchmean", **options)
    return grad_params, expand(float(beta) * grad_total + grad_kl, _checked_kl(kl, target).shape, "mean")


def _checked_kl(kl, target):
    """kl as float64, if its shape is [B] or 0-d."""
    kl, batch = np.asarray(kl, dtype=np.float64), np.shape(target)[:1]
    if kl.shape not in (batch, ()):
        raise ValueError(f"kl has shape {list(kl.shape)}: expected {list(batch)} (per sample) or [] (their mean)")
    return kl
