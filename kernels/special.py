"""The gamma function's relatives in plain `tl`, and what the likelihoods of counts need of them.

lgamma(y) = (y - 1/2) log y - y + log(2 pi) / 2 + R(y): all that grows with y is written out, and what remains, R, is
below 1/12 for y >= 1 and decreases. So differences are taken term by term, and only those of R and of logarithms are
left to cancel (NIST DLMF 5.11.1; R is Binet's function). Each function takes float32 or float64 and is good to about
4e-7 in float32 and 1e-13 in float64, absolute where the result is below 1, else relative.
"""

import triton
import triton.language as tl

from vae_fast.kernels.elementary import log1p


@triton.jit
def lgamma(x):
    """log of the gamma function, x > 0."""
    log_x = tl.log(x)
    return (x - 0.5) * log_x - x + 0.91893853320467274178 + stirling_remainder(x, log_x)


@triton.jit
def digamma(x):
    """Derivative of `lgamma`, x > 0."""
    log_x = tl.log(x)
    return log_x - 0.5 / x + stirling_remainder_derivative(x, log_x)


@triton.jit
def lgamma_1p(x):
    """lgamma(1 + x) for x >= 0: log of x factorial, and exactly 0 at x = 0."""
    log_y = tl.log(1.0 + x)
    # stirling_remainder(1) = 1 - log(2 pi) / 2 meets the constants of Stirling's formula.
    return tl.where(x == 0, 0.0, (x + 0.5) * log_y - x + (stirling_remainder_from_1(1.0 + x) - 0.08106146679532725822))


@triton.jit
def lgamma_difference(x, theta):
    """lgamma(x + theta) - lgamma(theta) for x >= 0, theta > 0, and exactly 0 at x = 0.

    The plain difference has an error of 6e-8 lgamma(theta) in float32: 100 at theta = 1e8.
    """
    y = x + theta
    log_y = tl.log(y)
    remainder = stirling_remainder(y, log_y) - stirling_remainder(theta, tl.log(theta))
    return tl.where(x == 0, 0.0, (theta - 0.5) * log1p(x / theta) + (x * (log_y - 1.0) + remainder))


@triton.jit
def digamma_difference(x, theta):
    """digamma(x + theta) - digamma(theta) for x >= 0, theta > 0: derivative of `lgamma_difference` in theta."""
    y = x + theta
    over_theta = x / theta
    remainder = stirling_remainder_derivative(y, tl.log(y)) - stirling_remainder_derivative(theta, tl.log(theta))
    return tl.where(x == 0, 0.0, log1p(over_theta) + (0.5 * over_theta / y + remainder))


@triton.jit
def log1p_minus_x(x, log1p_x):
    """log(1 + x) - x for x > -1, given log(1 + x), of which it makes no use below |x| = 0.4."""
    w = x / (2.0 + x)  # log(1 + x) = 2 atanh(w), and |w| <= 1/4 where the series is taken
    q = w * w
    if x.dtype == tl.float64:
        p = q * (1.0 / 29.0) + 1.0 / 27.0
        for k in tl.static_range(25, 1, -2):
            p = p * q + 1.0 / k
    else:
        p = q * (1.0 / 9.0) + 1.0 / 7.0
        p = p * q + 1.0 / 5.0
        p = p * q + 1.0 / 3.0
    return tl.where(tl.abs(x) < 0.4, w * (2.0 * q * p - x), log1p_x - x)


@triton.jit
def stirling_remainder(y, log_y):
    """R(y) for y > 0, given log y."""
    if y.dtype == tl.float64:
        return _remainder_float64(y, log_y)
    else:
        low = tl.minimum(y, 1.0)
        # lgamma(1 + low) / low, minimax on [0, 1] (error 3e-8)
        p = -0.00542492597 * low + 0.0303893832
        p = p * low - 0.0802133365
        p = p * low + 0.140257963
        p = p * low - 0.198805353
        p = p * low + 0.269104552
        p = p * low - 0.400555209
        p = p * low + 0.822462541
        p = p * low - 0.577215639
        below_1 = (p + 1.0) * low - ((low + 0.5) * log_y + 0.918938533)
        return tl.where(y < 1.0, below_1, stirling_remainder_from_1(y))


@triton.jit
def stirling_remainder_derivative(y, log_y):
    """R'(y) for y > 0, given log y."""
    if y.dtype == tl.float64:
        return _remainder_derivative_float64(y, log_y)
    else:
        s = 1.0 / y
        # -R'(y) / s^2, minimax on s in [0, 1] (error 4e-8)
        q = 0.000862753575 * s - 0.00350641648
        q = q * s + 0.00493800972
        q = q * s - 6.37655742e-05
        q = q * s - 0.00835050146
        q = q * s + 2.32669485e-06
        q = q * s + 0.0833332959
        low = tl.minimum(y, 1.0)
        # digamma(1 + low), minimax on [0, 1] (error 2e-7)
        p = -0.0361618047 * low + 0.196124177
        p = p * low - 0.491079487
        p = p * low + 0.786998402
        p = p * low - 0.970815348
        p = p * low + 1.07111023
        p = p * low - 1.20107718
        p = p * low + 1.64490063
        p = p * low - 0.577215476
        return tl.where(y < 1.0, p - 0.5 * s - log_y, -s * s * q)


@triton.jit
def stirling_remainder_from_1(y):
    """R(y) for y >= 1."""
    if y.dtype == tl.float64:
        return _remainder_float64(y, tl.log(y))
    else:
        s = 1.0 / y
        # R(y) / s, minimax on s in [0, 1] (error 2e-8 of R)
        p = -0.000175065523 * s + 0.000462588573
        p = p * s + 0.000308860807
        p = p * s - 0.00288166739
        p = p * s + 1.38870849e-05
        p = p * s + 0.0833328397
        return s * p


@triton.jit
def _remainder_float64(y, log_y):
    """R(y): Stirling's series from y = 10 up (error 2e-18), and below that at y + 10, with lgamma's recurrence."""
    low = tl.minimum(y, 10.0)
    z = tl.where(y < 10.0, y + 10.0, y)
    product = low
    for k in tl.static_range(1, 10):
        product = product * (low + k)
    shift = (low + 9.5) * tl.log(low + 10.0) - 10.0 - (low - 0.5) * tl.where(y < 10.0, log_y, 0.0) - tl.log(product)
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
def _remainder_derivative_float64(y, log_y):
    """R'(y), as `_remainder_float64`."""
    low = tl.minimum(y, 10.0)
    z = tl.where(y < 10.0, y + 10.0, y)
    shift = tl.log(low + 10.0) - tl.where(y < 10.0, log_y, 0.0) - 0.5 / (low + 10.0) + 0.5 / low
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
