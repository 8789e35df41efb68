"""The likelihoods: maths on loaded values, nothing else.

Each takes its parameters as a tuple and the target, and returns (base, excess, derivatives): the nll in nats of each
element is base + log1p(excess[0]), excess being a tuple of one in [0, 3], or () where there is no logarithm;
derivatives is a tuple, one a parameter. The logarithm is left to the caller because a sum needs fewer of them: log1p(a)
+ log1p(b) = log1p(a + b + ab). Where -1.0 * x stands for -x, it saves the subtraction from 0 that Triton's minus is.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from vae_fast.kernels import elementary, special


class Issued(NamedTuple):
    """Instructions per element on sm_90 (make audit) of the kernel that reduces it, without `tiling.ISSUED`."""

    sum: float  # the nll summed
    gradient: float
    both: float
    each: float  # the nll of each element


# Formulas that do not fit into the registers of 16 elements a thread; in float64 hardly any does.
HEAVY = ("negative_binomial", "zero_inflated_negative_binomial")

ISSUED = {
    "bernoulli": Issued(sum=18, gradient=16, both=30, each=30),
    "mse": Issued(sum=8, gradient=8, both=12, each=7),
    "gaussian": Issued(sum=14.5, gradient=14, both=21, each=12),
    "bernoulli_probs": Issued(sum=46, gradient=13, both=55, each=41),
    "continuous_bernoulli": Issued(sum=42, gradient=27, both=56, each=39),
    "l1": Issued(sum=8, gradient=10, both=15, each=7),
    "log_cosh": Issued(sum=34, gradient=24, both=44, each=45),
    "huber": Issued(sum=13, gradient=12, both=21, each=11),
    "student_t": Issued(sum=37, gradient=20, both=47, each=34),
    "laplace": Issued(sum=13, gradient=16, both=27, each=11),
    "discretized_logistic": Issued(sum=69, gradient=57, both=100, each=80),
    "poisson": Issued(sum=41, gradient=11, both=44, each=38),
    "negative_binomial": Issued(sum=96, gradient=77, both=128, each=91),
    "zero_inflated_negative_binomial": Issued(sum=122, gradient=157.5, both=181.5, each=131),
}


def portion(likelihood, dtype, weighted):
    """As `tiling.tiles` takes it. Beside three tensors of float32 there are no registers left for a weight."""
    if dtype == torch.float64:
        return 16 if likelihood in HEAVY else 4
    if weighted and dtype == torch.float32 and likelihood == "zero_inflated_negative_binomial":
        return 4
    return 2 if likelihood in HEAVY else 1


@triton.jit
def bernoulli(params, target):
    """Bernoulli nll of `target` given logits, stable for any finite logit (Kingma & Welling 2014, appendix C.1)."""
    logit = params[0]
    e = elementary.exp_minus(tl.abs(logit))
    sigmoid = tl.where(logit >= 0, 1.0, e) / (1.0 + e)  # exactly 1/2 at 0, which `reciprocal` misses
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
    scaled = error * elementary.exp_minus(params[1])
    excess = error * scaled
    # log(2 pi) / 2 is written in place: a variable would hold it in float32.
    return 0.5 * (params[1] + excess) + 0.91893853320467274178, (), (scaled, 0.5 - 0.5 * excess)


@triton.jit
def bernoulli_probs(params, target):
    """Bernoulli nll given probabilities, with the bounds of torch's binary_cross_entropy: logs at -100, slope 1e-12."""
    p = params[0]
    q = 1.0 - p
    is_low = p < 0.5
    m = tl.where(is_low, p, q)  # the lesser, of which no digit is lost
    # What is not normal is with 2^24 in it: the logarithm of 0 is -104.7.
    size, small = tl.abs(m), m < 1.17549435e-38
    log_m = elementary.log_of_normal(tl.where(small, 16777216.0 * size, size)) - 16.635532333438687 * small.to(p.dtype)
    log_m = tl.where(m >= 0, tl.maximum(log_m, -100.0), float("nan"))
    log_rest = elementary.log_1_minus(m)
    share = tl.where(is_low, target, 1.0 - target)
    slope = (p - target) * elementary.reciprocal(tl.maximum(p * q, _exactly(1e-12, p)))
    return (share - 1.0) * log_rest - share * log_m, (), (slope,)


