"""What an encoder gives, and what is asked of it: checks the options, then calls the latent op."""

from vae_fast import checks, scales, seeds
from vae_fast.ops import backend, gaussian


def compute(posterior, logvar, mu, dim, prior, logvar_clamp, scale, kl, num_samples, reduction, source):
    """What is asked for: `posterior` is mu, or moments if logvar is None; `source` is None if nothing is sampled."""
    prior = checks.prior(prior, mu.shape, mu)
    clamp = checks.clamp(logvar_clamp)
    found = scales.lookup(scale)
    checks.scale(found, scale, logvar_clamp)
    if num_samples is not None:
        checks.count("num_samples", num_samples)
        num_samples = int(num_samples)
    chosen = backend.choose(mu)
    seed, eps = (None, None) if source is None else seeds.noise(mu, num_samples, *source, chosen)
    spec = gaussian.Spec(reduction, *clamp, *found, kl, num_samples, dim, chosen)
    return gaussian.latent(posterior, logvar, *prior, seed, eps, spec)


def are_default(scale, kl="closed_form"):
    return type(scale) is str and scale == "logvar" and type(kl) is str and kl == "closed_form"
