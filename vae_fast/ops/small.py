"""Small float32 calls on the CPU, where a call costs its host time: the shortest way to what the other ops compute.

Each function returns None unless it is certain that the arguments are good, plain and small, and that nothing is being
compiled: the caller then takes the long way, which names what is wrong with the arguments.
"""

import functools
import math

import torch
from torch.autograd import Function

from vae_fast.checks import LATENT_REDUCTIONS
from vae_fast.eager import gaussian, likelihoods, reductions
from vae_fast.eager.blocks import BLOCK
from vae_fast.eager.elbo import compose
from vae_fast.eager.elementary import HALF
from vae_fast.eager.reconstruction import total_of_block
from vae_fast.ops import autograd, backend, reconstruction
from vae_fast.ops.library import PLAIN, batching, listening

SCALARS = ("batchmean", "sum", "mean")


def reconstruct(output, target, row, reduction):
    """The nll, where PyTorch's own op takes least by that op and its autograd: their backward has no Python."""
    if torch.compiler.is_compiling() or reduction not in SCALARS or row.domain == "classes":
        return None
    params = output if type(output) is tuple else (output,)
    if len(params) != len(row.parameters) or type(target) not in PLAIN or target.requires_grad:
        return None
    threads = torch.get_num_threads()
    if not all(_takes(p, target, BLOCK * threads) for p in params):
        return None
    formulas = getattr(likelihoods, row.name)
    if target.numel() > formulas.most * threads:
        if row.constants or not (torch.is_grad_enabled() and any(p.requires_grad for p in params)):
            return None
        spec = reconstruction.Spec(1.0, row.name, reduction, "eager")
        return _Reconstruction.apply(spec, target, None, None, *params)
    total = formulas.native(params[0], target, likelihoods.SUM, *row.constants)
    count = reductions.divisor(reduction, target.shape)
    return total if count == 1 else total / count


def elbo(output, target, kl, beta, row):
    """(total, reconstruction, kl) with `reconstruct`."""
    if torch.compiler.is_compiling() or type(beta) is not float or not 0 <= beta < math.inf:
        return None
    if type(kl) not in PLAIN or kl.dtype is not torch.float32:
        return None
    if not kl.is_cpu or kl.layout is not torch.strided or kl.dim() > 1:
        return None
    nll = reconstruct(output, target, row, "batchmean")
    if nll is None or (kl.dim() and len(kl) != len(target)):
        return None
    return compose(nll, kl, None, beta)


def latent(mu, logvar, reduction, sampled):
    """(z or None, kl) of the default options, with fresh noise."""
    if torch.compiler.is_compiling() or reduction not in LATENT_REDUCTIONS:
        return None
    if not _takes(mu, logvar, BLOCK) or mu.stride() != logvar.stride():
        return None
    return _Latent.apply(mu, logvar, sampled, reduction, 0)


def packed(moments, dim, reduction):
    """(z, kl) of the default options, with fresh noise, of mu and logvar side by side along `dim`."""
    if torch.compiler.is_compiling() or reduction not in LATENT_REDUCTIONS or type(dim) is not int:
        return None
    if not _takes(moments, moments, 2 * BLOCK):
        return None
    if not 0 < dim < moments.dim() or moments.shape[dim] % 2:
        return None
    return _Latent.apply(moments, None, True, reduction, dim)


def _takes(a, b, most):
    """Whether they are tensors [B, ...] of one shape and at most `most` elements, and nobody listens."""
    return (
        type(a) in PLAIN and type(b) in PLAIN
        and a.dtype is torch.float32 and b.dtype is torch.float32
        and a.is_cpu and b.is_cpu
        and a.layout is torch.strided and b.layout is torch.strided
        and not a._is_zerotensor() and not b._is_zerotensor()
        and a.shape == b.shape and a.dim() > 0
        and 0 < a.numel() <= most
        and backend.is_eager_on_cpu()
        and not listening()
    )  # fmt: skip


class _Reconstruction(reconstruction.Ordinary):
    """The same in one block, which PyTorch allocates as it goes, with the derivatives that forward finds on its way."""

    @staticmethod
    def forward(ctx, spec, target, weight, seed, *params):
        formulas, nowhere = getattr(likelihoods, spec.likelihood), (None,) * len(params)
        ctx.spec = spec
        ctx.save_for_backward(target, None, None, *params)
        total, ctx.grads = total_of_block(formulas, params, target, None, nowhere, True)
        return reductions.finish([total], spec.reduction, target.shape)

    @staticmethod
    def backward(ctx, grad_loss):
        if ctx.grads is None or torch.is_grad_enabled():
            return reconstruction.Ordinary.backward(ctx, grad_loss)
        grads, ctx.grads = ctx.grads, None
        upstream = reductions.spread(grad_loss, ctx.saved_tensors[0], ctx.spec.reduction)
        made = (g * upstream if want else None for g, want in zip(grads, ctx.needs_input_grad[4:], strict=True))
        return None, None, None, None, *made


class _Latent(Function):
    """`ops.gaussian` with the default options, in one block, which PyTorch allocates as it goes.

    The inputs are mu, logvar and 0, or moments that hold both along `dim` and None.
    """

    @staticmethod
    def forward(ctx, posterior, logvar, sampled, reduction, dim):
        ctx.reduction, ctx.dim = reduction, dim
        mu, v = posterior.chunk(2, dim) if dim else (posterior, logvar)
        eps = torch.empty_like(mu).normal_() if sampled else None
        made = gaussian.forward_block(gaussian.NONE, reduction, mu, v, None, None, eps, *gaussian.NOWHERE)
        z, noisy, difference, kl = made
        count = reductions.divisor(reduction, mu.shape)
        ctx.save_for_backward(posterior, mu, noisy, difference)
        ctx.set_materialize_grads(False)
        return z, kl.mul_(HALF if count == 1 else 0.5 / count)

    @staticmethod
    def backward(ctx, grad_z, grad_kl):
        if grad_z is None and grad_kl is None:
            return (None,) * 5
        gradients = functools.partial(_gradients, ctx.reduction, ctx.dim)
        d_mu, d_logvar = autograd.once(gradients, grad_z, grad_kl, *ctx.saved_tensors)
        passed = grad_kl is None and not ctx.dim
        return grad_z if passed else d_mu, d_logvar, None, None, None


def _gradients(reduction, dim, grad_z, grad_kl, posterior, mu, noisy, difference):
    """Those of mu, where it is not grad_z, and of logvar; or of the moments, and None."""
    packed = torch.empty_like(posterior) if dim and not batching() else None
    outs = gaussian.NONE if packed is None else packed.chunk(2, dim)
    g = None if grad_kl is None else reductions.spread(grad_kl, mu, reduction)
    made = gaussian.backward_block(
        gaussian.NONE, mu, None, None, None, grad_z, g, noisy, difference, *outs, None, None
    )  # fmt: skip
    if dim:
        return torch.cat(made, dim) if packed is None else packed, None
    return made
