"""The latent op in every scale, with either KL and several samples: what `gaussian` has no faster passes for.

Nothing is kept for backward, which makes the exponentials again.
"""

import functools
import math

import torch
from torch.compiler import is_compiling

from vae_fast.eager import divergence, reductions, scales
from vae_fast.eager.blocks import blocks


def sampled_like(mu, samples, dtype=None):
    """Room for `samples` tensors like mu, one behind the other in memory; for one like mu where that is None."""
    if samples is None:
        return torch.empty_like(mu, dtype=dtype)
    strides = torch.empty_like(mu, device="meta").stride()
    return torch.empty_strided((samples, *mu.shape), (mu.numel(), *strides), dtype=dtype or mu.dtype, device=mu.device)


def forward(mu, logvar, drawn, *, prior, clamp, scale, kl, samples, reduction):
    """(z or None, kl or None). drawn: eps, or None."""
    dtype, direct = reductions.accumulator(mu.dtype), scales.is_direct(scale)
    each = samples if kl == "monte_carlo" else None
    z = None if drawn is None else sampled_like(mu, samples)
    elementwise = sampled_like(mu, each, dtype) if reduction == "none" else None
    sums = [[] for _ in range(each or 1)]
    by_batch = (_by_batch(drawn, samples), _by_batch(z, samples), _by_batch(elementwise, each))
    for m, raw, prior_mu, prior_raw, e, z_out, kl_out in blocks((mu, logvar, *prior, *by_batch)):
        mean = scales.mean(m.to(dtype), scale)
        measured = reduction is not None and (prior_mu is None or not direct)
        v, std = scales.deviation(clamped(raw.to(dtype), clamp), scale, measured)
        q = None if reduction is None else _prior(prior_mu, prior_raw, scale)
        for k in range(0 if z is None else samples or 1):
            eps = e[:, k].to(dtype)
            sample = torch.addcmul(mean, std, eps)
            z_out[:, k].copy_(sample)
            if reduction is not None and kl == "monte_carlo":
                terms = divergence.monte_carlo(sample, eps, v, std, q, direct)
                sums[k].append(_reduced(terms, None if kl_out is None else kl_out[:, k], reduction))
        if reduction is not None and kl == "closed_form":
            sums[0].append(_closed_form(kl_out, reduction, mean, v, std, q, direct).mul_(0.5))
    if reduction in (None, "none"):
        return z, elementwise
    totals = [reductions.finish_kl(partials, reduction, mu).to(dtype) for partials in sums]
    if each is None:
        return z, totals[0]
    return z, torch.stack(totals, out=sampled_like(totals[0], each))


def _closed_form(out, reduction, *posterior):
    """The doubled KL, reduced: where the sum is large enough, with float32's own digits, in a fraction of the time."""
    if posterior[0].is_cpu and reductions.is_sum(reduction):
        sums = reductions.partial(divergence.closed_form_rounded(*posterior), reduction)
        if reductions.outweigh_rounding(sums, posterior[0].numel()):
            return sums
    return _reduced(divergence.closed_form(*posterior), None if out is None else out[:, 0], reduction)


def _reduced(terms, out, reduction):
    """The terms themselves in `out`, or their partial sum."""
    return reductions.partial(terms, reduction) if out is None else out.copy_(terms)


def backward(grad_z, grad_kl, mu, logvar, drawn, grads, *, prior, clamp, scale, kl, samples, reduction):
    """Write to `grads`, those of mu, logvar and the prior's two; None is left out."""
    g = None
    if grad_kl is not None:
        each = grad_kl if kl == "monte_carlo" and samples is not None else (grad_kl,)
        g = [reductions.spread(one, mu, reduction) for one in each]
    by_batch = (_by_batch(grad_z, samples), _by_batch(drawn, samples))
    for m, raw, prior_mu, prior_raw, z_block, e, *rest in blocks((mu, logvar, *prior, *by_batch, *grads, *(g or ()))):
        outs, upstream = rest[:4], rest[4:] if g else None
        _backward_block(clamp, scale, kl, m, raw, prior_mu, prior_raw, z_block, e, upstream, *outs)