@triton.jit
def _exactly(constant, like):
    """In `like`'s dtype: comparisons round a number to float32 first, which arithmetic does not."""
    return tl.full((1, 1), constant, like.dtype)


@triton.jit
def continuous_bernoulli(params, target):
    """Continuous Bernoulli nll given the natural parameter (Loaiza-Ganem & Cunningham 2019, equation 3).

    log((1 - exp(-b)) / b) with b = |a| is -b/2 + log(sinh(b/2) / (b/2)), by its Taylor series below b = 1.
    """
    a = params[0]
    b = tl.abs(a)
    e = elementary.exp_minus(b)
    c = tl.where(b < 1.0, 1.0, b)  # stands where the closed form is right
    rest = tl.where(b < 1.0, 1.0, 1.0 - e)  # 1 - exp(-b)
    square = b * b
    tail, slope = special.log_sinhc(square)
    over_rest = elementary.reciprocal(rest)
    log_partition = tl.where(b < 1.0, tail * square - 0.5 * b, -1.0 * elementary.log_of_normal(c * over_rest))
    # 1 less the target's mean at b
    complement = tl.where(b < 1.0, 0.5 - slope * b, elementary.reciprocal(c) - e * over_rest)
    return (
        tl.maximum(a, 0.0) - a * target + log_partition,
        (),
        (tl.where(a >= 0, 1.0 - complement, complement) - target,),
    )


@triton.jit
def _sign(x):
    """-1, 0 or 1; NaN stays NaN."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x))


@triton.jit
def l1(params, target):
    """Absolute error: the Laplace nll at scale 1, less log 2."""
    error = params[0] - target
    return tl.abs(error), (), (_sign(error),)


@triton.jit
def log_cosh(params, target):
    """log cosh(error): |error| - log 2 + log1p(exp(-2 |error|)), and log1p(cosh - 1) near 0, where that cancels."""
    error = params[0] - target
    size = tl.abs(error)
    e = elementary.exp_minus(size)
    rest = elementary.one_minus_exp(size, e)
    near = size < 1.0
    excess = tl.where(near, 0.5 * rest * rest * elementary.reciprocal(e), e * e)
    slope = rest * (1.0 + e) * elementary.reciprocal(1.0 + e * e)
    return tl.where(near, 0.0, size - 0.69314718055994530942), (excess,), (tl.where(error < 0, -slope, slope),)


@triton.jit
def huber(params, target):
    """Huber loss; the second parameter is delta, which has no derivative."""
    error, delta = params[0] - target, params[1]
    size = tl.abs(error)
    near = size <= delta
    slope = tl.where(near, error, _sign(error) * delta)
    return tl.where(near, 0.5 * error * error, delta * (size - 0.5 * delta)), (), (slope,)


@triton.jit
def student_t(params, target):
    """Student's t nll given mean and log scale; then df and the logarithm of the constant, without derivatives."""
    error, df = params[0] - target, params[2]
    inverse = elementary.exp_minus(params[1])
    scaled = error * inverse
    square = scaled * scaled
    share = (df + 1.0) * elementary.reciprocal(df + square)
    nll = params[3] + params[1] + 0.5 * (df + 1.0) * elementary.log1p(square * (1.0 / df))
    return nll, (), (share * scaled * inverse, 1.0 - share * square)


@triton.jit
def laplace(params, target):
    """Laplace nll given mean and log scale."""
    error = params[0] - target
    inverse = elementary.exp_minus(params[1])
    scaled = tl.abs(error) * inverse
    return scaled + params[1] + 0.69314718055994530942, (), (_sign(error) * inverse, 1.0 - scaled)


