"""Small float32 latents on the CPU: the shortest way, as `small`, to what `ops.gaussian` computes by default."""

import functools

import torch

from vae_fast.checks import LATENT_REDUCTIONS
from vae_fast.eager import gaussian, reductions
from vae_fast.eager.blocks import BLOCK
from vae_fast.eager.elementary import HALF
from vae_fast.ops import autograd
from vae_fast.ops.library import batching
from vae_fast.ops.small import takes


def sample_kl(mu, logvar, reduction, eps):
    """(z, kl) of the default options; eps is drawn where it is None."""
    if not _takes_pair(mu, logvar, reduction) or not (eps is None or _takes_noise(mu, eps)):
        return None
    return _Latent.apply(mu, logvar, True, eps, reduction, 0)


def sample_kl_packed(moments, dim, reduction, eps):
    """The same of mu and logvar side by side along `dim`."""
    if torch.compiler.is_compiling() or reduction not in LATENT_REDUCTIONS or type(dim) is not int:
        return None
    if not takes(moments, moments, 2 * BLOCK):
        return None
    if not 0 < dim < moments.dim() or moments.shape[dim] % 2:
        return None
    if not (eps is None or _takes_noise(moments.detach().chunk(2, dim)[0], eps)):
        return None
    return _Latent.apply(moments, None, True, eps, reduction, dim)


def gaussian_kl(mu, logvar, reduction):
    """The KL of the default options."""
    return _Latent.apply(mu, logvar, False, None, reduction, 0)[1] if _takes_pair(mu, logvar, reduction) else None


def _takes_pair(mu, logvar, reduction):
    if torch.compiler.is_compiling() or reduction not in LATENT_REDUCTIONS:
        return False
    return takes(mu, logvar, BLOCK) and mu.stride() == logvar.stride()


def _takes_noise(mu, eps):
    return takes(mu, eps, BLOCK) and not eps.requires_grad


class _Latent(autograd.Short):
    """`ops.gaussian` with the default options, in one block, which PyTorch allocates as it goes.

    The inputs are mu, logvar and a dim of 0, or moments that hold both along `dim` and None. eps is drawn where it is
    None and something is `sampled`.
    """

    @staticmethod
    def forward(ctx, posterior, logvar, sampled, eps, reduction, dim):
        ctx.reduction, ctx.dim = reduction, dim
        mu, v = posterior.chunk(2, dim) if dim else (posterior, logvar)
        if sampled and eps is None:
            eps = torch.randn_like(mu)
        made = gaussian.forward_block(gaussian.NONE, reduction, mu, v, None, None, eps, *gaussian.NOWHERE)
        z, noisy, difference, kl = made
        count = reductions.divisor(reduction, mu.shape)
        ctx.save_for_backward(posterior, logvar, mu, noisy, difference)
        ctx.set_materialize_grads(False)
        return z, kl.mul_(HALF[kl.dtype] if count == 1 else 0.5 / count)

    @staticmethod
    def backward(ctx, grad_z, grad_kl):
        if grad_z is None and grad_kl is None:
            return (None,) * 6
        gradients = functools.partial(_gradients, ctx.reduction, ctx.dim)
        d_mu, d_logvar = autograd.once(gradients, grad_z, grad_kl, *ctx.saved_tensors)
        return grad_z if d_mu is None else d_mu, d_logvar, None, None, None, None


def _gradients(reduction, dim, grad_z, grad_kl, posterior, logvar, mu, noisy, difference):
    """The gradients of mu (None where it is grad_z) and of logvar; or that of the moments, and None.

    logvar is not read. Were it not an input, a second derivative in it alone would be lost, and a change of it in place
    not noticed.
    """
    g = None if grad_kl is None else reductions.spread(grad_kl, mu, reduction)
    made = gaussian.backward_block(
        gaussian.NONE, mu, None, None, None, grad_z, g, noisy, difference, *gaussian.NOWHERE
    )  # fmt: skip
    if dim:
        packed = None if batching() else torch.empty_like(posterior)
        return torch.cat((grad_z if made[0] is None else made[0], made[1]), dim, out=packed), None
    return made