def _backward_block(clamp, scale, kl, mu, raw, prior_mu, prior_raw, grad_z, eps, upstream, *grads):
    """grad_z, eps: the samples along dimension 1; upstream: one gradient of the kl's elements, or one a sample."""
    d_mu, d_raw, d_prior_mu, d_prior_raw = grads
    direct, monte_carlo = scales.is_direct(scale), kl == "monte_carlo" and upstream is not None
    dtype = reductions.accumulator(mu.dtype)
    mu, raw = mu.to(dtype), raw.to(dtype)
    mean = scales.mean(mu, scale)
    v, std = scales.deviation(clamped(raw, clamp), scale, not direct)
    q = None if upstream is None else _prior(prior_mu, prior_raw, scale)
    d_mean = d_std = d_logvar = d_prior_mean = d_prior_logvar = None
    for k in range(eps.shape[1] if grad_z is not None or monte_carlo else 0):
        e = eps[:, k].to(dtype)
        d_z = None if grad_z is None else grad_z[:, k].to(dtype)
        if monte_carlo:
            g, sample = upstream[k].to(dtype), torch.addcmul(mean, std, e)
            through_z = g * divergence.slope(sample, q)
            d_z, d_logvar = _plus(d_z, through_z), _plus(d_logvar, -0.5 * g)
            if q is not None:
                d_prior_mean = _plus(d_prior_mean, -through_z)
                d_prior_logvar = _plus(d_prior_logvar, 0.5 * (g - through_z * (sample - q[0])))
        d_mean, d_std = _plus(d_mean, d_z), _plus(d_std, d_z * e)
    if upstream is not None and not monte_carlo:
        g = upstream[0].to(dtype)
        kl_mean, kl_logvar = divergence.closed_form_gradient(mean, v, std, q, direct)
        through_mean, d_logvar = g * kl_mean, g * kl_logvar
        d_mean = _plus(d_mean, through_mean)
        if q is not None:
            d_prior_mean, d_prior_logvar = -through_mean, -d_logvar - 0.5 * through_mean * (mean - q[0])
    if d_prior_mu is not None:
        d_prior_mu.copy_(scales.mean_gradient(d_prior_mean, prior_mu.to(dtype), scale))
        made = _deviation_gradient(None, d_prior_logvar, q[2], direct)
        d_prior_raw.copy_(scales.deviation_gradient(made, prior_raw.to(dtype), scale))
    if d_mu is not None:
        d_mu.copy_(scales.mean_gradient(d_mean, mu, scale))
    made = _deviation_gradient(d_std, d_logvar, std, direct)
    d_raw.copy_(clamped_gradient(scales.deviation_gradient(made, raw, scale), raw, clamp))


def _plus(total, more):
    return more if total is None else total + more


def _by_batch(tensor, samples):
    """[B, K, ...], which cuts along the batch."""
    return None if tensor is None else tensor.unsqueeze(1) if samples is None else tensor.transpose(0, 1)


def _prior(mu, raw, scale):
    """(mean, log-variance, standard deviation), or None for N(0, I). No log-variance where the scale is direct."""
    if mu is None:
        return None
    dtype = reductions.accumulator(mu.dtype)
    return scales.mean(mu.to(dtype), scale), *scales.deviation(raw.to(dtype), scale, not scales.is_direct(scale))


def _deviation_gradient(d_std, d_logvar, std, direct):
    """The gradient in the standard deviation where the scale is direct, else in the log-variance, of those in both."""
    if direct:
        return d_std if d_logvar is None else _plus(d_std, 2 * d_logvar / std)
    return d_logvar if d_std is None else torch.mul(d_std, std).mul_(0.5) + (0 if d_logvar is None else d_logvar)


def clamped(logvar, clamp):
    return logvar if clamp[0] is None else logvar.clamp(*clamp)


def clamped_gradient(gradient, logvar, clamp):
    """The gradient within the bounds, both included, and 0 beyond; where logvar is NaN it stays as it is."""
    low, high = clamp
    if low is None:
        return gradient
    logvar = logvar.to(gradient.dtype)
    if is_compiling():  # a backward pass is traced, where no tensor may be asked for its number
        return torch.where((logvar < low) | (logvar > high), 0, gradient)
    # Not hardtanh_backward, one pass for both: on a CPU its vectors give 0 for a NaN, in a bound as in logvar.
    if low > -math.inf:
        gradient = torch.ops.aten.threshold_backward(gradient, logvar, _next_below(low, gradient.dtype))
    if high < math.inf:
        gradient = torch.ops.aten.threshold_backward(gradient, -logvar, _next_below(-high, gradient.dtype))
    return gradient


@functools.cache
def _next_below(bound, dtype):
    """The largest number below the bound: PyTorch's op gives 0 at its own threshold."""
    return torch.nextafter(*torch.tensor((bound, -math.inf), dtype=dtype, device="cpu")).item()
