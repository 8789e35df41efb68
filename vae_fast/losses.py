"""The losses as modules: the functions' options are set once, and calls look like those of torch.nn's losses."""

import torch
from torch import nn

from vae_fast import checks, likelihoods
from vae_fast.functional import elbo_loss, gaussian_kl, reconstruction_loss


class GaussianKL(nn.Module):
    """`gaussian_kl` as a module: forward(mu, logvar, prior=None) in nats, per sample by default.

    >>> GaussianKL()(torch.zeros(4, 2), torch.zeros(4, 2)).item()
    0.0
    """

    def __init__(self, *, logvar_clamp=None, reduction="batchmean"):
        super().__init__()
        checks.clamp(logvar_clamp)
        checks.reduction(reduction, checks.LATENT_REDUCTIONS)
        self.logvar_clamp, self.reduction = logvar_clamp, reduction

    def forward(self, mu, logvar, prior=None):
        return gaussian_kl(mu, logvar, prior=prior, logvar_clamp=self.logvar_clamp, reduction=self.reduction)

    def extra_repr(self):
        return f"logvar_clamp={self.logvar_clamp}, reduction={self.reduction!r}"


class ReconstructionLoss(nn.Module):
    """`reconstruction_loss` as a module: forward(output, target) in nats, per sample by default.

    >>> ReconstructionLoss("mse")(torch.zeros(2, 3), torch.ones(2, 3)).item()
    3.0
    """

    def __init__(self, likelihood="bernoulli", *, reduction="batchmean"):
        super().__init__()
        likelihoods.lookup(likelihood)
        checks.reduction(reduction, checks.REDUCTIONS)
        self.likelihood, self.reduction = likelihood, reduction

    def forward(self, output, target):
        return reconstruction_loss(output, target, self.likelihood, reduction=self.reduction)

    def extra_repr(self):
        return f"{self.likelihood!r}, reduction={self.reduction!r}"


class ELBOLoss(nn.Module):
    """`elbo_loss` as a module: forward(output, target, kl) gives ELBO(total, reconstruction, kl) in nats per sample.

    `beta` is an attribute that may be set between steps.

    >>> ELBOLoss(beta=4.0)(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor(1.0)).total.item()
    6.0794...
    """

    def __init__(self, likelihood="bernoulli", *, beta=1.0):
        super().__init__()
        likelihoods.lookup(likelihood)
        if not isinstance(beta, torch.Tensor):
            checks.beta_number(beta)
        self.likelihood, self.beta = likelihood, beta

    def forward(self, output, target, kl):
        return elbo_loss(output, target, kl, likelihood=self.likelihood, beta=self.beta)

    def extra_repr(self):
        return f"{self.likelihood!r}, beta={self.beta}"
