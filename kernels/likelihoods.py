"""The likelihoods: maths on loaded values, nothing else.

Each takes its parameters as a tuple and the target, and returns (base, excess, derivatives): the nll in nats of each
element is base + log1p(excess[0]), excess being a tuple of one in [0, 1], or () where there is no logarithm;
derivatives is a tuple, one a parameter. The logarithm is left to the caller because a sum needs fewer of them: log1p(a)
+ log1p(b) = log1p(a + b + ab).
"""

from typing import NamedTuple

import triton
import triton.language as tl

from vae_fast.kernels import elementary, special


class Issued(NamedTuple):
    """Instructions per element on sm_90 (make audit) of the kernel that reduces it, without `tiling.ISSUED`."""

    sum: float  # the nll summed
    gradient: float
    both: float
    each: float  # the nll of each element


ISSUED = {
    "bernoulli": Issued(sum=28, gradient=20, both=37, each=44),
    "mse": Issued(sum=8, gradient=8, both=12, each=7),
    "gaussian": Issued(sum=18, gradient=18, both=25, each=16),
}


@triton.jit
def bernoulli(params, target):
    """Bernoulli nll of `target` given logits, stable for any finite logit (Kingma & Welling 2014, appendix C.1)."""
    logit = params[0]
    e = tl.exp(-tl.abs(logit))
    sigmoid = tl.where(logit >= 0, 1.0, e) / (1.0 + e)
    return tl.maximum(logit, 0.0) - logit * target, (e,), (sigmoid - target,)


@triton.jit
def mse(params, target):
    """Squared error: the Gaussian nll at variance 1/2, less a constant."""
    error = params[0] - target
    return error * error, (), (2.0 * error,)


@triton.jit
def gaussian(params, target):
    """Gaussian nll given mean and log-variance (Kingma & Welling 2014, appendix C.2)."""
    error = params[0] - target
    scaled = error * tl.exp(-params[1])
    excess = error * scaled
    # log(2 pi) / 2 is written in place: a variable would hold it in float32.
    return 0.5 * (params[1] + excess) + 0.91893853320467274178, (), (scaled, 0.5 - 0.5 * excess)


@triton.jit
def poisson(params, target):
    """Poisson nll given the log of the rate."""
    rate = tl.exp(params[0])
    return rate - target * params[0] + special.lgamma_1p(target), (), (rate - target,)


@triton.jit
def negative_binomial(params, target):
    """Negative binomial nll given mean and inverse dispersion theta (scvi-tools' `log_nb_positive`).

    The mean is taken as mean + 1e-8: finite where a decoder's mean underflows to 0, still a distribution, and within
    1e-8 of scvi-tools, which adds 1e-8 inside its logarithms: the rest of that is theta log(1 + 1e-8 / theta) < 1e-8.
    """
    nll, derivatives = _negative_binomial(params, target)
    return nll, (), derivatives


@triton.jit
def zero_inflated_negative_binomial(params, target):
    """`negative_binomial`, and with probability sigmoid(pi_logits) a zero instead (scvi-tools' `log_zinb_positive`)."""
    pi = params[2]
    zero = target < 1e-8  # as scvi-tools
    nll, derivatives = _negative_binomial((params[0], params[1]), tl.where(zero, 0.0, target))
    a, b = tl.exp(-tl.abs(pi)), tl.exp(-tl.abs(pi + nll))
    # sigmoid(-pi) = other / (1 + a), sigmoid(-pi - nll) = share / (1 + b); a zero is missed with the probability
    # missed / (1 + a): not inflated, nor a zero of the negative binomial.
    other, share = tl.where(pi >= 0, a, 1.0), tl.where(pi + nll >= 0, b, 1.0)
    missed = -elementary.expm1(-nll, tl.exp(-nll)) * other
    # One division for 1 / (1 + a), 1 / (1 + b) and 1 / likelihood, whose bound holds wherever that is used.
    likelihood = tl.maximum(1.0 + a - missed, 0.5)
    inverse = 1.0 / ((1.0 + a) * (1.0 + b) * likelihood)
    over_b = (1.0 + a) * likelihood * inverse
    over_a = (1.0 + b) * likelihood * inverse
    # A likely zero's nll is log1p(missed / likelihood). A rare one's, softplus(-pi) - softplus(-pi - nll), has log((1 +
    # a) / (1 + b)), which is log1p of one in [0, 1] less, perhaps, log 2.
    likely, less = missed <= likelihood, a < b
    rare_base = tl.minimum(-pi, nll)
    rare_base = tl.where(less, rare_base - 0.69314718055994530942, rare_base)
    rare = tl.where(less, 1.0 + 2.0 * a - b, a - b) * over_b
    zero_base = tl.where(likely, 0.0, rare_base)
    zero_excess = tl.where(likely, missed * (1.0 + a) * (1.0 + b) * inverse, rare)
    base = tl.where(zero, zero_base, nll + tl.maximum(pi, 0.0))
    # A zero's derivative in pi is the difference of sigmoid(-pi - nll) and sigmoid(-pi), as a product.
    weight = tl.where(zero, share * over_b, 1.0)
    dpi_zero = -missed * over_a * tl.where(pi + nll >= 0, 1.0, b) * over_b
    dpi = tl.where(zero, dpi_zero, tl.where(pi >= 0, 1.0, a) * over_a)
    return base, (tl.where(zero, zero_excess, a),), (weight * derivatives[0], weight * derivatives[1], dpi)


