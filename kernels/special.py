"""The gamma function's relatives in plain `tl`, and what else likelihoods need.

lgamma(y) = (y - 1/2) log y - y + log(2 pi) / 2 + R(y): all that grows with y is written out, and what remains, R, is
below 1/12 for y >= 1 and decreases (NIST DLMF 5.11.1; R is Binet's function). So a difference of two is taken term by
term. Each function takes float32 or float64, and errs by less than 1e-6 in float32 and 1e-13 in float64, absolute where
the result is below 1, else relative.
"""

import triton
import triton.language as tl

from vae_fast.kernels.elementary import LOG_2, log_of_normal, reciprocal, split_exponent


@triton.jit
def lgamma_1p(x):
    """lgamma(1 + x) for x >= 0: log of x factorial, and exactly 0 at x = 0."""
    y = 1.0 + x
    # R(1) = 1 - log(2 pi) / 2 meets the constants of Stirling's formula.
    remainder = stirling_remainder(reciprocal(y)) - 0.08106146679532725822
    return tl.where(x == 0, 0.0, (x + 0.5) * log_of_normal(y) - x + remainder)


@triton.jit
def log_and_rest(x, u):
    """(log x, log x - u) for an x as in `log_of_normal` that is 1 + u, with no cancellation; NaN where u is.

    x has the digits where it is near 0, and u where it is near 1. u may be no product: see `likelihoods`.
    """
    if x.dtype == tl.float64:
        far = tl.abs(u) > 0.4
        start = tl.where(far, tl.log(x), u)
        rest = log1p_minus_x(tl.where(far, 0.0, u))
    else:
        exponent, z = split_exponent(x)
        z = tl.where(tl.abs(u) > 0.333, z, u)  # whose exponent is 0 below
        start = exponent * LOG_2 + z
        rest = log1p_minus_x(z)
    return start + rest, (start - u) + rest


@triton.jit
def log1p_minus_x(x):
    """log(1 + x) - x for |x| <= 0.4."""
    if x.dtype == tl.float64:
        w = x / (2.0 + x)  # log(1 + x) = 2 atanh(w)
        q = w * w
        p = q * (1.0 / 29.0) + 1.0 / 27.0
        for k in tl.static_range(25, 1, -2):
            p = p * q + 1.0 / k
        return w * (2.0 * q * p - x)
    else:
        # over x^2, minimax (error 3e-7)
        p = -0.148008123 * x + 0.152075182
        p = p * x - 0.116832644
        p = p * x + 0.137579125
        p = p * x - 0.167221524
        p = p * x + 0.20024311
        p = p * x - 0.249986661
        p = p * x + 0.333330352
        p = p * x - 0.500000053
        return x * x * p


@triton.jit
def stirling_remainder(s):
    """R(1 / s) for s in (0, 1]."""
    if s.dtype == tl.float64:
        return _remainder_float64(1.0 / s)
    else:
        # over s, minimax (error 2e-7)
        p = 0.000739989736 * s - 0.00304467798
        p = p * s + 3.29214508e-05
        p = p * s + 0.0833333988
        return s * p


@triton.jit
def stirling_remainder_derivative(s):
    """R'(1 / s) for s in (0, 1]."""
    if s.dtype == tl.float64:
        return _remainder_derivative_float64(1.0 / s)
    else:
        # over s^2, minimax (error 7e-8)
        p = 0.000754449749 * s - 0.00461775996
        p = p * s + 0.0103814621
        p = p * s - 0.000434977002
        p = p * s - 0.0832989141
        return s * s * p


@triton.jit
def _remainder_float64(y):
    """R(y): Stirling's series from y = 10 up (error 2e-18), and below that at y + 10, with lgamma's recurrence."""
    low = tl.minimum(y, 10.0)
    z = tl.where(y < 10.0, y + 10.0, y)
    product = low
    for k in tl.static_range(1, 10):
        product = product * (low + k)
    shift = (low + 9.5) * tl.log(low + 10.0) - 10.0 - (low - 0.5) * tl.log(low) - tl.log(product)
    s = 1.0 / z
    q = s * s
    p = -3617.0 / 122400.0 * q + 1.0 / 156.0
    p = p * q - 691.0 / 360360.0
    p = p * q + 1.0 / 1188.0
    p = p * q - 1.0 / 1680.0
    p = p * q + 1.0 / 1260.0
    p = p * q - 1.0 / 360.0
    p = p * q + 1.0 / 12.0
    return p * s + tl.where(y < 10.0, shift, 0.0)


@triton.jit
def _remainder_derivative_float64(y):
    """R'(y), as `_remainder_float64`."""
    low = tl.minimum(y, 10.0)
    z = tl.where(y < 10.0, y + 10.0, y)
    shift = tl.log(low + 10.0) - tl.log(low) - 0.5 / (low + 10.0) + 0.5 / low
    for k in tl.static_range(0, 10):
        shift -= 1.0 / (low + k)
    q = 1.0 / (z * z)
    p = -3617.0 / 8160.0 * q + 1.0 / 12.0
    p = p * q - 691.0 / 32760.0
    p = p * q + 1.0 / 132.0
    p = p * q - 1.0 / 240.0
    p = p * q + 1.0 / 252.0
    p = p * q - 1.0 / 120.0
    p = p * q + 1.0 / 12.0
    return -p * q + tl.where(y < 10.0, shift, 0.0)


@triton.jit
def log_sinhc(square):
    """log(sinh(b/2) / (b/2)) / b^2, and its derivative in b over b, for b^2 in [0, 1]: Taylor, B_2n / (2n (2n)!)."""
    if square.dtype == tl.float64:
        tail = 4.770034475709914e-16 - 1.087434349279031e-17 * square
        tail = -2.1185501852016142e-14 + tail * square
        tail = 9.55895466477477e-13 + tail * square
        tail = -4.403491782239578e-11 + tail * square
        tail = 2.08767569878681e-09 + tail * square
        tail = -1.033399470899471e-07 + tail * square
        slope = 8.586062056277845e-15 - 2.174868698558062e-16 * square
        slope = -3.3896802963225827e-13 + slope * square
        slope = 1.338253653068468e-11 + slope * square
        slope = -5.284190138687493e-10 + slope * square
        slope = 2.08767569878681e-08 + slope * square
        slope = -8.267195767195768e-07 + slope * square
    else:
        tail = 2.08767569878681e-09 * square - 1.033399470899471e-07
        slope = 2.08767569878681e-08 * square - 8.267195767195768e-07
    tail = 5.5114638447971785e-06 + tail * square
    tail = -3.4722222222222224e-04 + tail * square
    tail = 4.1666666666666664e-02 + tail * square
    slope = 3.3068783068783064e-05 + slope * square
    slope = -1.388888888888889e-03 + slope * square
    slope = 8.333333333333333e-02 + slope * square
    return tail, slope
