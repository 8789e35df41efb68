"""Accurate elementary device functions in plain `tl`: no libdevice, so they run on every target and in the interpreter.

Each takes float32 or float64 and is good to 1e-6 relative in float32 (the error of `tl.exp`), 1e-15 in float64.
"""

import triton
import triton.language as tl

LOG_2 = tl.constexpr(8.26295829e-08)  # over 2^23: of an exponent in its place among the bits of a float32


@triton.jit
def expm1_minus_x(x, exp_x):
    """exp(x) - 1 - x, given exp_x = exp(x). The plain form has no correct digit left at x = 1e-3 in float32."""
    return tl.where(tl.abs(x) < 1.0, x * x * _expm1_minus_x_over_x2(x), exp_x - 1.0 - x)


@triton.jit
def expm1(x, exp_x):
    """exp(x) - 1, given exp_x = exp(x); shares its polynomial with `expm1_minus_x`."""
    return tl.where(tl.abs(x) < 1.0, x + x * x * _expm1_minus_x_over_x2(x), exp_x - 1.0)


@triton.jit
def exp(x):
    """exp(x), and 0 where that is not normal: `tl.exp` spends three instructions of five on those."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        return tl.exp2(x * 1.44269504088896340736)


@triton.jit
def exp_of_half(x):
    """exp(x / 2), as `exp`, in one multiplication."""
    if x.dtype == tl.float64:
        return tl.exp(0.5 * x)
    else:
        return tl.exp2(x * 0.72134752044448170368)


@triton.jit
def exp_minus(x):
    """exp(-x): Triton's own minus is a subtraction from 0, an instruction more."""
    if x.dtype == tl.float64:
        return tl.exp(-x)
    else:
        return tl.exp2(x * -1.44269504088896340736)


@triton.jit
def reciprocal(x):
    """1 / x for a normal x > 0 (error 3e-7): two instructions, where a division takes up to eight. Not exact at 2."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit
def one_minus_exp(x, exp_minus_x):
    """1 - exp(-x) for x >= 0, given exp(-x)."""
    near = x * one_minus_exp_over_x(x)  # before the comparison: in the other order some kernels spill on sm_80
    return tl.where(x < 0.5, near, 1.0 - exp_minus_x)


@triton.jit
def one_minus_exp_over_x(x):
    """(1 - exp(-x)) / x on [0, 1/2]; at 0 it is 1 but for rounding."""
    if x.dtype == tl.float64:
        return 1.0 - x * _expm1_minus_x_over_x2(-x)
    else:  # minimax (error 8e-8)
        p = 0.00677103549 * x - 0.0410012752
        p = p * x + 0.166548148
        p = p * x - 0.49999249
        return p * x + 0.99999994


@triton.jit
def log_of_normal(x):
    """log x for a positive x that is normal and finite: half the instructions of `tl.log` in float32.

    Of 0, of infinity and of NaN it makes some finite number.
    """
    if x.dtype == tl.float64:
        return tl.log(x)
    else:
        exponent, z = split_exponent(x)
        # log(1 + z) - z over z^2, minimax (error 2e-7 of log(1 + z))
        p = -0.152668878 * z + 0.169905499
        p = p * z - 0.164407969
        p = p * z + 0.198181704
        p = p * z - 0.250063241
        p = p * z + 0.333367348
        p = p * z - 0.499999613
        return exponent * LOG_2 + (z + z * z * p)


@triton.jit
def square_minus_1_minus_2_log(x, d, NORMAL: tl.constexpr):
    """x^2 - 1 - 2 log x for x >= 0, given d = x - 1 (see `log_near_1`); infinite at 0, and NaN below.

    NORMAL: x is normal, or infinite or NaN, and need not be looked at.
    """
    if x.dtype == tl.float64:
        return expm1_minus_x(2.0 * log_near_1(x, d), x * x)
    else:
        power = 0.0
        y = x
        if not NORMAL:
            is_small = x < 1.17549435e-38
            power = tl.where(is_small, 201326592.0, 0.0)  # 24 2^23
            y = tl.where(is_small, tl.abs(x) * 16777216.0, x)
        exponent, z = split_exponent(y)
        is_near = exponent == 0
        z = tl.where(is_near, d, z)
        # log(1 + z) - z over z^2, minimax (error 1.5e-7 of the result): a term more than in `log_of_normal`
        p = 0.138440892 * z - 0.15049462
        p = p * z + 0.140371948
        p = p * z - 0.164815739
        p = p * z + 0.200082675
        p = p * z - 0.250042051
        p = p * z + 0.333332568
        p = p * z - 0.499999851
        square = z * z
        rest = square * p
        far = x * x - 1.0 - 2.0 * ((exponent - power) * LOG_2 + (z + rest))
        excess = tl.where(is_near, square - 2.0 * rest, far)
        if not NORMAL:
            excess = tl.where(x > 0, excess, tl.where(x == 0, float("inf"), float("nan")))
        return excess


@triton.jit
def rough_log2(x):
    """(a, b) whose sum is log2 x for a positive normal x below 2^125; of other x they are some numbers.

    a is a multiple of 1/128: its product with a count is exact. The error of b is 4e-7, however near x is to 1, and
    this takes half the instructions of `log_of_normal`: the high bits of a float32 are its logarithm to 5 %, and x over
    the power of 2 with just that one is near 1.
    """
    if x.dtype == tl.float64:
        return tl.log2(x), 0.0 * x
    else:
        # As the low bits of 2^23 the high ones are a number, in units of 1/128.
        high = ((x.to(tl.uint32, bitcast=True) >> 16) + 0x4B000000).to(tl.float32, bitcast=True)
        a = 0.0078125 * high - 65662.953125
        z = x * tl.exp2(-1.0 * a) - 1.0
        # log2(1 + z) over z, minimax (error 7e-8)
        p = 0.480501405 * z - 0.72166351
        p = p * z + 1.44269527
        return a, z * p


@triton.jit
def split_exponent(x):
    """(k 2^23, z) where float32 x, positive and normal, is 2^k (1 + z), and z in [-1/3, 1/3)."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F2AAAAB) & -0x800000
    return exponent.to(tl.float32), (bits - exponent).to(tl.float32, bitcast=True) - 1.0


