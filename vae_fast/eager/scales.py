"""As `vae_fast.kernels.scales`: how the two tensors of a Gaussian give its mean and standard deviation."""

import torch
from torch.nn import functional as F


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


def deviation(x, scale):
    """(log-variance, standard deviation) that the second tensor gives."""
    name, bound, epsilon = scale
    if name == "logvar":
        return x, torch.exp(0.5 * x)
    if name == "logstd":
        return 2 * x, torch.exp(x)
    if name == "std":
        return torch.log(x).mul_(2), x
    if name == "softplus":
        std = F.softplus(x, threshold=40).add_(epsilon)
        return torch.log(std).mul_(2), std
    logstd = torch.tanh(x / bound).mul_(bound)
    std = torch.exp(logstd)
    if epsilon:
        logstd = torch.log(std.add_(epsilon))
    return 2 * logstd, std


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
