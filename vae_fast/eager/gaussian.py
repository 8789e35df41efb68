"""The latent op in PyTorch: reparameterised sample and KL of a diagonal Gaussian, forward and backward."""

import torch

from vae_fast.eager import general, noise, reductions
from vae_fast.eager.blocks import blocks
from vae_fast.eager.elementary import HALF, HALF_LOG2_E, expm1_minus_x
from vae_fast.eager.general import clamped, clamped_gradient

NONE = (None, None)
NOWHERE = (None,) * 4
LOGVAR = ("logvar", 0.0, 0.0)
HALVES = (torch.bfloat16, torch.float16)


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
    drawn, measured, sums = _noise(mu, seed, eps), reduction is not None, []
    z = None if drawn is None else torch.empty_like(mu)
    kept = _empty_kept(logvar, drawn is not None, measured)
    elementwise = torch.empty_like(mu, dtype=reductions.accumulator(mu.dtype)) if reduction == "none" else None
    for block in blocks((mu, logvar, *prior, drawn, z, *kept, elementwise)):
        terms = forward_block(clamp, measured, *block)[3]
        if measured and reduction != "none":
            sums.append(reductions.partial(terms, reduction))
    kl = reductions.finish(sums, reduction, mu.shape) if sums else elementwise
    return z, kl.mul_(0.5) if measured else None, kept


def forward_block(clamp, measured, mu, logvar, prior_mu, prior_logvar, eps, z, noisy, difference, terms):
    """(z, what is kept, and the doubled KL), each in the tensor that is given for it, or in a new one."""
    m, v = _widened(mu), clamped(_widened(logvar), clamp)
    if eps is not None:
        noisy = torch.mul(v, HALF_LOG2_E, out=noisy).exp2_().mul_(eps)
        z = torch.add(m, noisy, out=z)
    if measured:
        x = v if prior_logvar is None else v - prior_logvar
        difference, excess = _exponential(x, mu.dtype, difference)
        terms = torch.addcmul(excess, *_shift(m, prior_mu, prior_logvar), out=excess if terms is None else terms)
    return z, noisy, difference, terms


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
    passed = grad_kl is None and samples is None and scale[0] != "soft_clamp"
    grads = out or (None if passed else torch.empty_like(mu), torch.empty_like(logvar))
    grads = (*grads, *(torch.empty_like(p) if prior_grad else None for p in prior))
    if scale != LOGVAR or kl != "closed_form" or samples is not None:
        options = {"clamp": clamp, "scale": scale, "kl": kl, "samples": samples, "reduction": reduction}
        general.backward(grad_z, grad_kl, mu, logvar, _noise(mu, seed, eps, samples), grads, prior=prior, **options)
        return grads
    g = None if grad_kl is None else reductions.spread(grad_kl, mu, reduction)
    kept = kept or _keep(mu, logvar, prior, seed, eps, clamp, grad_z is not None, grad_kl is not None)
    for block in blocks((mu, logvar, *prior, grad_z, g, *kept, *grads)):
        backward_block(clamp, *block)
    return grads


def backward_block(clamp, mu, logvar, prior_mu, prior_logvar, grad_z, g, noisy, difference, *grads):
    """(The gradients in mu and logvar), each in the tensor that is given for it, or in a new one.

    That in mu is None where it is grad_z and no tensor is given. The prior's are written where tensors are given.
    """
    d_mu, d_logvar, d_prior_mu, d_prior_logvar = grads
    grad_z = None if grad_z is None else _widened(grad_z)
    twice = None if grad_z is None else grad_z * noisy
    if g is not None:
        shift, slope = _shift(_widened(mu), prior_mu, prior_logvar)
        d_mu = torch.mul(g, slope, out=d_mu) if grad_z is None else torch.addcmul(grad_z, g, slope, out=d_mu)
        twice = g * difference if twice is None else twice.addcmul_(g, difference)
        if d_prior_mu is not None:
            torch.mul(-g, slope, out=d_prior_mu)
            torch.addcmul(difference, shift, slope, out=shift).mul_(g)
            torch.mul(shift, -0.5, out=d_prior_logvar)
    elif d_mu is not None:
        d_mu.zero_() if grad_z is None else d_mu.copy_(grad_z)
    if twice is None:
        return d_mu, d_logvar.zero_()
    return d_mu, torch.mul(clamped_gradient(twice, logvar, clamp), HALF, out=d_logvar)


def _empty_kept(logvar, sampled, measured):
    return _empty_where((logvar, logvar), (sampled, measured), reductions.accumulator(logvar.dtype))


def _empty_where(tensors, wanted, dtype=None):
    return tuple(torch.empty_like(t, dtype=dtype) if want else None for t, want in zip(tensors, wanted, strict=True))


def _keep(mu, logvar, prior, seed, eps, clamp, sampled, measured):
    """What forward_keeping keeps."""
    kept = _empty_kept(logvar, sampled, measured)
    drawn = _noise(mu, seed, eps) if sampled else None
    for block in blocks((mu, logvar, *prior, drawn, None, *kept, None)):
        forward_block(clamp, measured, *block)
    return kept


def _widened(tensor):
    """In the dtype of the arithmetic; `to` takes a microsecond to find nothing to do."""
    return tensor.float() if tensor.dtype in HALVES else tensor


def _exponential(x, dtype, out=None):
    """`expm1_minus_x` of an x made from tensors of `dtype`: in a half's 8 or 11 bits an error of 6e-8 |x| is none."""
    if dtype not in HALVES:
        return expm1_minus_x(x, out)
    out = torch.expm1(x, out=out)
    return out, out - x


def _noise(mu, seed, eps, samples=None):
    """The given eps, or the seed's: the same in forward and backward."""
    if seed is None:
        return eps
    return noise.normal(seed, mu if samples is None else general.sampled_like(mu, samples))


def _shift(mu, prior_mu, prior_logvar):
    """mu - prior's mu, and that over the prior's variance: the KL's derivative in mu."""
    if prior_mu is None:
        return mu, mu
    shift = mu - prior_mu
    return shift, torch.exp(-prior_logvar.to(mu.dtype)).mul_(shift)