@triton.jit
def _negative_binomial(params, x):
    """(nll, derivatives) of the negative binomial.

    Stirling's formula in all three lgammas, with y = theta + x and R its remainder, leaves the log-likelihood

        theta log(y / (theta + mean)) + x log(y mean / ((theta + mean) (1 + x))) - log((1 + x) y / theta) / 2
        + R(y) - R(theta) - R(1 + x) + R(1),

    where no term grows with theta. Below theta = 1, lgamma is brought to Y = 1 + y and T = 1 + theta, where R is known:
    with f = Y theta / (y T) the three logarithms are those of f y / (theta + mean), Y mean / ((theta + mean) (1 + x))
    and (1 + x) y / (theta f).
    """
    mean = params[0] + 1e-8
    theta = tl.where(params[1] > 1e18, 1e18, params[1])  # the Poisson limit, and products below stay finite
    y = theta + x
    small = theta < 1.0
    upper, lower = tl.where(small, y + 1.0, y), tl.where(small, theta + 1.0, theta)  # Y and T
    inverse = 1.0 / (theta + mean)
    u = (x - mean) * inverse  # y / (theta + mean) - 1
    x_inverse = 1.0 / (mean * (1.0 + x))
    over_product = 1.0 / (theta * y)
    over_both = 1.0 / (upper * lower)
    over_upper, over_lower = lower * over_both, upper * over_both
    change = y * (y * over_product)  # y / theta
    # f, and exactly 1 where there is no shift
    f = tl.where(small, upper * over_lower * (theta * (theta * over_product)), 1.0)
    f = tl.where(x == 0, 1.0, f)
    log_ratio = special.log_of_normal(y * inverse * f) + 0.0 * u  # NaN stays NaN
    series = (tl.abs(u) < 0.4) & (f == 1.0)
    v = tl.where(series, special.log1p_minus_x(tl.minimum(u, 0.4)), log_ratio - u)
    log_ratio = tl.where(series, u + v, log_ratio)
    counts = (
        x * special.log_of_normal(upper * inverse * (mean * (mean * x_inverse)))
        - 0.5 * special.log_of_normal((1.0 + x) * change / f)
        + (special.stirling_remainder(over_upper) - special.stirling_remainder(over_lower))
        - (special.stirling_remainder(mean * x_inverse) - 0.08106146679532725822)
    )
    slope = (
        tl.where(small, x * over_product + 0.5 * (over_lower - over_upper), 0.5 * x * over_product)
        + special.stirling_remainder_derivative(over_upper)
        - special.stirling_remainder_derivative(over_lower)
    )
    # At x = 0 all of that is 0; fused multiplications and additions would leave a rounding error of it.
    nll = -(theta * log_ratio + tl.where(x == 0, 0.0, counts))
    return nll, (-theta * u * ((1.0 + x) * x_inverse), -(v + tl.where(x == 0, 0.0, slope)))
