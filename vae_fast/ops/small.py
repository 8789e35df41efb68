"""Small float32 calls on the CPU, which cost the host's time: the shortest way to what the other ops compute.

Each function returns None unless it is certain that the tensors are good, plain and small, and that nothing is being
compiled: the caller then takes the long way, which names what is wrong with them. What else is asked, such as a weight
or a scale of the target, is checked here as there, and in the same order.
"""

import itertools
import math

import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from vae_fast import checks, classes, targets
from vae_fast.eager import likelihoods, reductions
from vae_fast.eager import reconstruction as eager
from vae_fast.eager import targets as eager_targets
from vae_fast.eager.blocks import BLOCK
from vae_fast.eager.elementary import is_at_hand, number
from vae_fast.ops import autograd, backend, categorical, reconstruction
from vae_fast.ops.plain import PLAIN, hooked, is_plain, listening, overheard

SCALARS = ("batchmean", "sum", "mean")
SEVERAL = ("sample", "none")
REAL = (*checks.FLOATS, *checks.INTEGERS)


def reconstruct(output, target, row, reduction, target_scale, weight, noise):
    """The nll; where that is faster, by PyTorch's own op, whose backward pass runs no Python.

    noise: (binarize, seed, generator).
    """
    if type(target) not in PLAIN or not target.is_cpu or type(reduction) is not str or is_compiling():
        return None
    if target.is_nested:  # it has no shape
        return None
    binarize, seed, generator = noise
    if binarize is False and target_scale is weight is seed is generator is None and reduction in SCALARS:
        if row.domain == "classes":
            return _reconstruct_classes(output, target, row, reduction)
        if target.dtype is torch.float32:
            way, params = _way(output, target, row, getattr(likelihoods, row.name).most)
            return None if way is None else way(params, target, row, reduction)
    return _reconstruct_prepared(output, target, row, reduction, target_scale, weight, noise)


def _reconstruct_prepared(output, target, row, reduction, target_scale, weight, noise):
    """That of each sample or element, or of a target that is scaled, weighted or sampled."""
    if row.domain == "classes" or reduction not in (*SCALARS, *SEVERAL) or target.dtype not in REAL:
        return None
    way, params = _way(output, target, row, _most(getattr(likelihoods, row.name), reduction, target, weight))
    binarize, seed, _ = noise
    if way is None or (binarize is not False and not (weight is seed is None)):
        return None  # a seed has noise of its own; and nothing is drawn here that the long way may have to draw again
    weight, scale = targets.weight(weight, target), targets.scale(target_scale, target, row)
    weight = None if weight is None else eager_targets.own_size(weight, torch.float32)
    target, _, scale = targets.sample(*noise, target, scale, row, "eager")
    target = eager_targets.read(target, scale, torch.float32)
    loss = way(params, target, row, reduction, weight)
    if loss is None and binarize is not False:  # which is drawn by now
        return _by_function(params, target, row, reduction, weight)
    return loss


def _most(formulas, reduction, target, weight):
    """How many elements a thread to compute `_natively`."""
    if reduction in SCALARS or formulas.native is None:
        return formulas.most if weight is None or formulas.native_weighted is None else 4 * formulas.most
    is_summed = reduction == "sample" and target.dim() > 1
    return math.inf if is_summed or formulas.least is None else 0


def _way(output, target, row, most):
    """(who computes it: `_natively`, up to `most` elements a thread, `_by_function` or None, the parameters)."""
    params, threads = output if type(output) is tuple else (output,), torch.get_num_threads()
    if len(params) != len(row.parameters) or target.requires_grad:
        return None, params
    if most and _suits(params[0], target, most * threads):
        return _natively, params
    for param in params:
        if not takes(param, param, BLOCK * threads) or param.shape != target.shape:
            return None, params
    return _by_function if is_plain(target) else None, params