@triton.jit
def discretized_logistic(params, target):
    """Mass of a logistic distribution in the target's bin of 1/255 on [0, 1] (Salimans et al. 2017, equation 2).

    sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)) loses nothing in the tails.
    """
    centred, inverse = target - params[0], elementary.exp_minus(params[1])
    upper, lower = (centred + 0.00196078431372549020) * inverse, (centred - 0.00196078431372549020) * inverse
    width = inverse * 0.00392156862745098039
    low, high = _exactly(0.00196078431372549020, target), _exactly(0.99803921568627450980, target)
    first, last = target < low, target > high
    e_upper, e_lower = elementary.exp_minus(tl.abs(upper)), elementary.exp_minus(tl.abs(lower))
    below = tl.where(upper >= 0, e_upper, 1.0) * elementary.reciprocal(1.0 + e_upper)  # sigmoid(-upper)
    above = tl.where(lower >= 0, 1.0, e_lower) * elementary.reciprocal(1.0 + e_lower)  # sigmoid(lower)
    e_upper, e_lower = tl.where(last, 0.0, e_upper), tl.where(first, 0.0, e_lower)
    below, above = tl.where(last, 0.0, below), tl.where(first, 0.0, above)
    # 1 - exp(-width) is `rest`, and where that may be less than any normal number `rest` times the width, whose
    # logarithm is -log_scale - log 255.
    e_width, narrow = elementary.exp_minus(width), width < 0.5
    rest = tl.where(narrow, elementary.one_minus_exp_over_x(width), 1.0 - e_width)
    log_inside = elementary.log_of_normal(rest) - tl.where(narrow, params[1] + 5.54126354515842615, 0.0)
    inner = (target >= low) & (target <= high)
    base = tl.where(last, 0.0, tl.maximum(-1.0 * upper, 0.0)) + tl.where(first, 0.0, tl.maximum(lower, 0.0))
    base = base - tl.where(inner, log_inside, 0.0)
    stretch = tl.where(inner, tl.where(narrow, e_width, width * e_width) * elementary.reciprocal(rest), 0.0)
    excess = e_upper + e_lower + e_upper * e_lower
    return base, (excess,), (inverse * (below - above), upper * below - lower * above + stretch)


@triton.jit
def poisson(params, target):
    """Poisson nll given the log of the rate."""
    rate = tl.exp(params[0])  # may be less than any normal number
    return rate - target * params[0] + special.lgamma_1p(target), (), (rate - target,)


@triton.jit
def negative_binomial(params, target):
    """Negative binomial nll given mean and inverse dispersion theta (scvi-tools' `log_nb_positive`).

    The mean is taken as mean + 1e-8: finite where a decoder's mean underflows to 0, still a distribution, and within
    1e-8 of scvi-tools, which adds 1e-8 inside its logarithms: the rest of that is theta log(1 + 1e-8 / theta) < 1e-8.
    """
    nll, derivatives = _negative_binomial(params, target, target == 0)
    return nll, (), derivatives


@triton.jit
def zero_inflated_negative_binomial(params, target):
    """`negative_binomial`, and with probability sigmoid(pi_logits) a zero instead (scvi-tools' `log_zinb_positive`)."""
    pi = params[2]
    zero = target < 1e-8  # as scvi-tools
    nll, derivatives = _negative_binomial((params[0], params[1]), target, zero)
    a, b = elementary.exp_minus(tl.abs(pi)), elementary.exp_minus(tl.abs(pi + nll))
    over_a, over_b = elementary.reciprocal(1.0 + a), elementary.reciprocal(1.0 + b)
    # A zero's nll is softplus(-pi) - softplus(-pi - nll), which has log((1 + a) / (1 + b)). That is log1p of one in
    # [0, 1] where pi >= 0, and of one in [0, 3] less log 2 elsewhere. Its error is a share of the first softplus.
    excess = (a - b) * over_b
    certain = pi >= 0
    zero_base = tl.where(certain, 0.0, tl.minimum(-1.0 * pi, nll) - 0.69314718055994530942)
    zero_excess = tl.where(certain, excess, 1.0 + 2.0 * excess)
    base = tl.where(zero, zero_base, nll + tl.maximum(pi, 0.0))
    behind = pi + nll >= 0
    weight = tl.where(zero, tl.where(behind, b, 1.0) * over_b, 1.0)
    # sigmoid(pi) = share / (1 + a) for a count; sigmoid(-pi) = share / (1 + a) for a zero. A zero's derivative in pi is
    # the difference of sigmoid(-pi - nll) and sigmoid(-pi), as a product.
    share = tl.where(certain ^ zero, 1.0, a)
    missed = elementary.one_minus_exp(nll, elementary.exp_minus(nll)) * (tl.where(behind, 1.0, b) * over_b)
    dpi = tl.where(zero, -1.0 * missed * share, share) * over_a
    return base, (tl.where(zero, zero_excess, a),), (weight * derivatives[0], weight * derivatives[1], dpi)


