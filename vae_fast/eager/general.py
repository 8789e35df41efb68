"""The latent op in every scale, with either KL and several samples: what `gaussian` has no faster passes for.

Several samples lie one behind the other, [K, B, ...]; what holds for all of them broadcasts.
"""

import functools
import math

import torch
from torch.compiler import is_compiling

from vae_fast.eager import divergence, reductions, scales
from vae_fast.eager.blocks import blocks
from vae_fast.eager.elementary import cast, is_at_hand

NONE = (None, None)  # no clamp, no prior


def sampled_like(mu, samples, dtype=None):
    """Room for `samples` tensors like mu, one behind the other in memory; for one like mu where that is None."""
    if samples is None:
        return torch.empty_like(mu, dtype=dtype)
    strides = torch.empty_like(mu, device="meta").stride()
    return torch.empty_strided((samples, *mu.shape), (mu.numel(), *strides), dtype=dtype or mu.dtype, device=mu.device)


def forward(mu, logvar, drawn, *, prior, clamp, scale, kl, samples, reduction):
    """(z or None, kl or None). drawn: eps, or None."""
    dtype, each = reductions.accumulator(mu.dtype), samples if kl == "monte_carlo" else None
    z = None if drawn is None else sampled_like(mu, samples)
    terms = sampled_like(mu, each, dtype) if reduction == "none" else None
    several, sums = (_turned(drawn, samples), _turned(z, samples), _turned(terms, each)), []
    for *inputs, eps, z_out, out in blocks((mu, logvar, *prior, *several), 1 / (samples or 1)):
        placed = (_turned(eps, samples), _turned(z_out, samples), _turned(out, each))
        sums.append(forward_block(scale, kl, clamp, reduction, *inputs, *placed)[1])
    if reduction is None:
        return z, None
    return z, (reductions.finish(sums, reduction, mu.shape) if terms is None else terms).mul_(0.5)


def _turned(tensor, samples):
    """Of several samples with the batch first, by which `blocks` cuts; or back again."""
    return tensor if tensor is None or samples is None else tensor.transpose(0, 1)


def forward_block(scale, kl, clamp, reduction, mu, raw, prior_mu, prior_raw, eps, z=None, terms=None):
    """(z, the doubled KL reduced as asked, what is kept), each in the tensor given for it, or in a new one."""
    measured, direct = reduction is not None, scales.is_direct(scale)
    prior = (prior_mu, prior_raw) if measured else NONE
    kept = _keep(scale, clamp, measured and (prior_mu is None or not direct), mu, raw, *prior, eps)
    eps, *posterior = kept[:4]
    prior, doubled = _prior(kept[4:]), None
    if eps is not None:
        mean, _, std = posterior
        sample = torch.addcmul(mean, std, eps, out=z if z is not None and z.dtype == mean.dtype else None)
        z = sample if z is None or z is sample else z.copy_(sample)
    if measured and kl == "monte_carlo":
        doubled = _reduced(divergence.monte_carlo(sample, eps, *posterior[1:], prior, direct), terms, reduction, mu)
    elif measured:
        doubled = _closed_form(terms, reduction, *posterior, prior, direct)
    return z, doubled, kept


def _keep(scale, clamp, measured, mu, raw, prior_mu, prior_raw, eps):
    """What spares `backward_block` the exponentials: eps; mean, log-variance and deviation of posterior and prior.

    The posterior's log-variance may be None where it is not `measured`, and the prior's where the scale is direct.
    """
    dtype = reductions.accumulator(mu.dtype)
    v = clamped(cast(raw, dtype), clamp)
    posterior = scales.mean(cast(mu, dtype), scale), *scales.deviation(v, scale, measured)
    prior = (None,) * 3
    if prior_mu is not None:
        deviation = scales.deviation(cast(prior_raw, dtype), scale, not scales.is_direct(scale))
        prior = scales.mean(cast(prior_mu, dtype), scale), *deviation
    return None if eps is None else cast(eps, dtype), *posterior, *prior


def _prior(kept):
    """What is kept of the prior, or None for N(0, I)."""
    return None if kept[0] is None else kept


def _closed_form(out, reduction, *posterior):
    """The doubled KL, reduced: where the sum is large enough, with float32's own digits, in a fraction of the time."""
    mean = posterior[0]
    if is_at_hand(mean) and reductions.is_sum(reduction):
        sums = reductions.partial(divergence.closed_form_rounded(*posterior), reduction)
        if reductions.outweigh_rounding(sums, mean.numel()):
            return sums
    return _reduced(divergence.closed_form(*posterior), out, reduction, mean)


def _reduced(terms, out, reduction, mu):
    """The terms themselves, in `out` if it is given, or their partial sums, one for each sample if they are several."""
    if reduction == "none":
        return terms if out is None else out.copy_(terms)
    batch = terms.dim() - mu.dim()  # its dimension
    if reduction != "latent":
        return reductions.partial(terms, reduction, several=batch > 0)
    one = reductions.latent_like(mu, terms.dtype)
    return torch.sum(terms, batch, out=sampled_like(one, len(terms) if batch else None))


