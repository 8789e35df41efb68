"""The diagonal Gaussian posterior as an object."""

import torch
from torch import Tensor

from vae_fast import checks, scales
from vae_fast.eager.elementary import clamp
from vae_fast.eager.reductions import accumulator
from vae_fast.functional import gaussian_kl, reconstruction_loss, reparameterize, sample_kl, sample_kl_packed
from vae_fast.scales import ScaleLike


class DiagonalGaussian:
    """N(mu, diag(exp(logvar))) of shape [B, ...]; nothing is computed until it is asked for.

    Args:
        mu, logvar: what an encoder gives, of one shape and device, in dtypes as `sample_kl` takes them.
        logvar_clamp: (low, high), as in `sample_kl`; every method sees the clamped logvar. With scale "logvar".
        scale: what `logvar` holds, as in `sample_kl`: "logvar", "logstd", "std", "softplus", a `Softplus` or a
            `SoftClamp`. The attributes `mu` and `logvar` are the mean and the log-variance in every scale, made at each
            reading where the tensors hold something else.

    Raises:
        TypeError, ValueError: as `sample_kl` does.

    >>> posterior = DiagonalGaussian(torch.zeros(4, 2), torch.zeros(4, 2))
    >>> posterior.rsample(seed=0).shape, posterior.kl().item()
    (torch.Size([4, 2]), 0.0)
    >>> DiagonalGaussian(torch.zeros(4, 2), torch.ones(4, 2), scale="std").kl().item()
    0.0
    """

    def __init__(
        self,
        mu: Tensor,
        logvar: Tensor,
        *,
        logvar_clamp: tuple[float, float] | None = None,
        scale: ScaleLike = "logvar",
    ):
        checks.posterior(mu, logvar)
        self._set((mu, logvar), None, logvar_clamp, scale)

    @classmethod
    def from_moments(
        cls,
        moments: Tensor,
        dim: int = 1,
        *,
        logvar_clamp: tuple[float, float] | None = None,
        scale: ScaleLike = "logvar",
    ) -> "DiagonalGaussian":
        """From moments = cat(mu, logvar) along `dim`: `sample_kl` then writes one gradient for them."""
        dim = checks.moments(moments, dim)
        posterior = cls.__new__(cls)
        posterior._set(moments.chunk(2, dim), (moments, dim), logvar_clamp, scale)
        return posterior

    def _set(self, halves, moments, logvar_clamp, scale):
        checks.clamp(logvar_clamp)
        self._found = scales.lookup(scale, logvar_clamp)
        self._halves, self._moments = halves, moments
        self._options = {"logvar_clamp": logvar_clamp, "scale": scale}

    @property
    def logvar_clamp(self) -> tuple[float, float] | None:
        """As it was given."""
        return self._options["logvar_clamp"]

    @property
    def scale(self) -> ScaleLike:
        """As it was given."""
        return self._options["scale"]

    @property
    def mu(self) -> Tensor:
        """The mean."""
        return self._mean().to(self._halves[0].dtype)

    @property
    def logvar(self) -> Tensor:
        """The log-variance, clamped."""
        return self._log_variance().to(self._halves[1].dtype)

    def _mean(self):
        """In float32 at least where a bound makes it."""
        mu = self._halves[0]
        if self._found.name != "soft_clamp":
            return mu
        wide = _widened(mu)
        # A sample without noise is the mean, whatever the std. Two tensors, or the launch would not be recorded.
        return reparameterize(wide, _full(wide, 0), scale=self.scale, eps=_full(wide, 0))

    def _log_variance(self):
        """In float32 at least where a clamp or a logarithm makes it."""
        value = self._halves[1]
        if self._found.name == "logvar" and self.logvar_clamp is None:
            return value
        if self._found.name == "logstd":
            return 2 * value
        wide = _widened(value)
        if self._found.name == "logvar":
            return clamp(wide, *checks.clamp(self.logvar_clamp, wide.dtype))
        # a mean of 0 and noise of 1 make a sample of the standard deviation
        return 2 * reparameterize(_full(wide, 0), wide, scale=self.scale, eps=_full(wide, 1)).log()

    def rsample(
        self,
        *,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        eps: Tensor | None = None,
    ) -> Tensor:
        """A sample [B, ...], differentiable in mu and logvar."""
        return reparameterize(*self._halves, **self._options, seed=seed, generator=generator, eps=eps)

    def sample(
        self,
        *,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        eps: Tensor | None = None,
    ) -> Tensor:
        """A sample [B, ...] without a gradient."""
        with torch.no_grad():
            return self.rsample(seed=seed, generator=generator, eps=eps)

    def sample_kl(
        self,
        *,
        prior: "DiagonalGaussian | tuple[Tensor, Tensor] | None" = None,
        reduction: str = "sample",
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        eps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A differentiable sample and the KL in one pass, as the function of that name; `prior` as in `kl`."""
        q, prior = self._beside(prior)
        posterior, function = (q._halves, sample_kl) if q._moments is None else (q._moments, sample_kl_packed)
        noise = {"seed": seed, "generator": generator, "eps": eps}
        z, kl = function(*posterior, prior=prior, reduction=reduction, **q._options, **noise)
        return z.to(self._halves[0].dtype), kl

    def mode(self) -> Tensor:
        """The most likely value: mu itself."""
        return self.mu

    def kl(
        self,
        prior: "DiagonalGaussian | tuple[Tensor, Tensor] | None" = None,
        *,
        reduction: str = "batchmean",
    ) -> Tensor:
        """KL to `prior` in nats; to N(0, I) where it is None.

        prior: a DiagonalGaussian, of any scale and dtype, or a tuple (mu, logvar) of tensors in this one's scale, in
            dtypes as `sample_kl` takes them.
        """
        q, prior = self._beside(prior)
        return gaussian_kl(*q._halves, prior=prior, reduction=reduction, **q._options)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of `value` [B, ...]: [B], nats per sample, summed over elements; differentiable in both."""
        checks.is_float("value", value)
        checks.same_shape("value", value, "mu", self._halves[0])
        checks.same_device("value", value, "mu", self._halves[0])
        mean = self._mean()
        if value.requires_grad:  # a target has no gradient, but the difference is all that counts
            wide = _widened(mean)
            mean, value = (wide - value).to(wide.dtype), torch.zeros_like(value)
        return -reconstruction_loss((mean, self._log_variance()), value, "gaussian", reduction="sample")

    def __repr__(self):
        mu = self._halves[0]
        return f"DiagonalGaussian(shape={list(mu.shape)}, dtype={mu.dtype}, device={mu.device})"

    def _beside(self, prior):
        """(posterior, the prior's tensors) in one scale and arithmetic: log-variances where these differ."""
        if not isinstance(prior, DiagonalGaussian):
            return self, prior
        given, others = self._halves[0].dtype, prior._halves[0].dtype
        if prior._found != self._found or accumulator(given) != accumulator(others):
            dtype = torch.promote_types(accumulator(given), accumulator(others))
            return DiagonalGaussian(*self._as(dtype)), prior._as(dtype)
        return self, prior._halves if prior.logvar_clamp is None else (prior.mu, prior._log_variance())

    def _as(self, dtype):
        """The mean and the log-variance in a dtype: one of float32 at least, or a logarithm would lose digits."""
        return self._mean().to(dtype), self._log_variance().to(dtype)


def _widened(tensor):
    """In the dtype of its arithmetic."""
    return tensor.to(accumulator(tensor.dtype))


def _full(tensor, value):
    """A number for each element, without their memory."""
    return tensor.new_full((), value).expand(tensor.shape)
