"""How the two tensors of a Gaussian give its mean and standard deviation, and the derivatives of that.

Two families: where the tensor gives a logarithm (logvar, logstd, soft_clamp), what follows is a function of the
log-variance; where it gives the standard deviation itself (std, softplus, anything plus an epsilon: DIRECT), of that.
Neither then takes the logarithm of an exponential, or divides by a standard deviation of 0.
"""

import triton
import triton.language as tl

from vae_fast.kernels.elementary import (
    exp,
    exp_minus,
    exp_of_half,
    log1p_unit,
    log_of_normal,
    reciprocal,
    sech2_of_half,
    tanh_of_half,
)

# With a greater EPSILON every deviation is a normal number, and the short functions of `elementary` take it.
HARDLY_NORMAL: tl.constexpr = tl.constexpr(1e-37)


@triton.jit
def mean(mu, SCALE: tl.constexpr, BOUND: tl.constexpr):
    """The mean that the first tensor gives."""
    if SCALE == "soft_clamp":
        return BOUND * tanh_of_half(mu * (2.0 / BOUND))
    else:
        return mu


@triton.jit
def mean_gradient(gradient, mu, SCALE: tl.constexpr, BOUND: tl.constexpr):
    """The gradient in the first tensor, of one in the mean."""
    if SCALE == "soft_clamp":
        return gradient * sech2_of_half(mu * (2.0 / BOUND))
    else:
        return gradient


@triton.jit
def deviation(x, SCALE: tl.constexpr, BOUND: tl.constexpr, EPSILON: tl.constexpr):
    """(log-variance, standard deviation) that the second tensor gives."""
    if SCALE == "logvar":
        return x, exp_of_half(x)
    elif SCALE == "logstd":
        return 2.0 * x, exp(x)
    elif SCALE == "std":
        return 2.0 * tl.log(x), x
    elif SCALE == "softplus":
        std = tl.maximum(x, 0.0) + log1p_unit(_exp_minus(tl.abs(x), EPSILON)) + EPSILON
        return 2.0 * _log(std, EPSILON), std
    else:
        logvar = 2.0 * BOUND * tanh_of_half(x * (2.0 / BOUND))
        std = exp_of_half(logvar)
        if EPSILON > 0:
            std = std + EPSILON
            logvar = 2.0 * _log(std, EPSILON)
        return logvar, std


@triton.jit
def _exp_minus(x, EPSILON: tl.constexpr):
    """exp(-x), which is no longer 0 where it is not normal if it is all of a standard deviation."""
    if EPSILON > HARDLY_NORMAL:
        return exp_minus(x)
    else:
        return tl.exp(-1.0 * x)


@triton.jit
def _log(std, EPSILON: tl.constexpr):
    """log std, of one that is EPSILON or more: the short logarithm takes no numbers that are not normal."""
    if EPSILON > HARDLY_NORMAL:
        return log_of_normal(std)
    else:
        return tl.log(std)


@triton.jit
def deviation_gradient(gradient, x, SCALE: tl.constexpr, BOUND: tl.constexpr, EPSILON: tl.constexpr):
    """The gradient in the second tensor, of one in the log-variance, or in the standard deviation where DIRECT."""
    if SCALE == "logstd":
        return 2.0 * gradient
    elif SCALE == "softplus":
        e = _exp_minus(tl.abs(x), EPSILON)
        return gradient * (tl.where(x >= 0, 1.0, e) * reciprocal(1.0 + e))
    elif SCALE == "soft_clamp":
        gradient = gradient * sech2_of_half(x * (2.0 / BOUND))
        if EPSILON > 0:
            return gradient * exp_of_half(2.0 * BOUND * tanh_of_half(x * (2.0 / BOUND)))
        else:
            return 2.0 * gradient
    else:
        return gradient


@triton.jit
def clamped(logvar, LOW: tl.constexpr, HIGH: tl.constexpr):
    """logvar within [LOW, HIGH]; NaN stays NaN."""
    if LOW is not None:
        low = tl.full((1, 1), LOW, logvar.dtype)  # a bare constant would be rounded to float32 first
        high = tl.full((1, 1), HIGH, logvar.dtype)
        if logvar.dtype == tl.float64:  # NVIDIA's minimum that keeps NaN is of float32 alone
            logvar = tl.where(logvar < low, low, tl.where(logvar > high, high, logvar))
        else:
            logvar = tl.clamp(logvar, low, high, propagate_nan=tl.PropagateNan.ALL)
    return logvar


@triton.jit
def clamped_gradient(gradient, logvar, LOW: tl.constexpr, HIGH: tl.constexpr):
    """The gradient through `clamped`: 1 at the bounds, 0 outside; NaN stays NaN."""
    if LOW is not None:
        low = tl.full((1, 1), LOW, logvar.dtype)
        high = tl.full((1, 1), HIGH, logvar.dtype)
        gradient = tl.where((logvar < low) | (logvar > high), 0.0, gradient)
    return gradient
