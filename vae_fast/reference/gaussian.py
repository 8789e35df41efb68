"""The latent of a Gaussian VAE: the reparameterised sample and the KL (Kingma & Welling 2014).

The posterior is N(mu, exp(logvar)) unless `scale` says otherwise; the prior is N(0, I) or a Gaussian of its own two
arrays; all are diagonal.
"""

import numpy as np

from . import divergence, scales
from .arrays import alike
from .noise import normal
from .reductions import expand, reduce


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def forward(
    mu,
    logvar,
    *,
    prior=None,
    seed=None,
    eps=None,
    clamp=None,
    scale="logvar",
    kl="closed_form",
    samples=None,
    reduction=None,
):
    """Sample z = mu + exp(logvar / 2) eps (section 2.4), and the KL to the prior in nats (appendix B).

    mu, logvar: [B, ...] of one shape.
    prior: None for N(0, I), or its (mu, logvar), each broadcastable to mu.
    seed: eps is `noise.normal` over the C-order position of the element. The other rooms take its position in memory:
        for a channels_last mu the caller permutes mu and logvar to that order, and z back.
    eps: or the noise itself, shaped like mu.
    clamp: (lo, hi) for logvar; the prior's is not clamped.
    scale: what logvar and the prior's hold, see `scales`.
    kl: "closed_form", or "monte_carlo": log q(z) - log p(z).
    samples: K, for z and eps of [K, B, ...]; a Monte Carlo kl then has a dimension K in front.
    reduction: of the KL, see `reductions.reduce`.
    Returns (z or None, kl or None): z is made where seed or eps is given, kl where reduction is.

    >>> forward([[1.0, 0.0]], [[0.0, 0.0]], eps=[[0.5, -0.5]], reduction="sample")
    (array([[ 1.5, -0.5]]), array([0.5]))
    """
    mu, logvar = alike(mu=mu, logvar=logvar)
    eps = _noise(mu, seed, eps, samples)
    mean, _ = scales.mean(mu, scale)
    logvar, std, *_ = scales.deviation(_clamp(logvar, clamp), scale)
    z = None if eps is None else mean + std * eps
    if reduction is None:
        return z, None
    _, _, prior_mean, prior_logvar = _prior(prior, mu.shape, scale)
    if kl == "monte_carlo":
        terms = divergence.monte_carlo(z, eps, logvar, prior_mean, prior_logvar)
        return z, reduce(terms, reduction) if samples is None else np.stack([reduce(t, reduction) for t in terms])
    return z, reduce(divergence.closed_form(mean, logvar, prior_mean, prior_logvar), reduction)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def backward(
    grad_z,
    grad_kl,
    mu,
    logvar,
    *,
    prior=None,
    seed=None,
    eps=None,
    clamp=None,
    scale="logvar",
    kl="closed_form",
    samples=None,
    reduction=None,
):
    """Gradients of `forward`, called with the same arguments, from those of its results.

    grad_z: like z, or None where z is unused. grad_kl: shaped as the reduction leaves the KL, or None.
    Returns (grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar): the last two in the prior's own shapes, or None.
    The clamp's gradient is 1 within and at its bounds and 0 outside; a NaN logvar keeps its NaN gradient.
    """
    mu, raw = alike(mu=mu, logvar=logvar)
    if samples is not None:
        return _sum_over_samples(
            grad_z, grad_kl, mu, raw, _noise(mu, seed, eps, samples),
            prior=prior, clamp=clamp, scale=scale, kl=kl, reduction=reduction,
        )  # fmt: skip
    eps = _noise(mu, seed, eps)
    mean, mean_slope = scales.mean(mu, scale)
    logvar, std, logvar_slope, std_slope = scales.deviation(_clamp(raw, clamp), scale)
    prior_mu, prior_raw, prior_mean, prior_logvar = _prior(prior, mu.shape, scale)
    from_z, from_mean, from_logvar, from_prior_mean, from_prior_logvar = (np.zeros(mu.shape) for _ in range(5))
    if grad_z is not None:
        if eps is None:
            raise ValueError("grad_z is given without seed or eps: the forward call made no z")
        _, from_z = alike(mu=mu, grad_z=grad_z)
    if grad_kl is not None:
        grad = expand(grad_kl, mu.shape, reduction)
        if kl == "monte_carlo":
            slope, from_logvar, from_prior_mean, from_prior_logvar = divergence.monte_carlo_backward(
                grad, mean + std * eps, prior_mean, prior_logvar
            )
            from_z = from_z + slope
        else:
            from_mean, from_logvar, from_prior_mean, from_prior_logvar = divergence.closed_form_backward(
                grad, mean, logvar, prior_mean, prior_logvar
            )
    grad_mu = (from_z + from_mean) * mean_slope
    grad_logvar = from_logvar * logvar_slope if grad_kl is not None else np.zeros(mu.shape)
    if eps is not None:
        grad_logvar = grad_logvar + from_z * eps * std_slope
    if clamp is not None:
        grad_logvar = np.where((raw < clamp[0]) | (raw > clamp[1]), 0.0, grad_logvar)
    if prior is None:
        return grad_mu, grad_logvar, None, None
    from_prior = (
        from_prior_mean * scales.mean(prior_mu, scale)[1],
        from_prior_logvar * scales.deviation(prior_raw, scale)[2],
    )
    return grad_mu, grad_logvar, *(_sum_to(g, np.shape(p)) for g, p in zip(from_prior, prior, strict=True))


def _sum_over_samples(grad_z, grad_kl, mu, logvar, eps, *, kl, **options):
    """The gradients of K samples: those of each, and of a KL in closed form once."""
    samples, gradients = len(eps), []
    for k in range(samples):
        of_kl = grad_kl[k] if grad_kl is not None and kl == "monte_carlo" else None
        of_z = None if grad_z is None else grad_z[k]
        gradients.append(backward(of_z, of_kl, mu, logvar, eps=eps[k], kl=kl, **options))
    if kl == "closed_form":
        gradients.append(backward(None, grad_kl, mu, logvar, **options))
    return tuple(None if same[0] is None else sum(same) for same in zip(*gradients, strict=True))


def _noise(mu, seed, eps, samples=None):
    """eps shaped like z, or None where neither it nor a seed is given."""
    if seed is not None and eps is not None:
        raise ValueError("seed and eps are both given: pass one of them")
    shape = mu.shape if samples is None else (samples, *mu.shape)
    if seed is not None:
        return normal(seed, mu.size * (samples or 1)).reshape(shape)
    return None if eps is None else alike(mu=np.broadcast_to(mu, shape), eps=eps)[1]


def _prior(prior, shape, scale):
    """The prior's two arrays, expanded to the shape of mu, and its (mean, log-variance)."""
    if prior is None:
        return (np.zeros(shape),) * 4
    mu, raw = (np.broadcast_to(np.asarray(p, dtype=np.float64), shape) for p in prior)
    return mu, raw, scales.mean(mu, scale)[0], scales.deviation(raw, scale)[0]


def _clamp(logvar, clamp):
    """logvar within clamp = (lo, hi); NaN stays NaN."""
    return logvar if clamp is None else np.clip(logvar, *clamp)


def _sum_to(grad, shape):
    """The adjoint of broadcasting from `shape`: sum over the dimensions that it added or stretched."""
    grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))
    stretched = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return grad.sum(axis=stretched, keepdims=True)
