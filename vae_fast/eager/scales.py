"""As `vae_fast.kernels.scales`: how the two tensors of a Gaussian give its mean and standard deviation."""

import torch
from torch.nn import functional as F

from vae_fast.eager.elementary import exp, exp_of_half


def is_direct(scale):
    """Whether the second tensor gives the standard deviation itself, and not a logarithm."""
    name, _, epsilon = scale
    return name in ("std", "softplus") or epsilon > 0


def mean(mu, scale):
    """The mean that the first tensor gives."""
    name, bound, _ = scale
    return torch.tanh(mu / bound).mul_(bound) if name == "soft_clamp" else mu


def mean_gradient(gradient, mu, scale):
    """The gradient in the first tensor, of one in the mean."""
    name, bound, _ = scale
    return gradient * _sech2(mu / bound) if name == "soft_clamp" else gradient


def deviation(x, scale, measured=True):
    """(log-variance, standard deviation) that the second tensor gives; not `measured`, the first may be None."""
    name, bound, epsilon = scale
    if name == "logvar":
        return x, exp_of_half(x)
    if name == "logstd":
        return 2 * x if measured else None, exp(x)
    if name == "std":
        return torch.log(x).mul_(2) if measured else None, x
    if name == "softplus":
        std = F.softplus(x, threshold=40).add_(epsilon)
        return torch.log(std).mul_(2) if measured else None, std
    logstd = torch.tanh(x / bound).mul_(bound)
    std = exp(logstd)
    if not epsilon:
        return logstd.mul_(2), std
    std.add_(epsilon)
    return torch.log(std).mul_(2) if measured else None, std


def deviation_gradient(gradient, x, scale):
    """The gradient in the second tensor, of one in the log-variance, or in the standard deviation where direct."""
    name, bound, epsilon = scale
    if name == "logstd":
        return 2 * gradient
    if name == "softplus":
        return gradient * torch.sigmoid(x)
    if name == "soft_clamp":
        gradient = gradient * _sech2(x / bound)
        return gradient * torch.exp(bound * torch.tanh(x / bound)) if epsilon else 2 * gradient
    return gradient


def _sech2(x):
    """1 - tanh(x)^2, without that cancellation."""
    e = torch.exp(-2 * x.abs())
    return 4 * e / (1 + e).square_()
