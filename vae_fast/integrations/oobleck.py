"""diffusers' posterior of audio latents: std = softplus(scale) + 1e-4, and a KL without the usual factor 1/2.

Its kl() to another posterior has log var - log other.var where the KL has the opposite: it stays diffusers' own. So
does sample() where PyTorch computes: there our softplus, in float64, takes six times as long as diffusers' own.
"""

import torch
from torch.nn.functional import softplus

from vae_fast.functional import gaussian_kl, reparameterize
from vae_fast.integrations.lazy import Lazy, complete, complete_all, is_untouched, source, state
from vae_fast.integrations.noise import draw
from vae_fast.integrations.patching import add, wrap
from vae_fast.integrations.tensors import result_dtype
from vae_fast.ops import backend
from vae_fast.scales import Softplus

_LAZY = ("std", "var", "logvar")
_PRIVATE = ("_raw", "_std")
_SCALE = Softplus(epsilon=1e-4)


def changes(is_patched):
    cls = _posterior()
    return [
        wrap(cls, "__init__", lambda theirs: _init(theirs, is_patched)),
        wrap(cls, "sample", _sample),
        wrap(cls, "kl", _kl),
        add(cls, "_std", Lazy("_std", lambda self: softplus(self._raw) + 1e-4)),
        add(cls, "std", Lazy("std", lambda self: self._std)),
        add(cls, "var", Lazy("var", lambda self: self._std * self._std)),
        add(cls, "logvar", Lazy("logvar", lambda self: torch.log(self._std * self._std))),
        add(cls, "__getstate__", lambda self: state(self, _LAZY, _PRIVATE)),
    ]


def _posterior():
    from diffusers.models.autoencoders.autoencoder_oobleck import OobleckDiagonalGaussianDistribution

    return OobleckDiagonalGaussianDistribution


def complete_instances():
    complete_all(_posterior(), _LAZY, _PRIVATE)


def _init(theirs, is_patched):
    def __init__(self, parameters, deterministic=False):
        if not is_patched():
            theirs(self, parameters, deterministic)
            return
        self.parameters = parameters
        self.mean, self.scale = parameters.chunk(2, dim=1)
        self._raw = source(self.scale)
        self.deterministic = deterministic
        if result_dtype(parameters) != parameters.dtype:  # autocast chooses the dtypes here, not where they are read
            complete(self, _LAZY, _PRIVATE)

    return __init__


def _is_for_kernels(posterior):
    """Whether a kernel takes mean and scale as they are: nobody has read or set a standard deviation."""
    return is_untouched(posterior, "std", "_std") and backend.choose(posterior.mean) == "triton"


def _sample(theirs):
    def sample(self, generator=None):
        if not _is_for_kernels(self):
            return theirs(self, generator)
        eps = None if generator is None else draw(self, generator)
        return reparameterize(self.mean, self._raw, scale=_SCALE, eps=eps)

    return sample


def _kl(theirs):
    def kl(self, other=None):
        if other is not None or self.deterministic or not is_untouched(self, "var", "logvar"):
            return theirs(self, other)
        # The mean over all elements times the channels is the sum over channels, averaged over batch and time.
        if _is_for_kernels(self):
            nats = gaussian_kl(self.mean, self._raw, scale=_SCALE, reduction="mean")
        else:
            nats = gaussian_kl(self.mean, 2 * torch.log(self._std), reduction="mean")
        return (2 * self.mean.shape[1] * nats).to(self.mean.dtype)

    return kl
