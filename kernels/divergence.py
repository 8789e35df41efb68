"""The KL of a Gaussian to its prior, element by element: in closed form, or at the drawn sample; and the derivatives.

A prior is (mean, log-variance, standard deviation), or () for N(0, I). DIRECT: see `scales`.
"""

import triton
import triton.language as tl

from vae_fast.kernels.elementary import exp, exp_minus, expm1, expm1_minus_x, log_ratio


@triton.jit
def closed_form(mean, logvar, std, prior, DIRECT: tl.constexpr):
    """KL(N(mean, std^2) || prior) in nats (Kingma & Welling 2014, appendix B)."""
    ratio, exp_ratio = _variance_ratio(logvar, std, prior, DIRECT)
    return 0.5 * (_square(mean, prior, DIRECT) + expm1_minus_x(ratio, exp_ratio))


@triton.jit
def closed_form_gradient(mean, logvar, std, prior, DIRECT: tl.constexpr):
    """Derivatives of `closed_form` in the mean and the log-variance.

    In the prior's mean it is minus the first, in its log-variance minus the second and half of the first times
    (mean - prior's mean).
    """
    ratio, exp_ratio = _variance_ratio(logvar, std, prior, DIRECT)
    return slope(mean, prior, DIRECT), 0.5 * expm1(ratio, exp_ratio)


@triton.jit
def monte_carlo(z, eps, logvar, std, prior, DIRECT: tl.constexpr):
    """log q(z) - log p(z) at z = mean + std eps (Burda et al. 2016); the constants cancel.

    Its derivative in z is `slope`, and at a given z it is -1/2 in the log-variance.
    """
    ratio, _ = _variance_ratio(logvar, std, prior, DIRECT)
    return 0.5 * (_square(z, prior, DIRECT) - eps * eps - ratio)


@triton.jit
def slope(x, prior, DIRECT: tl.constexpr):
    """(x - prior's mean) / prior's variance: the derivative of -log p(x)."""
    if len(prior) == 0:
        return x
    elif DIRECT:
        return (x - prior[0]) / prior[2] / prior[2]
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
def _variance_ratio(logvar, std, prior, DIRECT: tl.constexpr):
    """(log of the variance over the prior's, that ratio)."""
    if len(prior) == 0:
        return logvar, std * std
    elif DIRECT:
        quotient = std / prior[2]
        return 2.0 * log_ratio(std, prior[2]), quotient * quotient
    else:
        ratio = logvar - prior[1]
        return ratio, exp(ratio)
