"""diffusers' posterior of audio latents: std = softplus(scale) + 1e-4, and a KL without the usual factor 1/2.

Its kl() to another posterior has log var - log other.var where the KL has the opposite: it stays diffusers' own, as
does sample(), which has no logvar that the fused op could take.
"""

import torch
from torch.nn.functional import softplus

from vae_fast.functional import gaussian_kl
from vae_fast.integrations.lazy import Lazy, complete, complete_all, result_dtype, source, state
from vae_fast.integrations.patching import add, wrap

_LAZY = ("std", "var", "logvar")
_PRIVATE = ("_raw", "_std")


def changes(cls):
    return [
        wrap(cls, "__init__", _init),
        wrap(cls, "kl", _kl),
        add(cls, "_std", Lazy("_std", lambda self: softplus(self._raw) + 1e-4)),
        add(cls, "std", Lazy("std", lambda self: self._std)),
        add(cls, "var", Lazy("var", lambda self: self._std * self._std)),
        add(cls, "logvar", Lazy("logvar", lambda self: torch.log(self._std * self._std))),
        add(cls, "__getstate__", lambda self: state(self, _LAZY, _PRIVATE)),
    ]


def complete_instances():
    from diffusers.models.autoencoders.autoencoder_oobleck import OobleckDiagonalGaussianDistribution

    complete_all(OobleckDiagonalGaussianDistribution, _LAZY, _PRIVATE)


def _init(theirs):
    def __init__(self, parameters, deterministic=False):
        self.parameters = parameters
        self.mean, self.scale = parameters.chunk(2, dim=1)
        self._raw = source(self.scale)
        self.deterministic = deterministic
        if result_dtype(parameters) != parameters.dtype:  # autocast chooses the dtypes here, not where they are read
            complete(self, _LAZY, _PRIVATE)

    return __init__


def _kl(theirs):
    def kl(self, other=None):
        own = vars(self)
        if other is not None or self.deterministic or "_raw" not in own or "var" in own or "logvar" in own:
            return theirs(self, other)
        # The mean over all elements times the channels is the sum over channels, averaged over batch and time.
        nats = gaussian_kl(self.mean, 2 * torch.log(self._std), reduction="mean")
        return (2 * self.mean.shape[1] * nats).to(self.mean.dtype)

    return kl