def _suits(output, target, most):
    """Whether PyTorch's own op takes them, for a target of the CPU without a gradient.

    Less is asked than by `takes`: that op knows tensors whose memory does not hold their values, and its backward pass
    batches of gradients.
    """
    shape = target.shape
    return (
        type(output) in PLAIN
        and output.dtype is torch.float32
        and output.is_cpu
        and output.layout is target.layout is torch.strided
        and not output.is_nested
        and output.shape == shape
        and len(shape) > 0
        and 0 < shape.numel() <= most
        and backend.is_eager_on_cpu()
        and not (listening() or hooked())
    )


def _natively(params, target, row, reduction, weight=None):
    formulas = getattr(likelihoods, row.name)
    if weight is None and reduction in SCALARS:
        total = formulas.native(*params, target, likelihoods.SUM, *row.constants)
        if formulas.least is not None and not _is_enough(total, formulas.least * target.numel()):
            return None
        return reductions.divide(total, reduction, target.shape)
    loss = _native(formulas, params, target, row.constants, reduction, weight)
    if loss.dim() and reduction != "none":
        loss = reductions.partial(loss, reduction)
    if not _is_good(formulas.least, loss, target, weight):
        return None
    return loss if reduction in SEVERAL else reductions.divide(loss, reduction, target.shape)


def _is_enough(total, least):
    """False where it is NaN."""
    return is_functorch_wrapped_tensor(total) or total.item() >= least


def _is_good(least, loss, target, weight):
    """Whether each sum is as large as it must be, and none is NaN, as what a weight leaves out may be."""
    if weight is None:
        return least is None or _is_enough(loss.detach().min(), least * target.numel() / loss.numel())
    total = (loss.detach().sum() if loss.dim() else loss).item()
    count = weight.sum().item() * (target.numel() / weight.numel()) if least else 0.0
    return math.isfinite(total) and (least is None or total >= least * count)


def _native(formulas, params, target, constants, reduction, weight):
    """The nll by PyTorch's own op: 0-d, or what `reduction` has yet to sum."""
    if weight is None:
        return formulas.native(*params, target, likelihoods.EACH, *constants)
    if formulas.native_weighted is not None:
        made = likelihoods.SUM if reduction in SCALARS else likelihoods.EACH
        return formulas.native_weighted(*params, target, weight, made)
    nll = formulas.native(*params, target, likelihoods.EACH, *constants)
    return (nll if reduction == "none" else nll.sum_to_size(weight.shape)) * weight


def _by_function(params, target, row, reduction, weight=None):
    differentiated = torch.is_grad_enabled() and any(p.requires_grad for p in params)
    params = row.with_constants(params)
    if differentiated:
        spec = reconstruction.Spec(1.0, row.name, reduction, "eager")
        return _Reconstruction.apply(spec, target, weight, None, *params)
    if forward_ad._current_level >= 0:
        return None
    return _loss(row.name, reduction, params, target, weight, False)[0]


def _loss(name, reduction, params, target, weight, differentiate):
    """(the loss, the derivatives without the weight: if asked for, and several losses and they share work)."""
    formulas, nowhere = getattr(likelihoods, name), (None,) * len(params)
    if reduction in SEVERAL:
        if differentiate and formulas.both is not None:
            nll, made = formulas.both(params, target, nowhere)
            nll = nll if weight is None else eager_targets.weighted(nll, weight, out=nll)
        else:
            nll, made = eager.nll_of_block(formulas, params, target, weight), ()
        return nll if reduction == "none" else reductions.partial(nll, reduction), made
    total, made = eager.total_of_block(formulas, params, target, weight, nowhere, differentiate)
    return reductions.finish([total], reduction, target.shape), made


def _reconstruct_classes(logits, target, row, reduction):
    """Of any size: it is computed in blocks, as on the long way."""
    if not takes(logits, logits, math.inf) or not (torch.is_grad_enabled() and logits.requires_grad):
        return None
    if not _is_of_cpu(target, classes.DTYPES) or not classes.fit(target, logits):
        return None
    spec = categorical.Spec.of(row, reduction, "eager")
    return categorical.Short.apply(spec, target, None, logits)


