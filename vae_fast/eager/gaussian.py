"""The latent op in PyTorch: reparameterised sample and closed-form KL of a diagonal Gaussian, forward and backward."""

import torch

from vae_fast.eager import noise, reductions
from vae_fast.eager.elementary import expm1_minus_x

NONE = (None, None)


def forward(mu, logvar, *, prior=NONE, seed=None, eps=None, clamp=NONE, reduction=None):
    """As `vae_fast.kernels.gaussian.forward`."""
    dtype = reductions.accumulator(mu.dtype)
    m, v = mu.to(dtype), _clamped(logvar.to(dtype), clamp)
    z = None
    if seed is not None or eps is not None:
        z = torch.addcmul(m, _std(v), _noise(mu, seed, eps, dtype), out=torch.empty_like(mu))
    kl = None if reduction is None else reductions.reduce(_divergence(m, v, prior, mu), reduction)
    return z, kl


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
    reduction=None,
    prior_grad=False,
    out=None,
):
    """As `vae_fast.kernels.gaussian.backward`."""
    out_mu, out_logvar = out or (None if grad_kl is None else torch.empty_like(mu), torch.empty_like(logvar))
    dtype = reductions.accumulator(mu.dtype)
    raw = logvar.to(dtype)
    m, v = mu.to(dtype), _clamped(raw, clamp)
    d_logvar = torch.zeros_like(v)
    if grad_z is not None:
        d_logvar = _std(v).mul_(_noise(mu, seed, eps, dtype)).mul_(grad_z).mul_(0.5)
    prior_grads = (None, None)
    if grad_kl is not None:
        g = reductions.spread(grad_kl, mu, reduction)
        kl_mu, half, kl_prior = _divergence_gradient(m, v, prior)
        torch.mul(g, kl_mu, out=out_mu) if grad_z is None else torch.addcmul(grad_z.to(dtype), g, kl_mu, out=out_mu)
        d_logvar.addcmul_(g, half, value=0.5)
        if prior_grad:
            prior_grads = (
                torch.mul(-g, kl_mu, out=torch.empty_like(prior[0])),
                torch.mul(g, kl_prior, out=torch.empty_like(prior[1])),
            )
    elif out_mu is not None:
        out_mu.zero_() if grad_z is None else out_mu.copy_(grad_z)
    if clamp[0] is not None:
        d_logvar.masked_fill_((raw < clamp[0]) | (raw > clamp[1]), 0)  # NaN stays NaN
    return out_mu, out_logvar.copy_(d_logvar), *prior_grads


def _clamped(logvar, clamp):
    return logvar if clamp[0] is None else logvar.clamp(*clamp)


def _std(logvar):
    return torch.mul(logvar, 0.5).exp_()


def _noise(mu, seed, eps, dtype):
    """The given eps, or the seed's: the same in forward and backward."""
    return (noise.normal(seed, mu) if eps is None else eps).to(dtype)


def _divergence(mu, logvar, prior, like):
    """KL of each element in nats (Kingma & Welling 2014, appendix B), in the memory format of z."""
    if prior[0] is None:
        terms = expm1_minus_x(logvar).addcmul_(mu, mu)
    else:
        prior_mu, prior_logvar = (p.to(mu.dtype) for p in prior)
        shift = mu - prior_mu
        terms = expm1_minus_x(logvar - prior_logvar).addcmul_(shift.square_(), torch.exp(-prior_logvar))
    return torch.mul(terms, 0.5, out=torch.empty_like(like, dtype=mu.dtype))


def _divergence_gradient(mu, logvar, prior):
    """The KL's derivatives in mu, twice the one in logvar, and the one in the prior's logvar."""
    if prior[0] is None:
        return mu, torch.expm1(logvar), None
    prior_mu, prior_logvar = (p.to(mu.dtype) for p in prior)
    shift = mu - prior_mu
    scaled = shift * torch.exp(-prior_logvar)
    d_logvar = torch.expm1(logvar - prior_logvar)
    return scaled, d_logvar, torch.addcmul(d_logvar, shift, scaled).mul_(-0.5)
