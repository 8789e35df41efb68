"""Accurate elementary functions that PyTorch lacks."""

import math

import torch
from torch.utils._python_dispatch import _disable_current_modes

LOG2_E = math.log2(math.e)  # torch.exp2 takes a third of torch.exp's time on some CPUs
FACTORS = 32  # numbers in [1/2, 2] with one logarithm: their product is far from underflow and overflow


def _constant(value):
    """As a tensor, because PyTorch takes two microseconds to wrap a number, and one to convert a tensor's dtype."""
    with _disable_current_modes():  # a first import may lie in a FakeTensorMode, whose tensors are of no use outside
        return {dtype: torch.tensor(value, dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64)}


_LOG2_E, _MINUS_LOG2_E, _HALF_LOG2_E = _constant(LOG2_E), _constant(-LOG2_E), _constant(LOG2_E / 2)
ONE, HALF, MINUS_ONE = _constant(1.0), _constant(0.5), _constant(-1.0)


def exp(x, out=None):
    """exp(x), off by 6e-8 of the exponent in float32, in `out` or a new tensor."""
    return torch.mul(x, _LOG2_E[x.dtype], out=out).exp2_()


def exp_minus(x, out=None):
    """exp(-x), as `exp`."""
    return torch.mul(x, _MINUS_LOG2_E[x.dtype], out=out).exp2_()


def exp_of_half(x, out=None):
    """exp(x / 2), as `exp`."""
    return torch.mul(x, _HALF_LOG2_E[x.dtype], out=out).exp2_()


def expm1_minus_x(x, expm1=None):
    """(exp(x) - 1, exp(x) - 1 - x without cancellation near 0) in new tensors, or the first in `expm1`.

    Single precision takes the differences in float64; float64 sums a Taylor series below |x| = 1.
    """
    if x.dtype != torch.float64:
        wide = x.double()
        difference = torch.mul(wide, _LOG2_E[torch.float64]).exp2_().sub_(ONE[torch.float64])
        expm1 = difference.to(x.dtype) if expm1 is None else expm1.copy_(difference)
        return expm1, difference.sub_(wide).to(x.dtype)
    expm1 = torch.expm1(x, out=expm1)
    series = torch.ones_like(x)
    for k in range(20, 2, -1):  # 1/20! is below float64's rounding
        series.mul_(x).div_(k).add_(1)
    return expm1, torch.where(x.abs() < 1, series.mul_(x).mul_(x).div_(2), expm1 - x)


def log_ratio(a, b):
    """log(a / b) for a, b > 0; where they are close their difference is exact, and no digit of it is lost."""
    difference = (a - b) / b
    return torch.where(difference.abs() < 0.5, torch.log1p(difference), torch.log(a / b))


def select(mask, a, b):
    """torch.where of two tensors of one dtype, float32 or float64, whose shapes together are as large as the mask's.

    On a CPU the branches of torch.where on a random mask cost six times this.
    """
    if not a.is_cpu:
        return torch.where(mask, a, b)
    integer = torch.int64 if a.dtype == torch.float64 else torch.int32
    bits, b = mask.to(integer).neg_(), b.view(integer)
    return a.view(integer).bitwise_xor(b).bitwise_and_(bits).bitwise_xor_(b).view(a.dtype)


def sum_of_logs(values):
    """The sum of the logarithms of a dense tensor of numbers in [1/2, 2]."""
    count = values.numel() // FACTORS
    total = values.as_strided((FACTORS, count), (count, 1)).prod(0).log_().sum()
    rest = values.numel() - FACTORS * count
    if rest:
        start = values.storage_offset() + FACTORS * count
        total.add_(values.as_strided((rest,), (1,), start).log().sum())
    return total
