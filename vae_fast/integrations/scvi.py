"""scvi-tools: its count likelihoods, and the KL of two Normals in the loss of its VAE.

from vae_fast.integrations import scvi as fast

fast.patch()  # for the process, or `with fast.patch():`
"""

from torch.distributions import Normal, kl_divergence, register_kl

from vae_fast.functional import gaussian_kl
from vae_fast.integrations import counts
from vae_fast.integrations.patching import Patch, Project, wrap
from vae_fast.integrations.tensors import is_like


def patch(*, force: bool = False) -> Patch:
    """Compute scvi-tools' likelihoods of counts and the KL of its VAE fused, until `unpatch()` or the end of `with`.

    `scvi.distributions`: log_prob of `NegativeBinomial`, `ZeroInflatedNegativeBinomial` and `Poisson`, elementwise and
    of the shape and dtype that it had, for every model that uses them. `log_nb_positive` and `log_zinb_positive` run
    their own code for another eps, log_fn or lgamma_fn, for fewer than two dimensions, and where x requires a gradient.
    In float32 the negative binomials stay exact where theta is large, where scvi-tools' formula cancels. A Poisson
    count of 1 at a rate of 0 gets the least float32 number, not -inf. Not patched: `log_mixture_nb` with one theta for
    both components, and torch's own Poisson, which MULTIVAE and gimVI take.

    `scvi.module.VAE.loss`, which SCVI trains with: the reconstruction is summed over genes in the pass that computes
    it, and the KL of the latents and of the library size are fused. All that it returns keeps its meaning, shape and
    dtype.

    What is fused can be differentiated once. A parameter that a distribution broadcast, such as a theta of one number
    a gene, gets its gradient at its own size: `torch.autograd.grad` for the broadcast `px.theta` finds it unused,
    unless it was asked to `retain_grad()` before.

    Returns a `Patch`, which says what it patched. force: take an untested version.

    Raises ImportError where scvi-tools is missing, and RuntimeError where it is not a version that was tested.
    """
    return _project.patch(force)


def unpatch() -> None:
    """Put scvi-tools' own functions back."""
    _project.unpatch()


def _changes():
    from scvi.module import VAE

    return [wrap(VAE, "loss", _loss), *counts.changes()]


_project = Project("scvi-tools", "scvi", ("1.4.2",), _changes)


class _Fused(Normal):
    """A Normal whose KL to another is fused. Registered for this type alone: other users of torch keep theirs."""


@register_kl(_Fused, Normal)
def _kl(posterior, prior):
    mu = posterior.loc
    if not is_like(mu, prior.loc) or not mu.dim():
        return kl_divergence(Normal(mu, posterior.scale, validate_args=False), prior)
    prior = (prior.loc, 2 * prior.scale.log())
    return gaussian_kl(mu, 2 * posterior.scale.log(), prior=prior, reduction="none").to(mu.dtype)


def _loss(theirs):
    def loss(self, tensors, inference_outputs, generative_outputs, *args, **kwargs):
        inferred = {name: _fused(value) for name, value in inference_outputs.items()}
        generated = {name: counts.summed_over_genes(value) for name, value in generative_outputs.items()}
        return theirs(self, tensors, inferred, generated, *args, **kwargs)

    return loss


def _fused(value):
    return _Fused(value.loc, value.scale, validate_args=False) if type(value) is Normal else value
