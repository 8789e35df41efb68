"""The latent op in every scale and with either KL, in float64: what `gaussian` has no faster passes for.

Nothing is kept for backward: it computes the exponentials again.
"""

import torch

from vae_fast.eager import divergence, reductions, scales
from vae_fast.eager.blocks import blocks


def forward(mu, logvar, drawn, *, prior, clamp, scale, kl, reduction):
    """(z or None, kl or None). drawn: eps, or None."""
    dtype, direct = reductions.accumulator(mu.dtype), scales.is_direct(scale)
    z = None if drawn is None else torch.empty_like(mu)
    elementwise = torch.empty_like(mu, dtype=dtype) if reduction == "none" else None
    sums = []
    for m, raw, prior_mu, prior_raw, e, z_out, kl_out in blocks((mu, logvar, *prior, drawn, z, elementwise)):
        mean = scales.mean(m.double(), scale)
        v, std = scales.deviation(clamped(raw.double(), clamp), scale)
        if z_out is not None:
            e = e.double()
            sample = mean + std * e
            z_out.copy_(sample)
        if reduction is None:
            continue
        q = _prior(prior_mu, prior_raw, scale)
        if kl == "monte_carlo":
            terms = divergence.monte_carlo(sample, e, v, std, q, direct)
        else:
            terms = divergence.closed_form(mean, v, std, q, direct)
        kl_out.copy_(terms) if kl_out is not None else sums.append(reductions.partial(terms, reduction))
    return z, elementwise if not sums else reductions.finish(sums, reduction, mu.shape).to(dtype)


def backward(grad_z, grad_kl, mu, logvar, drawn, grads, *, prior, clamp, scale, kl, reduction):
    """Write to `grads`, those of mu, logvar and the prior's two; None is left out."""
    g = None if grad_kl is None else reductions.spread(grad_kl, mu, reduction)
    for block in blocks((mu, logvar, *prior, grad_z, g, drawn, *grads)):
        _backward_block(clamp, scale, kl, *block)


def _backward_block(clamp, scale, kl, mu, raw, prior_mu, prior_raw, grad_z, g, e, *grads):
    d_mu, d_logvar, d_prior_mu, d_prior_logvar = grads
    direct = scales.is_direct(scale)
    mu, raw, e = mu.double(), raw.double(), None if e is None else e.double()
    v, std = scales.deviation(clamped(raw, clamp), scale)
    d_mean, d_deviation = torch.zeros_like(mu), torch.zeros_like(mu)
    if grad_z is not None:
        d_mean = grad_z.double()
        d_deviation = _through_sample(d_mean, e, std, direct)
    if g is not None:
        at, g, q = scales.mean(mu, scale), g.double(), _prior(prior_mu, prior_raw, scale)
        if kl == "monte_carlo":
            at = at + std * e
            kl_mean, kl_logvar = divergence.slope(at, q), torch.full_like(mu, -0.5)
            d_deviation = d_deviation + _through_sample(g * kl_mean, e, std, direct)
        else:
            kl_mean, kl_logvar = divergence.closed_form_gradient(at, v, std, q, direct)
        d_mean = d_mean + g * kl_mean
        d_deviation = d_deviation + _through_logvar(g * kl_logvar, std, direct)
        if d_prior_mu is not None:
            d_prior_mu.copy_(scales.mean_gradient(-g * kl_mean, prior_mu.double(), scale))
            d_prior = _through_logvar(-g * (kl_logvar + 0.5 * kl_mean * (at - q[0])), q[2], direct)
            d_prior_logvar.copy_(scales.deviation_gradient(d_prior, prior_raw.double(), scale))
    if d_mu is not None:
        d_mu.copy_(scales.mean_gradient(d_mean, mu, scale))
    d_logvar.copy_(clamped_gradient(scales.deviation_gradient(d_deviation, raw, scale), raw, clamp))


def _prior(mu, raw, scale):
    """(mean, log-variance, standard deviation), or None for N(0, I)."""
    return None if mu is None else (scales.mean(mu.double(), scale), *scales.deviation(raw.double(), scale))


def _through_sample(gradient, eps, std, direct):
    """The gradient in the log-variance, or the standard deviation where that is direct, of one in z."""
    return gradient * eps if direct else gradient * eps * std * 0.5


def _through_logvar(gradient, std, direct):
    """The same, of one in the log-variance."""
    return gradient * 2 / std if direct else gradient


def clamped(logvar, clamp):
    return logvar if clamp[0] is None else logvar.clamp(*clamp)


def clamped_gradient(gradient, logvar, clamp):
    """NaN stays NaN."""
    return gradient if clamp[0] is None else gradient.masked_fill((logvar < clamp[0]) | (logvar > clamp[1]), 0)
