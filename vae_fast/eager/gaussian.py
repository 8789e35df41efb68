"""The latent op in PyTorch: reparameterised sample and KL of a diagonal Gaussian, forward and backward."""

import torch

from vae_fast.eager import general, noise, reductions
from vae_fast.eager.blocks import blocks
from vae_fast.eager.elementary import HALF, ONE, exp, exp_of_half, expm1_minus_x, is_at_hand
from vae_fast.eager.general import NONE, clamped, clamped_gradient

LOGVAR = ("logvar", 0.0, 0.0)


def is_default(scale, kl, samples):
    """Whether it is computed here, and not by `general`."""
    return scale == "logvar" and kl == "closed_form" and samples is None


def passes(grad_kl, scale, samples):
    """Whether the gradient in mu is that of z itself: backward then makes none, unless it is told where."""
    return grad_kl is None and samples is None and scale != "soft_clamp"


def forward(mu, logvar, **options):
    """As `vae_fast.kernels.gaussian.forward`."""
    return forward_keeping(mu, logvar, keep=False, **options)[:2]


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
    keep=True,
):
    """(z, kl, kept), where `kept` spares `backward` its exponentials: std * eps, and exp(logvar - prior's) - 1.

    Without `keep` they have a block's room, which all blocks share.
    """
    if not is_default(scale[0], kl, samples):
        options = {"clamp": clamp, "scale": scale, "kl": kl, "samples": samples, "reduction": reduction}
        return *general.forward(mu, logvar, _noise(mu, seed, eps, samples), prior=prior, **options), ()
    drawn, dtype = _noise(mu, seed, eps), reductions.accumulator(mu.dtype)
    z = None if drawn is None else torch.empty_like(mu)
    asked = drawn is not None, reduction is not None
    kept = empty_kept(logvar, *asked) if keep else NONE
    elementwise = torch.empty_like(mu, dtype=dtype) if reduction == "none" else None
    pieces = blocks((mu, logvar, *prior, drawn, z, elementwise, *kept))
    if not keep:
        shared = empty_kept(pieces[0][1], *asked)
        pieces = [(*piece[:-2], *(t if t is None else t[: len(piece[0])] for t in shared)) for piece in pieces]
    doubled = [forward_block(clamp, reduction, *piece)[1] for piece in pieces]
    if reduction is None:
        return z, None, kept
    kl = reductions.finish_kl(doubled, reduction, mu) if elementwise is None else elementwise
    return z, kl.mul_(0.5), kept


def forward_block(
    clamp, reduction, mu, logvar, prior_mu, prior_logvar, eps, z=None, terms=None, noisy=None, difference=None
):
    """(z, the doubled KL reduced as asked, what is kept), each in the tensor given for it, or in a new one."""
    m, x = _widened(mu), _exponent(logvar, prior_logvar, clamp, difference)
    if eps is not None:
        v = x if prior_logvar is None else _exponent(logvar, None, clamp)
        noisy = exp_of_half(v, noisy).mul_(eps)
        z = torch.add(m, noisy, out=z)
    if reduction is None:
        return z, None, (noisy, None)
    shift = _shift(m, prior_mu, prior_logvar)
    if is_at_hand(mu) and reductions.is_sum(reduction):
        difference, sums = _rounded_kl(x, shift, reduction, difference, None if shift[0] is mu else shift[0])
        if reductions.outweigh_rounding(sums, x.numel()):
            return z, sums, (noisy, difference)
        x, shift = _exponent(logvar, prior_logvar, clamp), _shift(_widened(mu), prior_mu, prior_logvar)
    difference, excess = expm1_minus_x(x, difference)
    terms = torch.addcmul(excess, *shift, out=excess if terms is None else terms)
    return z, terms if reduction == "none" else reductions.partial(terms, reduction), (noisy, difference)


def _exponent(logvar, prior_logvar, clamp, room=None):
    """logvar, widened in the `room` and clamped, less the prior's: the tensor itself if nothing is to be done to it."""
    v = clamped(_widened(logvar, room), clamp)
    return v if prior_logvar is None else v - prior_logvar


