"""The latent of a Gaussian VAE: the reparameterised sample and the closed-form KL (Kingma & Welling 2014).

The posterior is N(mu, exp(logvar)); the prior is N(0, I) or a Gaussian of its own mu and logvar; all are diagonal.
"""

import numpy as np

from .arrays import alike
from .noise import normal
from .reductions import expand, reduce


@np.errstate(over="ignore", invalid="ignore")
def forward(mu, logvar, *, prior=None, seed=None, eps=None, clamp=None, reduction=None):
    """Sample z = mu + exp(logvar / 2) eps (section 2.4), and the KL to the prior in nats (appendix B).

    mu, logvar: [B, ...] of one shape.
    prior: None for N(0, I), or its (mu, logvar), each broadcastable to mu.
    seed: eps is `noise.normal` over the C-order position of the element. The other rooms take its position in memory:
        for a channels_last mu the caller permutes mu and logvar to that order, and z back.
    eps: or the noise itself, shaped like mu.
    clamp: (lo, hi) for logvar; the prior's is not clamped.
    reduction: of the KL, see `reductions.reduce`.
    Returns (z or None, kl or None): z is made where seed or eps is given, kl where reduction is.

    >>> forward([[1.0, 0.0]], [[0.0, 0.0]], eps=[[0.5, -0.5]], reduction="sample")
    (array([[ 1.5, -0.5]]), array([0.5]))
    """
    mu, logvar = alike(mu=mu, logvar=logvar)
    eps = _noise(mu, seed, eps)
    logvar = _clamp(logvar, clamp)
    z = None if eps is None else mu + np.exp(logvar / 2) * eps
    kl = None if reduction is None else reduce(_kl(mu, logvar, *_prior(prior, mu.shape)), reduction)
    return z, kl


@np.errstate(over="ignore", invalid="ignore")
def backward(grad_z, grad_kl, mu, logvar, *, prior=None, seed=None, eps=None, clamp=None, reduction=None):
    """Gradients of `forward`, called with the same arguments, from those of its results.

    grad_z: like mu, or None where z is unused. grad_kl: shaped as the reduction leaves the KL, or None.
    Returns (grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar): the last two in the prior's own shapes, or None.
    The clamp's gradient is 1 within and at its bounds and 0 outside; a NaN logvar keeps its NaN gradient.
    """
    mu, logvar = alike(mu=mu, logvar=logvar)
    clamped = _clamp(logvar, clamp)
    grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar = (np.zeros(mu.shape) for _ in range(4))
    if grad_z is not None:
        from_mu, from_logvar = _sample_backward(grad_z, mu, clamped, _noise(mu, seed, eps))
        grad_mu, grad_logvar = grad_mu + from_mu, grad_logvar + from_logvar
    if grad_kl is not None:
        grad = expand(grad_kl, mu.shape, reduction)
        from_mu, from_logvar, grad_prior_mu, grad_prior_logvar = _kl_backward(
            grad, mu, clamped, *_prior(prior, mu.shape)
        )
        grad_mu, grad_logvar = grad_mu + from_mu, grad_logvar + from_logvar
    if clamp is not None:
        grad_logvar = np.where((logvar < clamp[0]) | (logvar > clamp[1]), 0.0, grad_logvar)
    if prior is None:
        return grad_mu, grad_logvar, None, None
    grad_prior = (_sum_to(grad, np.shape(p)) for grad, p in zip((grad_prior_mu, grad_prior_logvar), prior, strict=True))
    return grad_mu, grad_logvar, *grad_prior


@np.errstate(over="ignore", invalid="ignore")
def expm1mx(x):
    """exp(x) - 1 - x, to 1e-15 relative: near 0 the plain form is the difference of nearly equal numbers.

    Below |x| = 1 by the Taylor series x^2/2 (1 + x/3 (1 + x/4 (...))), whose first omitted term is under 1e-19 of it.
    """
    x = np.asarray(x, dtype=np.float64)
    small = np.abs(x) < 1.0
    near = np.where(small, x, 0.0)
    series = np.ones_like(near)
    for k in range(20, 2, -1):
        series = 1.0 + near / k * series
    return np.where(small, near * near / 2 * series, np.expm1(x) - x)


def _kl(mu, logvar, prior_mu, prior_logvar):
    """The KL of each element: (exp(d) - 1 - d + (mu - prior_mu)^2 exp(-prior_logvar)) / 2 at d = logvar - prior_logvar.

    Grouped so that nothing cancels: both terms are non-negative, and each keeps its relative accuracy near KL = 0.
    """
    return (expm1mx(logvar - prior_logvar) + (mu - prior_mu) ** 2 * np.exp(-prior_logvar)) / 2


def _kl_backward(grad, mu, logvar, prior_mu, prior_logvar):
    """Gradients of `_kl` in its four arguments."""
    slope = (mu - prior_mu) * np.exp(-prior_logvar)
    excess = np.expm1(logvar - prior_logvar)
    return grad * slope, grad * excess / 2, -grad * slope, -grad * (excess + (mu - prior_mu) * slope) / 2


def _sample_backward(grad_z, mu, logvar, eps):
    """Gradients of z in mu and logvar."""
    if eps is None:
        raise ValueError("grad_z is given without seed or eps: the forward call made no z")
    _, grad_z = alike(mu=mu, grad_z=grad_z)
    return grad_z, grad_z * eps * np.exp(logvar / 2) / 2


def _noise(mu, seed, eps):
    """eps shaped like mu, or None where neither it nor a seed is given."""
    if seed is not None and eps is not None:
        raise ValueError("seed and eps are both given: pass one of them")
    if seed is not None:
        return normal(seed, mu.size).reshape(mu.shape)
    return None if eps is None else alike(mu=mu, eps=eps)[1]


def _prior(prior, shape):
    """The prior's (mu, logvar), expanded to the shape of mu."""
    prior = (0.0, 0.0) if prior is None else prior
    return tuple(np.broadcast_to(np.asarray(p, dtype=np.float64), shape) for p in prior)


def _clamp(logvar, clamp):
    """logvar within clamp = (lo, hi); NaN stays NaN."""
    return logvar if clamp is None else np.clip(logvar, *clamp)


def _sum_to(grad, shape):
    """The adjoint of broadcasting from `shape`: sum over the dimensions that it added or stretched."""
    grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))
    stretched = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return grad.sum(axis=stretched, keepdims=True)
