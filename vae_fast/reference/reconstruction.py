"""The reconstruction loss under any likelihood, and the negative ELBO."""

import numpy as np

from .reductions import expand, reduce


def forward(params, target, likelihood, reduction):
    """The reduced negative log-likelihood of target [B, ...] in nats.

    params: tuple of arrays like target, as many as the likelihood takes; for classes, with a dimension for them.
    likelihood: a function of `likelihoods`. reduction: see `reductions.reduce`.
    """
    nll, _ = likelihood(*params, target)
    return reduce(nll, reduction)


@np.errstate(over="ignore", invalid="ignore")
def backward(grad_loss, params, target, likelihood, reduction):
    """Gradients of `forward` in each of params, from the gradient of its result."""
    nll, derivatives = likelihood(*params, target)
    grad = expand(grad_loss, nll.shape, reduction)
    return tuple(grad.reshape(grad.shape + (1,) * (d.ndim - grad.ndim)) * d for d in derivatives)


@np.errstate(over="ignore", invalid="ignore")
def elbo_forward(params, target, kl, beta, likelihood):
    """The negative ELBO in nats per sample (Kingma & Welling 2014, eq. 3; beta: Higgins et al. 2017, eq. 4).

    kl: per sample, [B], or its mean over the batch, 0-d.
    Returns (total, reconstruction, kl_mean), with total = reconstruction + beta kl_mean.
    """
    reconstruction = forward(params, target, likelihood, "batchmean")
    kl_mean = reduce(_checked_kl(kl, target), "mean")
    return reconstruction + float(beta) * kl_mean, reconstruction, kl_mean


def elbo_backward(grad_total, grad_reconstruction, grad_kl, params, target, kl, beta, likelihood):
    """Gradients of `elbo_forward` from those of its three results, each 0-d or None where that result is not used.

    Returns (the tuple of gradients in params, the gradient in kl, of kl's shape).
    """
    grads = (grad_total, grad_reconstruction, grad_kl)
    grad_total, grad_reconstruction, grad_kl = (0.0 if grad is None else float(grad) for grad in grads)
    grad_params = backward(grad_total + grad_reconstruction, params, target, likelihood, "batchmean")
    return grad_params, expand(float(beta) * grad_total + grad_kl, _checked_kl(kl, target).shape, "mean")


def _checked_kl(kl, target):
    """kl as float64, if its shape is [B] or 0-d."""
    kl, batch = np.asarray(kl, dtype=np.float64), np.shape(target)[:1]
    if kl.shape not in (batch, ()):
        raise ValueError(f"kl has shape {list(kl.shape)}: expected {list(batch)} (per sample) or [] (their mean)")
    return kl
