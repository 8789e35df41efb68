"""diffusers: its diagonal Gaussian posteriors, patched in place, because some thirty of its modules import the name.

from vae_fast.integrations import diffusers as fast

fast.patch()  # for the process, or `with fast.patch():`
"""

import torch

from vae_fast.functional import gaussian_kl, reconstruction_loss, reparameterize
from vae_fast.integrations import oobleck
from vae_fast.integrations.lazy import Lazy, complete_all, is_untouched, source, state
from vae_fast.integrations.noise import draw
from vae_fast.integrations.patching import Patch, Project, add, wrap
from vae_fast.integrations.tensors import is_like, result_dtype

CLAMP = (-30.0, 20.0)
_LAZY = ("logvar", "std", "var")
_PRIVATE = ("_raw", "_dtype")


def patch(*, force: bool = False) -> Patch:
    """Compute diffusers' posteriors with the fused ops, until `unpatch()` or the end of `with patch():`.

    `DiagonalGaussianDistribution`: sample(), kl() and nll() are fused; std, var and logvar are made when they are first
    read, so `parameters` must not be overwritten before. A posterior whose std, var or logvar was read or set goes on
    with diffusers' own formula and those values. `sample(generator=...)` draws diffusers' numbers; without a generator
    the noise is `vae_fast.reparameterize`'s. `OobleckDiagonalGaussianDistribution`: its attributes are lazy, kl() to
    the standard normal is fused, and sample() is where kernels compute.

    kl() has diffusers' shape and dtype: nats per sample [B] for images, [B, W] for video latents [B, C, T, H, W], whose
    kl diffusers sums over dimensions 1, 2 and 3 only. For the sum over all of them call
    `vae_fast.gaussian_kl(posterior.mean, posterior.logvar)`. sample(), kl() and nll() can be differentiated once.

    Patch before torch.compile. Returns a `Patch`, which says what it patched. Taking it back searches all living
    objects for posteriors, to complete them: a fraction of a second. force: take an untested version.

    Raises ImportError where diffusers is missing, and RuntimeError where it is not a version that was tested.
    """
    return _project.patch(force)


def unpatch() -> None:
    """Put diffusers' own methods back; posteriors made in between stay usable."""
    _project.unpatch()


def _changes():
    cls = _posterior()
    return [
        wrap(cls, "__init__", _init),
        wrap(cls, "sample", _sample),
        wrap(cls, "kl", _kl),
        wrap(cls, "nll", _nll),
        add(cls, "logvar", Lazy("logvar", _clamped)),
        add(cls, "std", Lazy("std", lambda self: torch.exp((0.5 * _clamped(self)).to(self._dtype)))),
        add(cls, "var", Lazy("var", lambda self: torch.exp(_clamped(self).to(self._dtype)))),
        add(cls, "__getstate__", lambda self: state(self, _LAZY, _PRIVATE)),
        *oobleck.changes(_is_patched),
    ]


def _posterior():
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    return DiagonalGaussianDistribution


def _complete():
    complete_all(_posterior(), _LAZY, _PRIVATE)
    oobleck.complete_instances()


def _is_patched():
    """Asked by each __init__: for code that was compiled under the patch this is the reason to be compiled anew."""
    return _project.is_patched


_project = Project("diffusers", "diffusers", ("0.42.1",), _changes, _complete)


def _clamped(posterior):
    return posterior._raw.clamp(*CLAMP)


def _init(theirs):
    def __init__(self, parameters, deterministic=False):
        if not _is_patched():
            theirs(self, parameters, deterministic)
            return
        self.parameters = parameters
        self.mean, second = torch.chunk(parameters, 2, dim=1)
        self._dtype = result_dtype(parameters)
        self._raw = source(second)
        self.deterministic = deterministic
        if deterministic:
            self.var = self.std = torch.zeros_like(self.mean)

    return __init__


def _sample(theirs):
    def sample(self, generator=None):
        if not is_untouched(self, "std"):
            return theirs(self, generator)
        eps = None if generator is None else draw(self, generator)
        mean, logvar = self.mean.to(self._dtype), self._raw.to(self._dtype)
        return reparameterize(mean, logvar, logvar_clamp=CLAMP, eps=eps)

    return sample


def _kl(theirs):
    def kl(self, other=None):
        # Below 4 dimensions diffusers raises an error, and so does this.
        if not _is_fused(self) or self.mean.dim() < 4 or not (other is None or _is_prior(other, self)):
            return theirs(self, other)
        prior = None if other is None else (other.mean, _clamped(other))
        reduction = "sample" if self.mean.dim() == 4 else "none"
        nats = gaussian_kl(self.mean, self._raw, prior=prior, logvar_clamp=CLAMP, reduction=reduction)
        nats = nats if reduction == "sample" else nats.sum(dim=(1, 2, 3))
        return nats.to(torch.promote_types(self._dtype, result_dtype(self.mean)))

    return kl


def _is_fused(posterior):
    return not posterior.deterministic and is_untouched(posterior, "var", "logvar")


def _is_prior(other, posterior):
    return isinstance(other, _posterior()) and _is_fused(other) and is_like(other.mean, posterior.mean)


def _nll(theirs):
    def nll(self, sample, dims=(1, 2, 3)):
        if not _is_fused(self) or not isinstance(sample, torch.Tensor) or not is_like(sample, self.mean):
            return theirs(self, sample, dims)
        mean = self.mean
        if sample.requires_grad:  # a target has no gradient, but the difference is all that counts
            mean, sample = mean - sample, torch.zeros_like(sample)
        each = reconstruction_loss((mean, _clamped(self)), sample, "gaussian", reduction="none")
        return each.sum(dim=dims).to(torch.promote_types(self._dtype, result_dtype(mean)))

    return nll
