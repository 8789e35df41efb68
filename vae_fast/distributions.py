"""The diagonal Gaussian posterior as an object."""

import torch

from vae_fast import checks
from vae_fast.functional import gaussian_kl, reconstruction_loss, reparameterize, sample_kl, sample_kl_packed


class DiagonalGaussian:
    """N(mu, diag(exp(logvar))) of shape [B, ...]; nothing is computed until it is asked for.

    logvar_clamp: (low, high), as in `sample_kl`; every method sees the clamped logvar. Raises as `sample_kl` does.

    >>> posterior = DiagonalGaussian(torch.zeros(4, 2), torch.zeros(4, 2))
    >>> posterior.rsample(seed=0).shape, posterior.kl().item()
    (torch.Size([4, 2]), 0.0)
    """

    def __init__(self, mu, logvar, *, logvar_clamp=None):
        checks.posterior(mu, logvar)
        checks.clamp(logvar_clamp)
        self._halves, self._moments, self.logvar_clamp = (mu, logvar), None, logvar_clamp

    @classmethod
    def from_moments(cls, moments, dim=1, *, logvar_clamp=None):
        """From moments = cat(mu, logvar) along `dim`: `sample_kl` then writes one gradient for them."""
        posterior = cls.__new__(cls)
        dim = checks.moments(moments, dim)
        checks.clamp(logvar_clamp)
        posterior._halves, posterior._moments, posterior.logvar_clamp = (
            moments.chunk(2, dim),
            (moments, dim),
            logvar_clamp,
        )
        return posterior

    @property
    def mu(self):
        return self._halves[0]

    @property
    def logvar(self):
        """The log-variance, clamped."""
        logvar = self._halves[1]
        return logvar if self.logvar_clamp is None else logvar.clamp(*self.logvar_clamp)

    def rsample(self, *, seed=None, generator=None, eps=None):
        """A sample [B, ...], differentiable in mu and logvar."""
        clamp = self.logvar_clamp
        return reparameterize(*self._halves, logvar_clamp=clamp, seed=seed, generator=generator, eps=eps)

    def sample(self, *, seed=None, generator=None, eps=None):
        """A sample [B, ...] without a gradient."""
        with torch.no_grad():
            return self.rsample(seed=seed, generator=generator, eps=eps)

    def sample_kl(self, *, prior=None, reduction="sample", seed=None, generator=None, eps=None):
        """A differentiable sample and the KL in one pass, as the function of that name."""
        prior = _parameters(prior)
        posterior, function = (self._halves, sample_kl) if self._moments is None else (self._moments, sample_kl_packed)
        clamp = self.logvar_clamp
        return function(
            *posterior, prior=prior, logvar_clamp=clamp, reduction=reduction, seed=seed, generator=generator, eps=eps
        )

    def mode(self):
        """The most likely value: mu itself."""
        return self.mu

    def kl(self, prior=None, *, reduction="batchmean"):
        """KL to `prior`, a DiagonalGaussian or a tuple (mu, logvar), in nats; to N(0, I) where it is None."""
        return gaussian_kl(*self._halves, prior=_parameters(prior), logvar_clamp=self.logvar_clamp, reduction=reduction)

    def log_prob(self, value):
        """The log-density of `value` [B, ...]: [B], nats per sample, summed over elements; differentiable in both."""
        checks.is_float("value", value)
        checks.same_shape("value", value, "mu", self.mu)
        checks.same_device("value", value, "mu", self.mu)
        mean = self.mu
        if value.requires_grad:  # a target has no gradient, but the difference is all that counts
            mean, value = mean - value, torch.zeros_like(value)
        return -reconstruction_loss((mean, self.logvar.to(mean.dtype)), value, "gaussian", reduction="sample")

    def __repr__(self):
        mu = self.mu
        return f"DiagonalGaussian(shape={list(mu.shape)}, dtype={mu.dtype}, device={mu.device})"


def _parameters(prior):
    return (prior.mu, prior.logvar) if isinstance(prior, DiagonalGaussian) else prior
