"""Accurate elementary functions that PyTorch lacks."""

import torch


def expm1_minus_x(x):
    """exp(x) - 1 - x without cancellation near 0, in a new tensor of x's dtype.

    Half and single precision take the difference in float64, in three passes; float64 sums a Taylor series below |x| =
    1.
    """
    if x.dtype != torch.float64:
        wide = x.double()
        return torch.expm1(wide).sub_(wide).to(x.dtype)
    series = torch.ones_like(x)
    for k in range(20, 2, -1):  # 1/20! is below float64's rounding
        series.mul_(x).div_(k).add_(1)
    return torch.where(x.abs() < 1, series.mul_(x).mul_(x).div_(2), torch.expm1(x).sub_(x))
