"""Accurate elementary device functions in plain `tl`: no libdevice, so they run on every target and in the interpreter.

Each takes float32 or float64 and is good to 1e-6 relative in float32 (the error of `tl.exp`), 1e-15 in float64.
"""

import triton
import triton.language as tl


@triton.jit
def expm1_minus_x(x, exp_x):
    """exp(x) - 1 - x, given exp_x = exp(x). The plain form has no correct digit left at x = 1e-3 in float32."""
    return tl.where(tl.abs(x) < 1.0, x * x * _expm1_minus_x_over_x2(x), exp_x - 1.0 - x)


@triton.jit
def expm1(x, exp_x):
    """exp(x) - 1, given exp_x = exp(x); shares its polynomial with `expm1_minus_x`."""
    return tl.where(tl.abs(x) < 1.0, x + x * x * _expm1_minus_x_over_x2(x), exp_x - 1.0)


@triton.jit
def log1p(x):
    """log(1 + x) for x > -1: the rounding error of 1 + x is put back to first order (after Goldberg 1991)."""
    u = 1.0 + x
    return tl.log(u) + (x - (u - 1.0)) / u


@triton.jit
def log_ratio(a, b):
    """log(a / b) for a, b > 0. Where they are close their difference is exact, and no digit of it is lost."""
    d = (a - b) / b
    close = tl.abs(d) < 0.5
    u = 1.0 + d
    return tl.log(tl.where(close, u, a / b)) + tl.where(close, (d - (u - 1.0)) / u, 0.0)


@triton.jit
def tanh(x):
    """The hyperbolic tangent."""
    y = -2.0 * tl.abs(x)
    e = expm1(y, tl.exp(y))
    t = -e / (2.0 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def sech2(x):
    """1 - tanh(x)^2, the derivative of tanh, without that cancellation."""
    e = tl.exp(-2.0 * tl.abs(x))
    return 4.0 * e / ((1.0 + e) * (1.0 + e))


@triton.jit
def _expm1_minus_x_over_x2(x):
    """(exp(x) - 1 - x) / x^2 on [-1, 1]: minimax in float32 (error 9e-8 relative), Taylor in float64."""
    if x.dtype == tl.float64:
        p = x * 0.0 + 1.0
        for k in tl.static_range(20, 2, -1):  # 1/20! is below float64's rounding
            p = p * x * (1.0 / k) + 1.0
        return p * 0.5
    else:
        p = 2.4960823e-05 * x + 2.0325484e-04
        p = p * x + 1.3891335e-03
        p = p * x + 8.3309305e-03
        p = p * x + 4.1666516e-02
        p = p * x + 1.6666696e-01
        return p * x + 0.5