@triton.jit
def log1p(x):
    """log(1 + x) for x > -1: the rounding error of 1 + x is put back to first order (after Goldberg 1991)."""
    u = 1.0 + x
    return log_of_normal(u) + (x - (u - 1.0)) * reciprocal(u)


@triton.jit
def log1p_unit(x):
    """log(1 + x) for x in [0, 1], by a polynomial alone."""
    if x.dtype == tl.float64:
        return log1p(x)
    else:
        # over x, minimax (error 2e-7)
        p = -0.00853922125 * x + 0.0440896861
        p = p * x - 0.107681803
        p = p * x + 0.17745249
        p = p * x - 0.244954661
        p = p * x + 0.332754821
        p = p * x - 0.499974042
        p = p * x + 0.999999821
        return x * p


@triton.jit
def log_1_minus(x):
    """log(1 - x) for x in [0, 1/2], by a polynomial alone."""
    if x.dtype == tl.float64:
        return log1p(-x)
    else:
        # over -x, minimax (error 3e-7)
        p = 1.1849314 * x - 1.08153999
        p = p * x + 0.785430908
        p = p * x + 0.0380181074
        p = p * x + 0.272250533
        p = p * x + 0.331862628
        p = p * x + 0.500036538
        p = p * x + 0.999999881
        return -1.0 * x * p


@triton.jit
def log_near_1(x, d):
    """log x for x > 0, given d = x - 1, which has digits where x is near 1 that x has lost to rounding."""
    close = tl.abs(d) < 0.5
    u = 1.0 + d
    return tl.log(tl.where(close, u, x)) + tl.where(close, (d - (u - 1.0)) * reciprocal(u), 0.0)


@triton.jit
def tanh_of_half(y):
    """The hyperbolic tangent of y / 2."""
    size = tl.abs(y)
    e = exp_minus(size)
    return _with_sign(one_minus_exp(size, e) * reciprocal(1.0 + e), y)


@triton.jit
def _with_sign(size, x):
    """size >= 0 with the sign of x: in float32 one instruction."""
    if x.dtype == tl.float64:
        return tl.where(x < 0, -size, size)
    else:
        sign = x.to(tl.uint32, bitcast=True) & 0x80000000
        return (size.to(tl.uint32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def sech2_of_half(y):
    """1 - tanh(y / 2)^2, the derivative of tanh there, without that cancellation."""
    e = exp_minus(tl.abs(y))
    inverse = reciprocal(1.0 + e)
    return 4.0 * e * inverse * inverse


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
