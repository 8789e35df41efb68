"""The KL of a Gaussian to its prior, element by element: in closed form, or at the drawn sample; and the derivatives.

A prior is (mean, log-variance, standard deviation), or () for N(0, I). DIRECT: see `scales`.
"""

import triton
import triton.language as tl

from vae_fast.kernels import scales
from vae_fast.kernels.elementary import (
    exp,
    exp_minus,
    expm1,
    expm1_minus_x,
    log_near_1,
    square_minus_1_minus_2_log,
)


@triton.jit
def closed_form(mean, logvar, std, prior, DIRECT: tl.constexpr, EPSILON: tl.constexpr):
    """KL(N(mean, std^2) || prior) in nats (Kingma & Welling 2014, appendix B). EPSILON: the least deviation."""
    if DIRECT:
        quotient, d = _quotient(std, prior)
        excess = square_minus_1_minus_2_log(quotient, d, len(prior) == 0 and EPSILON > scales.HARDLY_NORMAL)
    else:
        ratio = _log_variance_ratio(logvar, prior)
        excess = expm1_minus_x(ratio, _variance_ratio(ratio, std, prior))
    return 0.5 * (_square(mean, prior, DIRECT) + excess)


@triton.jit
def closed_form_gradient(mean, logvar, std, prior, DIRECT: tl.constexpr):
    """Derivatives of `closed_form` in the mean and, twice it, in the log-variance.

    In the prior's mean it is minus the first; in its log-variance, twice, minus the second and the first times
    (mean - prior's mean).
    """
    if DIRECT:
        _, d = _quotient(std, prior)
        twice = d * (d + 2.0)
    else:
        ratio = _log_variance_ratio(logvar, prior)
        twice = expm1(ratio, _variance_ratio(ratio, std, prior))
    return slope(mean, prior, DIRECT), twice


@triton.jit
def monte_carlo(z, eps, logvar, std, prior, DIRECT: tl.constexpr):
    """log q(z) - log p(z) at z = mean + std eps (Burda et al. 2016); the constants cancel.

    Its derivative in z is `slope`, and at a given z it is -1/2 in the log-variance.
    """
    if DIRECT and len(prior) > 0:
        quotient, d = _quotient(std, prior)
        ratio = 2.0 * log_near_1(quotient, d)
    else:
        ratio = _log_variance_ratio(logvar, prior)
    return 0.5 * (_square(z, prior, DIRECT) - eps * eps - ratio)


@triton.jit
def slope(x, prior, DIRECT: tl.constexpr):
    """(x - prior's mean) / prior's variance: the derivative of -log p(x)."""
    if len(prior) == 0:
        return x
    elif DIRECT:
        inverse = 1.0 / prior[2]
        return (x - prior[0]) * inverse * inverse
    else:
        return (x - prior[0]) * exp_minus(prior[1])


@triton.jit
def _square(x, prior, DIRECT: tl.constexpr):
    """(x - prior's mean)^2 / prior's variance."""
    if len(prior) == 0:
        return x * x
    else:
        return (x - prior[0]) * slope(x, prior, DIRECT)


@triton.jit
def _quotient(std, prior):
    """(std / prior's, that less 1), of which no digit is lost where they are close."""
    if len(prior) == 0:
        return std, std - 1.0
    else:
        inverse = 1.0 / prior[2]
        return std * inverse, (std - prior[2]) * inverse


@triton.jit
def _log_variance_ratio(logvar, prior):
    if len(prior) == 0:
        return logvar
    else:
        return logvar - prior[1]


@triton.jit
def _variance_ratio(ratio, std, prior):
    """exp(ratio), which is there already where the prior is N(0, I)."""
    if len(prior) == 0:
        return std * std
    else:
        return exp(ratio)
