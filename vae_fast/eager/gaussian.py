"""The latent op in PyTorch: reparameterised sample and KL of a diagonal Gaussian, forward and backward."""

import torch

from vae_fast.eager import general, noise, reductions
from vae_fast.eager.blocks import blocks
from vae_fast.eager.elementary import LOG2_E, expm1_minus_x
from vae_fast.eager.general import clamped

NONE = (None, None)
LOGVAR = ("logvar", 0.0, 0.0)


def forward(mu, logvar, **options):
    """As `vae_fast.kernels.gaussian.forward`."""
    return forward_keeping(mu, logvar, **options)[:2]


def forward_keeping(
    mu,
    logvar,
    *,
    prior=NONE,
    seed=None,
    eps=None,
    clamp=NONE,
    scale=LOGVAR,
    kl="closed_form",
    samples=None,
    reduction=None,
):
    """(z, kl, kept), where `kept` spares `backward` its exponentials: std * eps, and exp(logvar - prior's) - 1."""
    if scale != LOGVAR or kl != "closed_form" or samples is not None:
        options = {"clamp": clamp, "scale": scale, "kl": kl, "samples": samples, "reduction": reduction}
        return *general.forward(mu, logvar, _noise(mu, seed, eps, samples), prior=prior, **options), ()
    dtype = reductions.accumulator(mu.dtype)
    drawn = _noise(mu, seed, eps)
    z = None if drawn is None else torch.empty_like(mu)
    elementwise = torch.empty_like(mu, dtype=dtype) if reduction == "none" else None
    kept = _empty_kept(logvar, dtype, drawn is not None, reduction is not None)
    sums = []
    for m, v, prior_mu, prior_logvar, e, noisy, difference, z_out, kl_out in blocks(
        (mu, logvar, *prior, drawn, *kept, z, elementwise)
    ):
        m, v = m.to(dtype), clamped(v.to(dtype), clamp)
        excess = _exponentials(v, prior_logvar, e, noisy, difference)
        if z_out is not None:
            torch.add(m, noisy, out=z_out)
        if kl_out is not None:
            torch.add(excess, _square(m, prior_mu, prior_logvar), out=kl_out).mul_(0.5)
        elif excess is not None:
            square = _square(m, prior_mu, prior_logvar)
            sums.append(reductions.partial(excess, reduction).add_(reductions.partial(square, reduction)))
    kl = elementwise if not sums else reductions.finish(sums, reduction, mu.shape).mul_(0.5).to(dtype)
    return z, kl, kept


def backward(
    grad_z,
    grad_kl,
    mu,
    logvar,
    *,
    prior=NONE,
    seed=None,
    eps=None,
    clamp=NONE,
    scale=LOGVAR,
    kl="closed_form",
    samples=None,
    reduction=None,
    prior_grad=False,
    out=None,
    kept=None,
):
    """As `vae_fast.kernels.gaussian.backward`; `kept` is what `forward_keeping` kept."""
    dtype = reductions.accumulator(mu.dtype)
    passed = grad_kl is None and samples is None and scale[0] != "soft_clamp"
    grads = out or (None if passed else torch.empty_like(mu), torch.empty_like(logvar))
    grads = (*grads, *(torch.empty_like(p) if prior_grad else None for p in prior))
    if scale != LOGVAR or kl != "closed_form" or samples is not None:
        options = {"clamp": clamp, "scale": scale, "kl": kl, "samples": samples, "reduction": reduction}
        general.backward(grad_z, grad_kl, mu, logvar, _noise(mu, seed, eps, samples), grads, prior=prior, **options)
        return grads
    g = None if grad_kl is None else reductions.spread(grad_kl, mu, reduction)
    if kept is None:
        kept = _keep(mu, logvar, prior, seed, eps, clamp, grad_z is not None, grad_kl is not None)
    for block in blocks((mu, logvar, *prior, grad_z, g, *kept, *grads)):
        _backward_block(dtype, clamp, *block)
    return grads


def _backward_block(dtype, clamp, mu, logvar, prior_mu, prior_logvar, grad_z, g, noisy, difference, *grads):
    d_mu, d_logvar, d_prior_mu, d_prior_logvar = grads
    grad_z = None if grad_z is None else grad_z.to(dtype)
    twice = None if grad_z is None else grad_z * noisy
    if g is not None:
        shift, slope = _shift(mu.to(dtype), prior_mu, prior_logvar)
        torch.mul(g, slope, out=d_mu) if grad_z is None else torch.addcmul(grad_z, g, slope, out=d_mu)
        twice = g * difference if twice is None else twice.addcmul_(g, difference)
        if d_prior_mu is not None:
            torch.mul(-g, slope, out=d_prior_mu)
            torch.addcmul(difference, shift, slope, out=shift).mul_(g)
            torch.mul(shift, -0.5, out=d_prior_logvar)
    elif d_mu is not None:
        d_mu.zero_() if grad_z is None else d_mu.copy_(grad_z)
    if twice is None:
        d_logvar.zero_()
        return
    if clamp[0] is not None:
        twice.masked_fill_((logvar < clamp[0]) | (logvar > clamp[1]), 0)  # NaN stays NaN
    torch.mul(twice, 0.5, out=d_logvar)


def _empty_kept(logvar, dtype, sampled, measured):
    return tuple(torch.empty_like(logvar, dtype=dtype) if wanted else None for wanted in (sampled, measured))


def _keep(mu, logvar, prior, seed, eps, clamp, sampled, measured):
    """What forward_keeping keeps."""
    dtype = reductions.accumulator(mu.dtype)
    kept = _empty_kept(logvar, dtype, sampled, measured)
    drawn = _noise(mu, seed, eps) if sampled else None
    for v, prior_logvar, e, *outs in blocks((logvar, prior[1], drawn, *kept)):
        _exponentials(clamped(v.to(dtype), clamp), prior_logvar, e, *outs)
    return kept


def _exponentials(logvar, prior_logvar, eps, noisy, difference):
    """Write std * eps to `noisy`, and exp(x) - 1 with x = logvar - prior's to `difference`; return exp(x) - 1 - x."""
    if noisy is not None:
        torch.mul(logvar, LOG2_E / 2, out=noisy).exp2_().mul_(eps)
    if difference is not None:
        return expm1_minus_x(logvar if prior_logvar is None else logvar - prior_logvar, difference)
    return None


def _noise(mu, seed, eps, samples=None):
    """The given eps, or the seed's: the same in forward and backward."""
    if seed is None:
        return eps
    return noise.normal(seed, mu if samples is None else general.sampled_like(mu, samples))


def _shift(mu, prior_mu, prior_logvar):
    """mu - prior's mu, and the KL's derivative in mu."""
    if prior_mu is None:
        return mu, mu
    shift = mu - prior_mu
    return shift, torch.exp(-prior_logvar.to(mu.dtype)).mul_(shift)


def _square(mu, prior_mu, prior_logvar):
    """(mu - prior's mu)^2 over the prior's variance."""
    shift, slope = _shift(mu, prior_mu, prior_logvar)
    return shift * slope
