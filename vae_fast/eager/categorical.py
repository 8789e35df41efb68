"""The categorical likelihood in PyTorch: the same entry points and formulas as `vae_fast.kernels.categorical`."""

import torch

from vae_fast.eager import reductions
from vae_fast.eager.blocks import blocks
from vae_fast.eager.elementary import exp

TIMES = 4  # times the usual block: it is counted in logits, and most operations are on its elements


def forward(logits, target, ignore_index, reduction, wanted, weight=None):
    """As `vae_fast.kernels.categorical.forward`."""
    dtype = reductions.accumulator(logits.dtype)
    loss = torch.empty_like(target, dtype=dtype) if reduction == "none" else None
    grad = torch.empty_like(logits) if wanted else None
    count, sums = reductions.divisor(reduction, target.shape), []
    for x, t, w, out, losses in blocks((logits, target, weight, grad, loss), TIMES):
        nll = _nll(x.to(dtype), t, w, ignore_index, out, 1 / max(count, 1))
        if losses is None:
            sums.append(reductions.partial(nll, reduction))
        else:
            losses.copy_(nll)
    return (reductions.finish(sums, reduction, target.shape) if loss is None else loss), grad


def backward(grad_loss, logits, target, ignore_index, reduction, weight=None):
    """As `vae_fast.kernels.categorical.backward`."""
    grad = torch.empty_like(logits)
    upstream = reductions.spread(grad_loss, target, reduction)
    dtype = reductions.accumulator(logits.dtype)
    for x, t, w, out, g in blocks((logits, target, weight, grad, upstream), TIMES):
        _nll(x.to(dtype), t, w, ignore_index, out, g.to(dtype).unsqueeze(-1))
    return grad


def _nll(x, target, weight, ignore_index, out, scale):
    """The nll of each element; writes its gradient times `scale`, a number or [B, ..., 1], to `out` if there is one.

    `rest` is the sum of the exponentials of all classes but the target's: see the kernel.
    """
    given = target.unsqueeze(-1).long()
    index, invalid = _within(given, x.shape[-1])
    left_out = None if ignore_index is None else given == ignore_index
    if weight is not None:
        weight = weight.unsqueeze(-1)
        left_out = weight == 0 if left_out is None else left_out | (weight == 0)
        weight = weight.to(x.dtype)
        scale = weight * scale
    top = x.amax(-1, keepdim=True)
    if left_out is not None and not _are_finite(top, left_out):
        x = x.masked_fill(left_out, 0)  # so that nothing of them is NaN
        top = x.amax(-1, keepdim=True)
    below = x.gather(-1, index) - top
    e = torch.sub(x, top, out=out if out is not None and out.dtype == x.dtype else None)
    e = exp(e, out=e)
    rest = e.scatter_(-1, index, torch.zeros_like(below)).sum(-1, keepdim=True)  # a number takes three times as long
    excess = torch.expm1(below).add_(rest)  # of the sum of all exponentials, over 1
    nll = torch.log1p(excess).sub_(below)
    nll = nll if weight is None else nll.mul_(weight)
    factor = None if out is None else excess.add_(1).reciprocal_().mul(scale)
    for mask, value in ((invalid, torch.nan), (left_out, 0)):
        if mask is not None:
            nll.masked_fill_(mask, value)
            factor = None if factor is None else factor.masked_fill_(mask, value)
    if factor is not None:
        torch.mul(e.scatter_(-1, index, rest.neg_()), factor, out=out)
    return nll.squeeze(-1)


def _are_finite(top, left_out):
    """Whether those left out are, where a look costs a fraction of a copy of the logits; classes may be -inf."""
    return top.is_cpu and bool(top.isfinite().logical_or_(left_out.logical_not()).all())


def _within(given, classes):
    """(indices that are classes, a mask of those that were none; None if all were classes)."""
    if given.is_cpu and given.numel():
        low, high = given.aminmax()
        if low.item() >= 0 and high.item() < classes:
            return given, None
    index = given.clamp(0, classes - 1)
    return index, index != given
