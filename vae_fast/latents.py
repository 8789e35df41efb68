"""What an encoder gives, and what is asked of it: checks the options, then calls the latent op."""

from vae_fast import checks, scales, seeds
from vae_fast.ops import backend, gaussian


def compute(
    posterior,
    logvar,
    mu,
    *,
    dim=0,
    prior=None,
    logvar_clamp,
    scale,
    kl="closed_form",
    num_samples=None,
    reduction=None,
    noise=None,
):
    """(z or None, kl or None). posterior: mu, or moments along `dim` where logvar is None.

    noise: (seed, generator, eps), or None where nothing is sampled; reduction: None where there is no kl.
    """
    prior = checks.prior(prior, mu.shape, mu)
    clamp = checks.clamp(logvar_clamp, mu.dtype)
    found = scales.lookup(scale, logvar_clamp)
    if num_samples is not None:
        num_samples = checks.count("num_samples", num_samples)
    chosen = backend.choose(mu)
    seed, eps = (None, None) if noise is None else seeds.noise(mu, num_samples, *noise, chosen)
    spec = gaussian.Spec(reduction, *clamp, *found, kl, num_samples, dim, chosen)
    return gaussian.latent(posterior, logvar, *prior, seed, eps, spec)


def are_default(scale, kl="closed_form"):
    return type(scale) is str and scale == "logvar" and type(kl) is str and kl == "closed_form"
