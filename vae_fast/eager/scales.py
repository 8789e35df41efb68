"""As `vae_fast.kernels.scales`: how the two tensors of a Gaussian give its mean and standard deviation."""

import torch
from torch.nn import functional as F

from vae_fast.eager.elementary import ONE, exp, exp_of_half, number


def is_direct(scale):
    """Whether the second tensor gives the standard deviation itself, and not a logarithm."""
    name, _, epsilon = scale
    return name in ("std", "softplus") or epsilon > 0


def mean(mu, scale):
    """The mean that the first tensor gives."""
    name, bound, _ = scale
    return _bounded(mu, bound) if name == "soft_clamp" else mu


def mean_gradient(gradient, mu, scale):
    """The gradient in the first tensor, of one in the mean."""
    name, bound, _ = scale
    return gradient * _sech2(mu / number(bound, mu.dtype)) if name == "soft_clamp" else gradient


def deviation(x, scale, measured=True):
    """(log-variance, standard deviation) that the second tensor gives; not `measured`, the first may be None."""
    name, bound, epsilon = scale
    if name == "logvar":
        return x, exp_of_half(x)
    if name == "logstd":
        return x + x if measured else None, exp(x)
    if name == "std":
        return _twice_log(x) if measured else None, x
    if name == "softplus":
        std = F.softplus(x, threshold=40)
    else:
        logstd = _bounded(x, bound)
        std = exp(logstd)
        if not epsilon:
            return logstd.add_(logstd), std
    if epsilon:
        std.add_(number(epsilon, x.dtype))
    return _twice_log(std) if measured else None, std


def _bounded(x, bound):
    bound = number(bound, x.dtype)
    return (x / bound).tanh_().mul_(bound)


def _twice_log(x):
    made = torch.log(x)
    return made.add_(made)


def deviation_gradient(gradient, x, scale):
    """The gradient in the second tensor, of one in the log-variance, or in the standard deviation where direct."""
    name, bound, epsilon = scale
    if name == "logstd":
        return gradient + gradient
    if name == "softplus":
        return gradient * torch.sigmoid(x)
    if name == "soft_clamp":
        gradient = gradient * _sech2(x / number(bound, x.dtype))
        return gradient * exp(_bounded(x, bound)) if epsilon else gradient + gradient
    return gradient


def _sech2(x):
    """1 - tanh(x)^2, without that cancellation."""
    e = x.abs().mul_(number(-2.0, x.dtype)).exp_()
    made = e * number(4.0, x.dtype)
    return made.div_(e.add_(ONE[x.dtype]).square_())
