"""Small float32 latents on the CPU: the shortest way, as `small`, to what `ops.gaussian` computes of log-variances."""

import functools

import torch
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from vae_fast import checks
from vae_fast.eager import gaussian, reductions
from vae_fast.eager.blocks import BLOCK
from vae_fast.eager.elementary import HALF
from vae_fast.ops import autograd
from vae_fast.ops.gaussian import APART, NO_KL
from vae_fast.ops.kinds import present
from vae_fast.ops.library import PLAIN, vmapping
from vae_fast.ops.small import takes


def compute(posterior, logvar, dim, prior, logvar_clamp, scale, kl, num_samples, reduction, noise):
    """The tensors asked for, in a list; None where they are not made here. As `vae_fast.latents.compute`."""
    if type(posterior) not in PLAIN or not posterior.is_cpu or is_compiling():
        return None
    if not (num_samples is None and type(scale) is type(kl) is str and scale == "logvar" and kl == "closed_form"):
        return None
    if dim is APART:
        if not takes(posterior, logvar, BLOCK) or posterior.stride() != logvar.stride():
            return None
        shape, dim = posterior.shape, 0
    else:
        shape = _half(posterior, dim)
    if shape is None or not (reduction is NO_KL or reduction in checks.LATENT_REDUCTIONS):
        return None
    if not (noise is None or _takes_noise(shape, *noise)) or not (prior is None or _takes_prior(shape, prior)):
        return None
    clamp = gaussian.NONE if logvar_clamp is None else checks.clamp(logvar_clamp, torch.float32)
    if noise is not None and noise[1] is not None:
        checks.generator(noise[1], "mu", posterior)
    reduction = None if reduction is NO_KL else reduction
    others = (logvar, None, None) if prior is None else (logvar, *prior)
    if torch.is_grad_enabled() and (posterior.requires_grad or any(t is not None and t.requires_grad for t in others)):
        made = _Latent.apply(posterior, *others, noise, reduction, dim, clamp)
    elif forward_ad._current_level >= 0:
        return None
    else:
        made = _forward(posterior, *others, noise, reduction, dim, clamp)[:2]
    return present(*made)


def _half(moments, dim):
    """The shape of mu, of moments along `dim`, or None."""
    if type(dim) is not int or not takes(moments, moments, 2 * BLOCK):
        return None
    shape = list(moments.shape)
    if not 0 < dim < len(shape) or shape[dim] % 2:
        return None
    shape[dim] //= 2
    return tuple(shape)


def _takes_noise(shape, seed, generator, eps):
    if seed is not None or (eps is not None and generator is not None):
        return False
    return eps is None or (takes(eps, eps, BLOCK) and eps.shape == shape and not eps.requires_grad)


def _takes_prior(shape, prior):
    return type(prior) is tuple and len(prior) == 2 and all(takes(p, p, BLOCK) and p.shape == shape for p in prior)


def _forward(posterior, logvar, prior_mu, prior_logvar, noise, reduction, dim, clamp):
    """(z or None, kl or None, (mu, and what spares backward work))."""
    mu, v = posterior.chunk(2, dim) if dim else (posterior, logvar)
    eps = None
    if noise is not None:
        _, generator, eps = noise
        if eps is None:
            eps = torch.randn_like(mu) if generator is None else torch.empty_like(mu).normal_(generator=generator)
    z, noisy, difference, kl = gaussian.forward_block(
        clamp, reduction, mu, v, prior_mu, prior_logvar, eps, *gaussian.NOWHERE
    )  # fmt: skip
    if kl is not None:
        count = reductions.divisor(reduction, mu.shape)
        kl.mul_(HALF[kl.dtype] if count == 1 else 0.5 / count)
    return z, kl, (mu, noisy, difference)


class _Latent(autograd.Short):
    """`ops.gaussian` in one block, which PyTorch allocates as it goes.

    The inputs are mu, logvar, the prior's or Nones, and a dim of 0; or moments that hold both along `dim` and None.
    """

    @staticmethod
    def forward(ctx, posterior, logvar, prior_mu, prior_logvar, noise, reduction, dim, clamp):
        z, kl, kept = _forward(posterior, logvar, prior_mu, prior_logvar, noise, reduction, dim, clamp)
        ctx.reduction, ctx.dim, ctx.clamp = reduction, dim, clamp
        ctx.save_for_backward(posterior, logvar, prior_mu, prior_logvar, *kept)
        ctx.set_materialize_grads(False)
        return z, kl

    @staticmethod
    def backward(ctx, grad_z, grad_kl):
        if grad_z is None and grad_kl is None:
            return (None,) * 8
        prior_grad = grad_kl is not None and (ctx.needs_input_grad[2] or ctx.needs_input_grad[3])
        gradients = functools.partial(_gradients, ctx.reduction, ctx.dim, ctx.clamp, prior_grad)
        d_mu, *others = autograd.once(gradients, grad_z, grad_kl, *ctx.saved_tensors)
        return grad_z if d_mu is None else d_mu, *others, None, None, None, None


def _gradients(
    reduction, dim, clamp, prior_grad, grad_z, grad_kl, posterior, logvar, prior_mu, prior_logvar, mu, noisy, difference
):
    """The gradients of mu (None where it is grad_z), logvar and the prior; or of the moments, None and the prior.

    logvar is read where it is clamped. Were it not an input, a second derivative in it alone would be lost, and a
    change of it in place not noticed.
    """
    g = None if grad_kl is None else reductions.spread(grad_kl, mu, reduction)
    v = posterior.chunk(2, dim)[1] if dim and clamp != gaussian.NONE else logvar
    d_mu, d_logvar, *prior_grads = gaussian.backward_block(
        clamp, prior_grad, mu, v, prior_mu, prior_logvar, grad_z, g, noisy, difference, *gaussian.NOWHERE
    )
    if dim:
        packed = None if vmapping() else torch.empty_like(posterior)
        d_mu, d_logvar = torch.cat((grad_z if d_mu is None else d_mu, d_logvar), dim, out=packed), None
    return d_mu, d_logvar, *prior_grads
