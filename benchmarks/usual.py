"""The reconstruction losses as users write them, which those of `vae_fast` are compared with."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import ContinuousBernoulli


def _gaussian(mean, logvar, x):
    """As diffusers writes it. `F.gaussian_nll_loss` moves a third more, and waits for a GPU to look at the variance."""
    return 0.5 * torch.sum(math.log(2 * math.pi) + logvar + (x - mean) ** 2 / logvar.exp())


# The next two as textbooks have the densities: the classes of torch.distributions move a third and two thirds more.
def _laplace(mean, log_scale, x):
    return (x - mean).abs() / log_scale.exp() + log_scale + math.log(2)


def _student_t(mean, log_scale, x, df=5.0):
    error = (x - mean) / log_scale.exp()
    constant = math.lgamma(df / 2) - math.lgamma((df + 1) / 2) + 0.5 * math.log(math.pi * df)
    return (df + 1) / 2 * torch.log1p(error**2 / df) + log_scale + constant


def _log_nb_positive(mean, theta, x, eps=1e-8):
    """As scvi-tools writes it."""
    log_total = torch.log(theta + mean + eps)
    return (
        theta * (torch.log(theta + eps) - log_total)
        + x * (torch.log(mean + eps) - log_total)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )


def _log_zinb_positive(mean, theta, pi_logits, x, eps=1e-8):
    """As scvi-tools writes it."""
    log_theta = torch.log(theta + eps)
    log_total = torch.log(theta + mean + eps)
    log_zero = -pi_logits + theta * (log_theta - log_total)
    softplus_pi = F.softplus(-pi_logits)
    zero = F.softplus(log_zero) - softplus_pi
    other = _log_nb_positive(mean, theta, x, eps) - softplus_pi - pi_logits
    return torch.where(x < eps, zero, other)


def _discretized_logistic(mean, log_scale, x):
    """As PixelCNN++ and vdvae write it, on [0, 1]."""
    inverse, centred = torch.exp(-log_scale), x - mean
    upper, lower = inverse * (centred + 1 / 510), inverse * (centred - 1 / 510)
    mass = torch.sigmoid(upper) - torch.sigmoid(lower)
    first, last = upper - F.softplus(upper), -F.softplus(lower)
    middle = inverse * centred
    density = middle - log_scale - 2 * F.softplus(middle) - math.log(255)
    inner = torch.where(mass > 1e-5, torch.log(mass.clamp(min=1e-12)), density)
    return torch.where(x < 1 / 510, first, torch.where(x > 1 - 1 / 510, last, inner))


# What a user would write: each sums over everything. A likelihood that is not here is not compared. Losses that want
# one dtype get the target's: in mixed precision that is the float32 which autocast, or its user, casts to.
FORMULAS: dict[str, Callable[..., Tensor]] = {
    "bernoulli_probs": lambda output, x: F.binary_cross_entropy(output.to(x.dtype), x, reduction="sum"),
    "continuous_bernoulli": lambda output, x: (
        -ContinuousBernoulli(logits=output, validate_args=False).log_prob(x).sum()
    ),
    "l1": lambda output, x: F.l1_loss(output, x, reduction="sum"),
    "log_cosh": lambda output, x: torch.log(torch.cosh(output - x)).sum(),
    "huber": lambda output, x: F.huber_loss(output.to(x.dtype), x, reduction="sum"),
    "student_t": lambda output, x: _student_t(*output, x).sum(),
    "laplace": lambda output, x: _laplace(*output, x).sum(),
    "discretized_logistic": lambda output, x: -_discretized_logistic(*output, x).sum(),
    "poisson": lambda output, x: (output.exp() - x * output + torch.lgamma(x + 1)).sum(),
    "negative_binomial": lambda output, x: -_log_nb_positive(*output, x).sum(),
    "zero_inflated_negative_binomial": lambda output, x: -_log_zinb_positive(*output, x).sum(),
    "bernoulli": lambda output, x: F.binary_cross_entropy_with_logits(output, x, reduction="sum"),
    "mse": lambda output, x: F.mse_loss(output.to(x.dtype), x, reduction="sum"),
    "gaussian": lambda output, x: _gaussian(*output, x),
    "categorical": lambda output, x: F.cross_entropy(output.flatten(0, -2), x.flatten(), reduction="sum"),
}
