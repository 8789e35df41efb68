"""scvi-tools: the KL of two Normals in the loss of its VAE.

from vae_fast.integrations import scvi as fast

fast.patch()  # for the process, or `with fast.patch():`
"""

from torch.distributions import Normal, kl_divergence, register_kl

from vae_fast.functional import gaussian_kl
from vae_fast.integrations.patching import Project, wrap


def patch(*, force=False):
    """Compute the KL terms of scvi-tools' VAE with the fused op, until `unpatch()` or the end of `with patch():`.

    `scvi.module.VAE.loss`, which SCVI trains with, for the cells' latents and for the library size. All that it returns
    keeps its meaning, shape and dtype. The latents are few: the gain is accuracy where posterior and prior nearly
    agree. It can be differentiated once. Returns a `Patch`, which says what it patched. force: take an untested
    version.

    Raises ImportError where scvi-tools is missing, and RuntimeError where it is not a version that was tested.
    """
    return _project.patch(force)


def unpatch():
    """Put scvi-tools' own functions back."""
    _project.unpatch()


def _changes():
    # The likelihoods' functions belong here too: log_nb_positive and log_zinb_positive of
    # scvi.distributions._negative_binomial, which is a module and can be wrapped as a class can.
    from scvi.module import VAE

    return [wrap(VAE, "loss", _loss)]


_project = Project("scvi-tools", "scvi", ("1.4.2",), _changes)


class _Fused(Normal):
    """A Normal whose KL to another is fused. Registered for this type alone: other users of torch keep theirs."""


@register_kl(_Fused, Normal)
def _kl(posterior, prior):
    mu, like = posterior.loc, prior.loc
    if (mu.shape, mu.dtype, mu.device) != (like.shape, like.dtype, like.device) or not mu.dim():
        return kl_divergence(Normal(posterior.loc, posterior.scale, validate_args=False), prior)
    prior = (prior.loc, 2 * prior.scale.log())
    return gaussian_kl(mu, 2 * posterior.scale.log(), prior=prior, reduction="none").to(mu.dtype)


def _loss(theirs):
    def loss(self, tensors, inference_outputs, *args, **kwargs):
        fused = {name: _fused(value) for name, value in inference_outputs.items()}
        return theirs(self, tensors, fused, *args, **kwargs)

    return loss


def _fused(value):
    return _Fused(value.loc, value.scale, validate_args=False) if type(value) is Normal else value
