"""The categorical likelihood in PyTorch: the entry points of `vae_fast.kernels.categorical`.

Of few classes, or other strides, its formulas too; the others begin with PyTorch's softmax.
"""

import torch

from vae_fast.eager import reductions
from vae_fast.eager.blocks import blocks
from vae_fast.eager.elementary import exp, is_at_hand

# Times the usual block: it is counted in logits, and most operations are on its elements. Not of halves: their copies
# in float32 would be new memory each time.
TIMES = 4
LEAST = 16  # classes: PyTorch's softmax computes fewer one by one
TINY = 1e-36  # float32 has all its digits down to 1.2e-38


def forward(logits, target, ignore_index, reduction, wanted, weight=None):
    """As `vae_fast.kernels.categorical.forward`."""
    dtype = reductions.accumulator(logits.dtype)
    loss = torch.empty_like(target, dtype=dtype) if reduction == "none" else None
    grad = torch.empty_like(logits) if wanted else None
    count, sums = reductions.divisor(reduction, target.shape), []
    for x, t, w, out, losses in _blocks(logits, target, weight, grad, loss):
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
    for x, t, w, out, g in _blocks(logits, target, weight, grad, upstream):
        _nll(x.to(dtype), t, w, ignore_index, out, g.to(dtype).unsqueeze(-1))
    return grad


def _blocks(logits, *others):
    return blocks((logits, *others), TIMES if logits.dtype == reductions.accumulator(logits.dtype) else 1)


def _nll(x, target, weight, ignore_index, out, scale):
    """The nll of each element; writes its gradient times `scale`, a number or [B, ..., 1], to `out` if there is one."""
    given = target.unsqueeze(-1).long()
    index, invalid = _within(given, x.shape[-1])
    left_out = None if ignore_index is None else given == ignore_index
    if weight is not None:
        weight = weight.unsqueeze(-1)
        left_out = weight == 0 if left_out is None else left_out | (weight == 0)
        weight = weight.to(x.dtype)
        scale = weight * scale
    room = out if out is not None and out.dtype == x.dtype else None
    way = _by_softmax if x.is_cpu and x.numel() and x.stride(-1) == 1 and x.shape[-1] >= LEAST else _by_exponentials
    nll, slopes, factor = way(x, index, left_out, room)
    nll = nll if weight is None else nll.mul_(weight)
    factor = factor.mul(scale)
    for mask, value in ((invalid, torch.nan), (left_out, 0)):
        if mask is not None:
            nll.masked_fill_(mask, value)
            factor.masked_fill_(mask, value)
    if out is not None:
        torch.mul(slopes, factor, out=out)
    return nll.squeeze(-1)


def _by_softmax(x, index, left_out, room):
    """As `_by_exponentials`, by PyTorch's softmax, which keeps a row in the core's cache.

    A target's probability near 1 lacks the digits of what the others have: their sum `rest` has them. All are off by
    one factor, as softmax adds up a long row one by one: it is divided out. A probability next to 0 has no digits.
    """
    p = torch.softmax(x, -1, out=room)
    of_target = p.gather(-1, index)
    lost = _lost(of_target, left_out)
    rest = _sum_of_others(p, index, of_target)
    factor = (of_target + rest).reciprocal_()
    nll = torch.div(rest, of_target, out=of_target).log1p_()
    p.scatter_(-1, index, rest.neg_())
    if lost is not None:
        left_out = None if left_out is None else left_out[lost]
        nll[lost], p[lost], factor[lost] = _by_exponentials(x[lost], index[lost], left_out, None)
    return nll, p, factor


def _by_exponentials(x, index, left_out, room):
    """(nll, what is its derivatives but for a factor, that factor), for any logits.

    `rest` is the sum of the exponentials of all classes but the target's: see the kernel.
    """
    top = x.amax(-1, keepdim=True)
    if left_out is not None and not _are_finite(top, left_out):
        x = x.masked_fill(left_out, 0)  # so that nothing of them is NaN
        top = x.amax(-1, keepdim=True)
    below = x.gather(-1, index) - top
    e = torch.sub(x, top, out=room)
    e = exp(e, out=e)
    rest = _sum_of_others(e, index, below)
    excess = torch.expm1(below).add_(rest)  # of the sum of all exponentials, over 1
    nll = torch.log1p(excess).sub_(below)
    return nll, e.scatter_(-1, index, rest.neg_()), excess.add_(1).reciprocal_()


def _lost(of_target, left_out):
    """Of which elements that count the target's probability has no digits, or is NaN; None for none."""
    if left_out is not None:
        of_target = of_target.masked_fill(left_out & (of_target <= TINY), 1)
    return None if of_target.min().item() > TINY else (of_target > TINY).logical_not_().squeeze(-1)


def _sum_of_others(values, index, like):
    """That of all but the value at `index`, which becomes 0: as a number, it would take three times as long."""
    return values.scatter_(-1, index, torch.zeros_like(like)).sum(-1, keepdim=True)


def _are_finite(top, left_out):
    """Whether those left out are, where a look costs a fraction of a copy of the logits; classes may be -inf."""
    return is_at_hand(top) and bool(top.isfinite().logical_or_(left_out.logical_not()).all())


def _within(given, classes):
    """(indices that are classes, a mask of those that were none; None if all were classes)."""
    if is_at_hand(given) and given.numel():
        low, high = given.aminmax()
        if low.item() >= 0 and high.item() < classes:
            return given, None
    index = given.clamp(0, classes - 1)
    return index, index != given
