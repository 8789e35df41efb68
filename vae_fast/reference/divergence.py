"""The KL of a Gaussian to its prior, element by element: in closed form, or at a sample of it; and the derivatives.

A distribution is (mean, log-variance); all arrays have one shape.
"""

import numpy as np


@np.errstate(over="ignore", invalid="ignore")
def expm1mx(x):
    """exp(x) - 1 - x, to 1e-15 relative: near 0 the plain form is the difference of nearly equal numbers.

    Below |x| = 1 by the Taylor series x^2/2 (1 + x/3 (1 + x/4 (...))), whose first omitted term is under 1e-19 of it.
    """
    x = np.asarray(x, dtype=np.float64)
    small = np.abs(x) < 1.0
    near = np.where(small, x, 0.0)
    series = np.ones_like(near)
    for k in range(20, 2, -1):
        series = 1.0 + near / k * series
    return np.where(small, near * near / 2 * series, np.expm1(x) - x)


def closed_form(mean, logvar, prior_mean, prior_logvar):
    """(exp(d) - 1 - d + (mean - prior_mean)^2 exp(-prior_logvar)) / 2 at d = logvar - prior_logvar.

    Grouped so that nothing cancels: both terms are non-negative, and each keeps its relative accuracy near KL = 0.
    """
    return (expm1mx(logvar - prior_logvar) + (mean - prior_mean) ** 2 * np.exp(-prior_logvar)) / 2


def closed_form_backward(grad, mean, logvar, prior_mean, prior_logvar):
    """Gradients of `closed_form` in its four arguments."""
    slope = (mean - prior_mean) * np.exp(-prior_logvar)
    excess = np.expm1(logvar - prior_logvar)
    return grad * slope, grad * excess / 2, -grad * slope, -grad * (excess + (mean - prior_mean) * slope) / 2


def monte_carlo(z, eps, logvar, prior_mean, prior_logvar):
    """log q(z) - log p(z) at z = mean + exp(logvar / 2) eps (Burda et al. 2016, equation 8); the constants cancel."""
    return ((z - prior_mean) ** 2 * np.exp(-prior_logvar) - eps**2 - (logvar - prior_logvar)) / 2


def monte_carlo_backward(grad, z, prior_mean, prior_logvar):
    """Gradients of `monte_carlo` in z, in the log-variance at that z, and in the prior's two."""
    slope = (z - prior_mean) * np.exp(-prior_logvar)
    half = np.full_like(slope, 0.5)
    return grad * slope, -grad * half, -grad * slope, grad * (half - (z - prior_mean) * slope / 2)