@triton.jit
def _negative_binomial(params, x, zero):
    """(nll, derivatives) of the negative binomial; zero: where x is 0.

    Stirling's formula in lgamma(1 + theta + x), lgamma(1 + theta) and lgamma(1 + x), with T = 1 + theta, X = 1 + x, Y =
    T + x, y = theta + x, t = theta + mean, and R its remainder, leaves the log-likelihood

        (theta + 1/2) log(theta Y / (t T)) + x log(mean Y / (t X)) - log(y sqrt(X / (theta t)))
        + R(Y) - R(T) - R(X) + R(1),

    where no term grows with theta: the first logarithm is that of 1 + u, u = (theta (x - mean) - mean) / (t T). It
    alone needs all its digits, however small: theta multiplies it. The other two may err by 1e-7 of 1, as a count's nll
    is hardly less. The other rooms have it in other terms, for which theta above and below 1 are two cases.
    """
    # So that products below stay normal: theta is then in the Poisson limit, and a mean beyond counts as 1e18.
    mean = tl.minimum(params[0] + 1e-8, 1e18, propagate_nan=tl.PropagateNan.ALL)
    theta = tl.minimum(params[1], 1e18, propagate_nan=tl.PropagateNan.ALL)
    total, difference = theta + mean, x - mean
    lower, count = 1.0 + theta, 1.0 + x  # T and X
    upper = lower + x  # Y
    product = total * lower
    inverse = elementary.reciprocal(product)
    inverse = inverse + inverse * (1.0 - product * inverse)  # Newton's step: exact but for rounding
    over_total, over_lower, over_upper = lower * inverse, total * inverse, elementary.reciprocal(upper)
    root = tl.rsqrt(count)
    over_count = root * root
    shared = upper * inverse  # Y / (t T), of two logarithms
    # As a multiplication u would be fused into log(1 + u) - u, whose error would be u's rounding: more than all of it.
    u = tl.fma(theta * difference - mean, inverse, 0.0)
    log_ratio, v = special.log_and_rest(theta * shared, u)
    slope = (
        x * (over_lower * (0.5 * over_upper - over_total) + elementary.reciprocal(theta * (theta + x)))
        + special.stirling_remainder_derivative(over_upper)
        - special.stirling_remainder_derivative(over_lower)
    )
    dtheta = -1.0 * v - tl.where(zero, 0.0, slope)
    remainders = (
        (0.08106146679532725822 + special.stirling_remainder(over_upper))
        - special.stirling_remainder(over_lower)
        - special.stirling_remainder(over_count)
    )
    width, width_rest = elementary.rough_log2((theta + x) * tl.rsqrt(theta * total) * (count * root))
    growth, growth_rest = elementary.rough_log2(mean * lower * shared * over_count)
    logs = x * growth_rest - (width + width_rest) + x * growth
    counts = 0.69314718055994530942 * logs + (0.5 * log_ratio + remainders)
    # At x = 0 all of that is 0; fused multiplications and additions would leave a rounding error of it.
    nothing = 0.0 * params[0]  # infinity is not finite
    nll = (nothing - tl.where(zero, 0.0, counts)) - theta * log_ratio
    dmean = -1.0 * theta * difference * over_total * elementary.reciprocal(mean)
    return nll, (dmean, dtheta)