def elbo(output, target, kl, beta, row, *options):
    """(total, reconstruction, kl) by `reconstruct`; None for classes, whose gradient must not be scaled afterwards."""
    if is_compiling() or row.domain == "classes" or not _is_of_cpu(kl) or type(target) not in PLAIN or target.is_nested:
        return None
    if not (is_weight(beta) or _is_weight_tensor(beta)) or not _fits(kl, target):
        return None
    nll = reconstruct(output, target, row, "sum", *options)
    if nll is None:
        return None
    return _average(nll, kl, beta, number(1 / target.shape[0], torch.float32))


def _average(nll, kl, beta, share):
    """(total, reconstruction, kl) of the nll's sum, with as few nodes as can be between the total and its parts."""
    if kl.dim():
        kl = kl.sum()
        return _add(nll, kl, beta) * share, nll * share, kl * share
    nll = nll * share
    return _add(nll, kl, beta), nll, kl.clone()


def _add(nll, kl, beta):
    return torch.add(nll, kl, alpha=beta) if type(beta) is float else nll + kl * beta


def is_weight(beta):
    """Whether it is a float that is good as it is, which a kl may be multiplied by in float32."""
    return type(beta) is float and 0 <= beta <= checks.LARGEST


def _is_weight_tensor(beta):
    """Whether it is a 0-d tensor that is good as it is; values are not looked at."""
    return _is_of_cpu(beta) and not beta.dim() and not beta.requires_grad


def _fits(kl, target):
    """Whether there is one a sample, or their mean."""
    return not kl.dim() or kl.shape == target.shape[:1]


def takes(a, b, most):
    """Whether they are tensors [B, ...] of one shape and at most `most` elements, and nobody listens, nor has hooks."""
    return (
        _is_of_cpu(a)
        and (a is b or (_is_of_cpu(b) and a.shape == b.shape))
        and 0 < a.numel() <= most
        and a.dim() > 0
        and backend.is_eager_on_cpu()
        and not (overheard() or hooked())
    )


def _is_of_cpu(value, dtypes=(torch.float32,)):
    # is_cpu first: the sooner a GPU's tensor is refused here, the sooner the next way is tried.
    return type(value) in PLAIN and value.is_cpu and value.dtype in dtypes and is_plain(value)


class _Reconstruction(autograd.Short, reconstruction.Ordinary):
    """As `Ordinary`, in one block: nothing is allocated beforehand, and forward keeps derivatives that it meets."""

    @staticmethod
    def forward(ctx, spec, target, weight, seed, *params):
        factor = getattr(likelihoods, spec.likelihood).factor
        ctx.spec, ctx.kind, ctx.share = spec, None, factor / reductions.divisor(spec.reduction, target.shape)
        ctx.is_scaled_alone = weight is None and spec.reduction in SCALARS
        ctx.save_for_backward(target, weight, None, *params)
        loss, made = _loss(spec.likelihood, spec.reduction, params, target, weight, True)
        ctx.grads = list(itertools.compress(made, ctx.needs_input_grad[4:]))
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        grads = autograd.take(ctx, grad_loss)
        if grads is None:
            return reconstruction.Ordinary.backward(ctx, grad_loss)
        scale = grad_loss if ctx.share == 1 else grad_loss * number(ctx.share, torch.float32)
        if ctx.is_scaled_alone:
            eager.scale_(grads, scale)
        else:
            grads = _weighted(ctx, grads, scale)
        return None, None, None, None, *autograd.place(grads, ctx.needs_input_grad[4:])


def _weighted(ctx, grads, scale):
    """The derivatives, which for `SEVERAL` losses may have yet to be made, times the scale and the weight."""
    target, weight, _, *params = ctx.saved_tensors
    if ctx.spec.reduction in SEVERAL:
        if not grads:
            made = getattr(likelihoods, ctx.spec.likelihood).derivatives(params, target, (None,) * len(params))
            grads = itertools.compress(made, ctx.needs_input_grad[4:])
        scale = reductions.spread(scale, target, ctx.spec.reduction)
    elif is_at_hand(scale):
        scale = scale.item()  # so that weight and scale take one pass
    return [g.mul_(scale) if weight is None else eager_targets.weighted(g, weight, scale, out=g) for g in grads]