def _rounded_kl(x, shift, reduction, difference, scratch):
    """exp(x) - 1, and sums of exp(x) - 1 - x + the product of `shift`, with float32's own digits.

    That takes a third of the time of all digits. The gradient is off by a rounding of 1 at most, and so is each term,
    which a collapsed posterior's KL would not bear. x may be `difference`, and a factor the `scratch`: both are lost.
    """
    rest = torch.addcmul(x, *shift, value=-1, out=scratch)
    difference = exp(x, out=difference).sub_(ONE[x.dtype])
    return difference, reductions.partial(torch.sub(difference, rest, out=rest), reduction)


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
    passed = passes(grad_kl, scale[0], samples)
    grads = out or (None if passed else torch.empty_like(mu), torch.empty_like(logvar))
    grads = (*grads, *(torch.empty_like(p) if prior_grad else None for p in prior))
    if not is_default(scale[0], kl, samples):
        options = {"clamp": clamp, "scale": scale, "kl": kl, "samples": samples, "reduction": reduction}
        general.backward(grad_z, grad_kl, mu, logvar, _noise(mu, seed, eps, samples), grads, prior=prior, **options)
        return grads
    g = None if grad_kl is None else reductions.spread(grad_kl, mu, reduction)
    measured = None if grad_kl is None else reduction
    kept = kept or _keep(mu, logvar, prior, seed, eps, clamp, grad_z is not None, measured)
    for block in blocks((mu, logvar, *prior, grad_z, g, *kept, *grads)):
        backward_block(clamp, prior_grad, *block[:6], block[6:8], *block[8:])
    return grads


def backward_block(
    clamp, prior_grad, mu, logvar, prior_mu, prior_logvar, grad_z, g, kept,
    d_mu=None, d_logvar=None, d_prior_mu=None, d_prior_logvar=None,
):  # fmt: skip
    """(The gradients in mu and logvar, and in the prior's), each in the tensor that is given for it, or in a new one.

    That in mu is None where it is grad_z and no tensor is given; the prior's are without `prior_grad`.
    """
    noisy, difference = kept
    grad_z = None if grad_z is None else _widened(grad_z)
    if g is not None:
        # a CPU multiplies halves by a 0-d float32 as float32
        mean = mu if grad_z is prior_mu is None and mu.is_cpu else _widened(mu)
        shift, slope = _shift(mean, prior_mu, prior_logvar)
        d_mu = torch.mul(slope, g, out=d_mu) if grad_z is None else torch.addcmul(grad_z, slope, g, out=d_mu)
        if prior_grad:
            d_prior_mu = torch.mul(-g, slope, out=d_prior_mu)
            made = torch.addcmul(difference, shift, slope, out=shift)
            d_prior_logvar = torch.mul(made, -0.5 * g, out=d_prior_logvar)
    elif d_mu is not None:
        d_mu.zero_() if grad_z is None else d_mu.copy_(grad_z)
    if grad_z is g is None:
        d_logvar.zero_()
    elif clamp == NONE and (grad_z is None or d_logvar is None or d_logvar.dtype == noisy.dtype):
        d_logvar = _logvar_gradient(grad_z, g, noisy, difference, d_logvar)
    else:
        made = clamped_gradient(_logvar_gradient(grad_z, g, noisy, difference, None), logvar, clamp)
        d_logvar = made if d_logvar is None else d_logvar.copy_(made)
    return d_mu, d_logvar, d_prior_mu, d_prior_logvar


def _logvar_gradient(grad_z, g, noisy, difference, out):
    """(grad_z * noisy + g * difference) / 2, whose half costs nothing where g is one number a sample."""
    if g is None:
        return torch.mul(grad_z, noisy, out=out).mul_(HALF[noisy.dtype])
    made = torch.mul(difference, g * HALF[g.dtype], out=out)
    return made if grad_z is None else torch.addcmul(made, grad_z, noisy, value=0.5, out=out)


def empty_kept(logvar, sampled, measured):
    """What `forward_keeping` keeps, to be written."""
    dtype = reductions.accumulator(logvar.dtype)
    return tuple(torch.empty_like(logvar, dtype=dtype) if want else None for want in (sampled, measured))


def _keep(mu, logvar, prior, seed, eps, clamp, sampled, reduction):
    """What forward_keeping keeps."""
    kept = empty_kept(logvar, sampled, reduction is not None)
    drawn = _noise(mu, seed, eps) if sampled else None
    for block in blocks((mu, logvar, *prior, drawn, None, None, *kept)):
        forward_block(clamp, reduction, *block)
    return kept


def _widened(tensor, room=None):
    """In the arithmetic's dtype, in new memory or in the `room`; `to` takes a microsecond to find nothing to do."""
    if tensor.dtype.itemsize >= 4:
        return tensor
    return tensor.float() if room is None else room.copy_(tensor)


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
