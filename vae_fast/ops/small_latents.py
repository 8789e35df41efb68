"""Small float32 latents on the CPU: the shortest way, as `small`, to what `ops.gaussian` computes."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.compiler import is_compiling

from vae_fast import checks, scales
from vae_fast.eager import gaussian, general, reductions
from vae_fast.eager.blocks import BLOCK
from vae_fast.eager.elementary import HALF
from vae_fast.ops import autograd
from vae_fast.ops.gaussian import APART, NO_KL
from vae_fast.ops.kinds import present
from vae_fast.ops.plain import PLAIN, vmapping
from vae_fast.ops.small import takes


class Formulas(NamedTuple):
    """Who computes one block; how many samples, or None; and whether each has a KL of its own."""

    forward_block: Callable
    backward_block: Callable
    samples: int | None = None
    several: bool = False


DEFAULT = Formulas(gaussian.forward_block, gaussian.backward_block)


def compute(posterior, logvar, dim, prior, logvar_clamp, scale, kl, num_samples, reduction, noise):
    """The tensors asked for, in a list; None where they are not made here. As `vae_fast.latents.compute`."""
    if type(posterior) not in PLAIN or not posterior.is_cpu or is_compiling():
        return None
    formulas, most = DEFAULT, BLOCK
    if not (num_samples is None and type(scale) is type(kl) is str and scale == "logvar" and kl == "closed_form"):
        if not _is_general(scale, kl, num_samples, logvar_clamp):
            return None
        formulas = _general(scale, kl, num_samples)
        most //= num_samples or 1
    if dim is APART:
        if not takes(posterior, logvar, most) or posterior.stride() != logvar.stride():
            return None
        shape, dim = posterior.shape, 0
    else:
        shape = _half(posterior, dim, most)
    if shape is None or not (reduction is NO_KL or (type(reduction) is str and reduction in checks.LATENT_REDUCTIONS)):
        return None
    if not (noise is None or _takes_noise(shape, num_samples, *noise)):
        return None
    if not (prior is None or _takes_prior(shape, prior)):
        return None
    clamp = gaussian.NONE if logvar_clamp is None else checks.clamp(logvar_clamp, torch.float32)
    if noise is not None and noise[1] is not None:
        checks.generator(noise[1], "mu", posterior)
    reduction = None if reduction is NO_KL else reduction
    others = (logvar, None, None) if prior is None else (logvar, *prior)
    asked = reduction, dim, clamp, formulas
    if torch.is_grad_enabled() and (posterior.requires_grad or any(t is not None and t.requires_grad for t in others)):
        made = _Latent.apply(posterior, *others, noise, asked)
    else:
        made = _forward(posterior, *others, noise, *asked)[:2]
    return present(*made)


def _is_general(scale, kl, samples, logvar_clamp):
    """Whether `general` takes them."""
    if type(kl) is not str or kl not in checks.KLS or not (samples is None or (type(samples) is int and samples > 0)):
        return False
    if type(scale) is str:
        return scale in scales.NAMES and (logvar_clamp is None or scale == "logvar")
    return type(scale) in (scales.Softplus, scales.SoftClamp) and logvar_clamp is None


@functools.lru_cache(maxsize=64)
def _general(scale, kl, samples):
    blocks = (general.forward_block, general.backward_block)
    made = (functools.partial(block, scales.lookup(scale), kl) for block in blocks)
    return Formulas(*made, samples, samples is not None and kl == "monte_carlo")


def _half(moments, dim, most):
    """The shape of mu, of moments along `dim`, or None."""
    if type(dim) is not int or not takes(moments, moments, 2 * most):
        return None
    shape = list(moments.shape)
    if not 0 < dim < len(shape) or shape[dim] % 2:
        return None
    shape[dim] //= 2
    return tuple(shape)


def _takes_noise(shape, samples, seed, generator, eps):
    if seed is not None or (eps is not None and generator is not None):
        return False
    if eps is None:
        return True
    if not takes(eps, eps, BLOCK) or eps.requires_grad:
        return False
    if samples is None:
        return eps.shape == shape
    return eps.shape == (samples, *shape) and eps.is_contiguous()  # z would lie in memory as it does


def _takes_prior(shape, prior):
    return type(prior) is tuple and len(prior) == 2 and all(takes(p, p, BLOCK) and p.shape == shape for p in prior)


def _forward(posterior, logvar, prior_mu, prior_logvar, noise, reduction, dim, clamp, formulas):
    """(z or None, kl or None, (mu, and what spares backward work))."""
    mu, v = posterior.chunk(2, dim) if dim else (posterior, logvar)
    eps = None
    if noise is not None:
        _, generator, eps = noise
        if eps is None and generator is formulas.samples is None:
            eps = torch.randn_like(mu)
        elif eps is None:
            eps = general.sampled_like(mu, formulas.samples).normal_(generator=generator)
    z, kl, kept = formulas.forward_block(clamp, reduction, mu, v, prior_mu, prior_logvar, eps)
    if kl is not None:
        count = reductions.divisor(reduction, mu.shape)
        kl.mul_(HALF[kl.dtype] if count == 1 else 0.5 / count)
    return z, kl, (mu, *kept)


class _Latent(autograd.Short):
    """`ops.gaussian` in one block, which PyTorch allocates as it goes.

    The inputs are mu, logvar, the prior's or Nones, and a dim of 0; or moments that hold both along `dim` and None.
    """

    @staticmethod
    def forward(ctx, posterior, logvar, prior_mu, prior_logvar, noise, asked):
        z, kl, kept = _forward(posterior, logvar, prior_mu, prior_logvar, noise, *asked)
        ctx.asked = asked
        ctx.save_for_backward(posterior, logvar, prior_mu, prior_logvar, *kept)
        ctx.set_materialize_grads(False)
        return z, kl

    @staticmethod
    def backward(ctx, grad_z, grad_kl):
        if grad_z is None and grad_kl is None:
            return (None,) * 6
        prior_grad = grad_kl is not None and (ctx.needs_input_grad[2] or ctx.needs_input_grad[3])
        gradients = functools.partial(_gradients, *ctx.asked, prior_grad)
        d_mu, *others = autograd.once(gradients, grad_z, grad_kl, *ctx.saved_tensors)
        return grad_z if d_mu is None else d_mu, *others, None, None


def _gradients(
    reduction, dim, clamp, formulas, prior_grad, grad_z, grad_kl, posterior, logvar, prior_mu, prior_logvar, mu, *kept
):
    """The gradients of mu (None where it is grad_z), logvar and the prior; or of the moments, None and the prior.

    The default reads logvar only where it is clamped. Were it not an input, a second derivative in it alone would be
    lost, and a change of it in place not noticed.
    """
    g = None if grad_kl is None else reductions.spread(grad_kl, mu, reduction, formulas.several)
    is_read = formulas is not DEFAULT or clamp != gaussian.NONE
    v = posterior.chunk(2, dim)[1] if dim and is_read else logvar
    d_mu, d_logvar, *prior_grads = formulas.backward_block(
        clamp, prior_grad, mu, v, prior_mu, prior_logvar, grad_z, g, kept
    )
    if dim:
        packed = None if vmapping() else torch.empty_like(posterior)
        d_mu, d_logvar = torch.cat((grad_z if d_mu is None else d_mu, d_logvar), dim, out=packed), None
    return d_mu, d_logvar, *prior_grads