def backward(grad_z, grad_kl, mu, logvar, drawn, grads, *, prior, clamp, scale, kl, samples, reduction):
    """Write to `grads`, those of mu, logvar and the prior's two; None is left out."""
    each, measured = samples if kl == "monte_carlo" else None, not scales.is_direct(scale)
    g = None if grad_kl is None else reductions.spread(grad_kl, mu, reduction, several=each is not None)
    several = (_turned(drawn, samples), _turned(grad_z, samples), _turned(g, each))
    for block in blocks((mu, logvar, *prior, *several, *grads), 1 / (samples or 1)):
        inputs, (eps, d_z, d_kl), outs = block[:4], block[4:7], block[7:]
        kept = _keep(scale, clamp, measured, *inputs, _turned(eps, samples))
        upstream = _turned(d_z, samples), _turned(d_kl, each)
        backward_block(scale, kl, clamp, grads[2] is not None, *inputs, *upstream, kept, *outs)


def backward_block(
    scale, kl, clamp, prior_grad, mu, raw, prior_mu, prior_raw, grad_z, g, kept,
    d_mu=None, d_raw=None, d_prior_mu=None, d_prior_raw=None,
):  # fmt: skip
    """(The gradients in mu and raw, and in the prior's), each in the tensor that is given for it, or in a new one.

    That in mu is None where it is grad_z and no tensor is given; the prior's are without `prior_grad`.
    """
    eps, mean, v, std, *prior = kept
    prior, direct, dtype = _prior(prior), scales.is_direct(scale), mean.dtype
    d_z, d_kl = (None if t is None else cast(t, dtype) for t in (grad_z, g))
    derivatives = _monte_carlo_derivatives if kl == "monte_carlo" and g is not None else _derivatives
    d_mean, d_std, d_logvar, *d_prior = derivatives(d_z, d_kl, eps, mean, v, std, prior, direct, prior_grad)

    def placed(made, out):
        return made if out is None else out.copy_(made)

    if prior_grad:
        d_prior_mu = placed(scales.mean_gradient(d_prior[0], cast(prior_mu, dtype), scale), d_prior_mu)
        made = _deviation_gradient(None, d_prior[1], prior[2], direct)
        d_prior_raw = placed(scales.deviation_gradient(made, cast(prior_raw, dtype), scale), d_prior_raw)
    made = scales.mean_gradient(d_mean, cast(mu, dtype), scale)
    if d_mu is not None or made is not grad_z:
        d_mu = placed(made, d_mu)
    raw = cast(raw, dtype)
    made = scales.deviation_gradient(_deviation_gradient(d_std, d_logvar, std, direct), raw, scale)
    return d_mu, placed(clamped_gradient(made, raw, clamp), d_raw), d_prior_mu, d_prior_raw


def _derivatives(grad_z, g, eps, mean, v, std, prior, direct, prior_grad):
    """Gradients in the mean, the deviation, the log-variance, and the prior's mean and log-variance; or Nones."""
    d_mean = d_std = d_logvar = d_prior_mean = d_prior_logvar = None
    if grad_z is not None:
        d_mean, d_std = _of_sample(grad_z, eps, mean)
    if g is not None:
        slope, half = divergence.closed_form_gradient(mean, v, std, prior, direct)
        d_mean, d_logvar = slope * g if d_mean is None else torch.addcmul(d_mean, slope, g), half * g
        if prior_grad:
            d_prior_mean = slope * -g
            d_prior_logvar = torch.addcmul(d_logvar, d_prior_mean, mean - prior[0], value=-0.5).neg_()
    return d_mean, d_std, d_logvar, d_prior_mean, d_prior_logvar


def _monte_carlo_derivatives(grad_z, g, eps, mean, v, std, prior, direct, prior_grad):
    """The same, of a KL that is estimated at the samples."""
    d_prior_mean = d_prior_logvar = None
    sample = torch.addcmul(mean, std, eps)
    through_z = divergence.slope(sample, prior) * g
    if prior_grad:
        d_prior_mean = _total(through_z, mean).neg()
        d_prior_logvar = _total(torch.addcmul(g, through_z, sample - prior[0], value=-1), mean) * 0.5
    d_mean, d_std = _of_sample(through_z if grad_z is None else grad_z + through_z, eps, mean)
    return d_mean, d_std, -0.5 * _total(g, mean), d_prior_mean, d_prior_logvar


def _of_sample(grad_z, eps, mean):
    """The gradients in the mean and the deviation, of that in mean + deviation * eps."""
    return _total(grad_z, mean), _total(grad_z * eps, mean)


def _total(tensor, like):
    """The sum over the samples, where there are several."""
    return tensor if tensor.dim() <= like.dim() else tensor.sum(0)


def _deviation_gradient(d_std, d_logvar, std, direct):
    """The gradient in the standard deviation where the scale is direct, else in the log-variance, of those in both."""
    if d_logvar is None:
        return d_std if direct else torch.mul(d_std, std).mul_(0.5)
    if direct:
        return 2 * d_logvar / std if d_std is None else torch.addcdiv(d_std, d_logvar, std, value=2)
    return d_logvar if d_std is None else torch.addcmul(d_logvar, d_std, std, value=0.5)


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


@functools.lru_cache(maxsize=256)
def _next_below(bound, dtype):
    """The largest number below the bound: PyTorch's op gives 0 at its own threshold."""
    return torch.nextafter(*torch.tensor((bound, -math.inf), dtype=dtype, device="cpu")).item()
