"""Plain calls of the kernels: the shortest way to what the other ops compute, since a launch waits for its host.

As in `small`, each function returns None unless it is certain that the arguments are good and plain and that nothing is
being compiled: the caller then takes the long way, which names what is wrong with them.
"""

import functools

import torch

from vae_fast import checks, classes, scales, seeds, targets
from vae_fast.eager.reductions import accumulator
from vae_fast.ops import backend, categorical, reconstruction
from vae_fast.ops import elbo as elbos
from vae_fast.ops import gaussian as gaussians
from vae_fast.ops.library import is_plain, overheard
from vae_fast.ops.small import SCALARS, fits, is_weight

TARGETS = (*checks.FLOATS, *checks.INTEGERS)


def sample_kl(mu, logvar, reduction, eps):
    """(z, kl) of the default options, and of noise that is to be drawn."""
    if eps is not None or not _takes_latents(reduction, mu, logvar):
        return None
    return gaussians.Short.apply(mu, logvar, None, None, seeds.drawn(None, mu), None, _latents(reduction, 0))


def sample_kl_packed(moments, dim, reduction, eps):
    """The same of mu and logvar side by side along `dim`."""
    if eps is not None or type(dim) is not int or not _takes_latents(reduction, moments):
        return None
    if not 0 < dim < moments.dim() or moments.shape[dim] % 2:
        return None
    return gaussians.Short.apply(moments, None, None, None, seeds.drawn(None, moments), None, _latents(reduction, dim))


def gaussian_kl(mu, logvar, reduction):
    """The KL of the default options."""
    if not _takes_latents(reduction, mu, logvar):
        return None
    return gaussians.Short.apply(mu, logvar, None, None, None, None, _latents(reduction, 0))[0]


def reconstruct(output, target, row, reduction):
    """The nll, a scalar."""
    if row.domain == "classes":
        return _reconstruct_classes(output, target, row, reduction)
    params = output if type(output) is tuple else (output,)
    if reduction not in SCALARS or not _takes_likelihood(params, target, row):
        return None
    spec = reconstruction.Spec(targets.scale(None, target, row), row.name, reduction, "triton")
    return reconstruction.Short.apply(spec, target, None, None, *row.with_constants(params))


def _reconstruct_classes(logits, target, row, reduction):
    if torch.compiler.is_compiling() or reduction not in SCALARS or not _is_one_kind((logits,)):
        return None
    if logits.dtype not in checks.FLOATS or not is_plain(target) or not classes.fit(target, logits):
        return None
    if target.device != logits.device:
        return None
    return categorical.Short.apply(categorical.Spec.of(row, reduction, "triton"), target, None, logits)


def elbo(output, target, kl, beta, row):
    """(total, reconstruction, kl); None for classes."""
    params = output if type(output) is tuple else (output,)
    if not is_weight(beta) or not _takes_likelihood(params, target, row):
        return None
    if not is_plain(kl) or kl.dtype is not torch.float32 or kl.device != target.device or not fits(kl, target):
        return None
    spec = elbos.Spec(targets.scale(None, target, row), beta, row.name, "triton")
    return elbos.Short.apply(spec, target, None, None, None, kl, *row.with_constants(params))


@functools.lru_cache(maxsize=256)
def _latents(reduction, dim):
    return gaussians.Spec(reduction, None, None, *scales.LOGVAR, "closed_form", None, dim, "triton")


def _takes_latents(reduction, *tensors):
    return (
        not torch.compiler.is_compiling()
        and _is_one_kind(tensors)
        and tensors[0].dtype in checks.FLOATS
        and type(reduction) is str
        and reduction in checks.LATENT_REDUCTIONS
    )


def _takes_likelihood(params, target, row):
    if torch.compiler.is_compiling() or row.domain == "classes":
        return False
    if len(params) != len(row.parameters) or not is_plain(target) or target.requires_grad:
        return False
    return (
        _is_one_kind(params, learned=True)
        and params[0].dtype in checks.FLOATS
        and target.dtype in TARGETS
        and target.shape == params[0].shape
        and target.device == params[0].device
    )


def _is_one_kind(tensors, learned=False):
    """Whether they are [B, ...], for the kernels, of one shape, arithmetic and device, and one needs a gradient.

    learned: those after the first may be one number, such as a learned scale.
    """
    first = tensors[0]
    if not is_plain(first) or not backend.launches(first) or not first.numel() or not first.dim():
        return False
    for other in tensors[1:]:
        if not is_plain(other) or other.dtype not in checks.FLOATS:
            return False
        if accumulator(other.dtype) != accumulator(first.dtype):
            return False
        if other.device != first.device:
            return False
        if other.shape != first.shape and (not learned or other.dim() or first.numel() == 1):
            return False
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors) and not overheard()
