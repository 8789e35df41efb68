"""The losses as a user would write them with PyTorch alone: the yardstick of the faults' tests."""

import math

import torch
import torch.nn.functional as F


def nll(output, target, likelihood="bernoulli"):
    """Elementwise, in nats."""
    if likelihood == "bernoulli":
        return F.binary_cross_entropy_with_logits(output, target.to(output.dtype), reduction="none")
    if likelihood == "mse":
        return F.mse_loss(output, target, reduction="none")
    mean, logvar = output
    return 0.5 * (logvar + (mean - target) ** 2 * torch.exp(-logvar) + math.log(2 * math.pi))


def kl(mu, logvar):
    """Elementwise, to N(0, I), in nats."""
    return 0.5 * (mu**2 + torch.expm1(logvar) - logvar)


def reduce(elementwise, reduction):
    batch = elementwise.shape[0]
    if reduction == "none":
        return elementwise
    if reduction == "sample":
        return elementwise.flatten(1).sum(1)
    if reduction == "latent":
        return elementwise.mean(0)
    return elementwise.sum() / {"sum": 1, "mean": elementwise.numel(), "batchmean": batch}[reduction]


def sample(mu, logvar, eps):
    return mu + torch.exp(logvar / 2) * eps
