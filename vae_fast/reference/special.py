"""The gamma function's relatives in NumPy, without cancellation, and what else likelihoods need.

lgamma(y) = (y - 1/2) log y - y + log(2 pi) / 2 + R(y) for y > 0 (NIST DLMF 5.11.1). R has Stirling's series from y = 10
up (error 2e-18); below, it is taken at y + 10 and brought back by lgamma(y + 1) = lgamma(y) + log y.
"""

import numpy as np

HALF_LOG_2PI = np.log(2.0 * np.pi) / 2

# Of R, in 1 / y, 1 / y^3, ... (NIST DLMF 5.11.1); -R' has the same times 1, 3, 5, ... in 1 / y^2, 1 / y^4, ...
SERIES = np.array([1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400])
SHIFT = 10

# B_2n / (2n (2n)!), n = 1, 2, ...: the Taylor coefficients of log(sinh(b/2) / (b/2)) in b^2 (DLMF 4.19).
LOG_SINHC = (
    1 / 24, -1 / 2880, 1 / 181440, -1 / 9676800, 1 / 479001600, -4.403491782239578e-11, 9.55895466477477e-13,
    -2.1185501852016142e-14, 4.770034475709914e-16, -1.087434349279031e-17,
)  # fmt: skip


@np.errstate(divide="ignore", invalid="ignore")
def lgamma_1p(x):
    """lgamma(1 + x) for x >= 0: log of x factorial, and exactly 0 at x = 0."""
    y = 1.0 + x
    return np.where(x == 0, 0.0, (y - 0.5) * np.log(y) - y + HALF_LOG_2PI + stirling_remainder(y))


@np.errstate(divide="ignore", invalid="ignore")
def log1p_minus_x(x, log1p_x):
    """log(1 + x) - x for x > -1, given log(1 + x), of which it makes no use below |x| = 0.4."""
    w = x / (2.0 + x)  # log(1 + x) = 2 atanh(w)
    odd = np.polynomial.polynomial.polyval(w * w, 1.0 / np.arange(3, 31, 2))
    return np.where(np.abs(x) < 0.4, w * (2.0 * w * w * odd - x), log1p_x - x)


@np.errstate(divide="ignore", invalid="ignore")
def stirling_remainder(y):
    """R(y) for y > 0."""
    z, low, steps = _shifted(y)
    series = np.polynomial.polynomial.polyval(1.0 / (z * z), SERIES) / z
    end = low + SHIFT
    shift = (end - 0.5) * np.log(end) - SHIFT - (low - 0.5) * np.log(low) - np.log(steps).sum(0)
    return series + np.where(y < SHIFT, shift, 0.0)


@np.errstate(divide="ignore", invalid="ignore")
def stirling_remainder_derivative(y):
    """R'(y) for y > 0."""
    z, low, steps = _shifted(y)
    q = 1.0 / (z * z)
    series = -q * np.polynomial.polynomial.polyval(q, SERIES * np.arange(1, 2 * len(SERIES), 2))
    end = low + SHIFT
    shift = np.log(end) - np.log(low) - 0.5 / end + 0.5 / low - (1.0 / steps).sum(0)
    return series + np.where(y < SHIFT, shift, 0.0)


def log_sinhc(square):
    """log(sinh(b/2) / (b/2)) / b^2, and its derivative in b over b, for b^2 in [0, 1]."""
    polyval = np.polynomial.polynomial.polyval
    return polyval(square, LOG_SINHC), polyval(square, [2 * n * c for n, c in enumerate(LOG_SINHC, start=1)])


def _shifted(y):
    """y + 10 where y is below 10, else y; the smaller of y and 10; and y, y + 1, ... y + 9 of that."""
    low = np.minimum(y, SHIFT)
    return np.where(y < SHIFT, low + SHIFT, y), low, np.stack([low + k for k in range(SHIFT)])
