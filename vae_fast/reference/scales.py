"""How the two tensors of a Gaussian give its mean and standard deviation, with the derivative of each.

scale: the name of one, or (name, bound, epsilon).
"""

import numpy as np


def mean(mu, scale):
    """(mean, its derivative in mu)."""
    name, bound, _ = _scale(scale)
    if name == "soft_clamp":  # NVAE (Vahdat & Kautz 2020)
        return bound * np.tanh(mu / bound), np.cosh(mu / bound) ** -2
    return mu, np.ones_like(mu)


def deviation(x, scale):
    """(log-variance, standard deviation, and the derivative of each in x)."""
    name, bound, epsilon = _scale(scale)
    if name == "logvar":
        return x, np.exp(x / 2), np.ones_like(x), np.exp(x / 2) / 2
    if name == "logstd":
        return 2 * x, np.exp(x), np.full_like(x, 2.0), np.exp(x)
    if name == "std":
        return 2 * np.log(x), x, 2 / x, np.ones_like(x)
    if name == "softplus":
        std, slope = np.logaddexp(0, x) + epsilon, 0.5 * (1 + np.tanh(x / 2))
        return 2 * np.log(std), std, 2 * slope / std, slope
    if name != "soft_clamp":
        raise ValueError(f"scale is {name!r}: expected 'logvar', 'logstd', 'std', 'softplus' or 'soft_clamp'")
    logstd, slope = bound * np.tanh(x / bound), np.cosh(x / bound) ** -2
    exp = np.exp(logstd)
    if epsilon == 0:
        return 2 * logstd, exp, 2 * slope, exp * slope
    std = exp + epsilon
    return 2 * np.log(std), std, 2 * exp * slope / std, exp * slope


def _scale(scale):
    return (scale, 5.0, 1e-4 if scale == "softplus" else 0.0) if isinstance(scale, str) else scale
