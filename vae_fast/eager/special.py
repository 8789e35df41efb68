"""The gamma function's relatives without cancellation: as `vae_fast.kernels.special`, on PyTorch's lgamma and digamma.

lgamma(y) = (y - 1/2) log y - y + log(2 pi) / 2 + R(y) (NIST DLMF 5.11.1).
"""

import math

import torch

HALF_LOG_2PI = math.log(2 * math.pi) / 2
REMAINDER_1 = 1 - HALF_LOG_2PI  # R(1)

# Of Stirling's series of R, in 1 / y, 1 / y^3, ...; and of -R', in 1 / y^2, 1 / y^4, ...
SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)
DERIVATIVE_SERIES = tuple((2 * k + 1) * c for k, c in enumerate(SERIES))
# From where up, and with how many terms: an error below 1e-8 in single precision, 2e-18 in double.
SERIES_FROM = {torch.float32: (4.0, 4), torch.float64: (10.0, 8)}


def lgamma(x):
    """log of the gamma function, x > 0: PyTorch's own is good enough."""
    return torch.lgamma(x)


def digamma(x):
    """Derivative of `lgamma`, x > 0."""
    return torch.digamma(x)


def lgamma_difference(x, theta):
    """lgamma(x + theta) - lgamma(theta) for x >= 0, theta > 0, and exactly 0 at x = 0."""
    y = x + theta
    log_y = y.log()
    growing = (theta - 0.5) * torch.log1p(x / theta) + x * (log_y - 1)
    return growing.add_(stirling_remainder(y, log_y)).sub_(stirling_remainder(theta, theta.log()))


def digamma_difference(x, theta):
    """digamma(x + theta) - digamma(theta) for x >= 0, theta > 0: derivative of `lgamma_difference` in theta.

    Below theta = 1 it is taken at 1 + theta: digamma(theta) = digamma(1 + theta) - 1 / theta, which would cancel.
    """
    small = theta < 1
    t = torch.where(small, theta + 1, theta)
    y, over_t = x + t, x / t
    growing = torch.log1p(over_t).add_(over_t / y, alpha=0.5)
    growing.add_((x / theta).div_(x + theta).masked_fill_(~small, 0))
    return growing.add_(stirling_remainder_derivative(y, y.log()) - stirling_remainder_derivative(t, t.log()))


def log1p_minus_x(x, log1p_x):
    """log(1 + x) - x for x > -1, given log(1 + x), of which it makes no use below |x| = 0.4."""
    w = x / (x + 2)  # log(1 + x) = 2 atanh(w)
    q = w * w
    p = _horner(q, [1 / k for k in range(3, 31 if x.dtype == torch.float64 else 11, 2)])
    return torch.where(x.abs() < 0.4, p.mul_(q).mul_(2).sub_(x).mul_(w), log1p_x - x)


def stirling_remainder(y, log_y):
    """R(y) for y > 0, given log y."""
    start, terms = SERIES_FROM[y.dtype]
    s = 1 / y
    series = _horner(s * s, SERIES[:terms]).mul_(s)
    rest = torch.lgamma(y).sub_((y - 0.5).mul_(log_y)).add_(y).sub_(HALF_LOG_2PI)
    return torch.where(y < start, rest, series)


def stirling_remainder_derivative(y, log_y):
    """R'(y) for y > 0, given log y."""
    start, terms = SERIES_FROM[y.dtype]
    s = 1 / y
    q = s * s
    series = _horner(q, DERIVATIVE_SERIES[:terms]).mul_(q).neg_()
    return torch.where(y < start, torch.digamma(y).sub_(log_y).add_(s, alpha=0.5), series)


def _horner(x, coefficients):
    """The polynomial with these coefficients, the constant first, in a new tensor."""
    p = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        p.mul_(x).add_(c)
    return p
