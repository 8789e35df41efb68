"""What an encoder gives, and what is asked of it: checks the options, then calls the latent op."""

import torch

from vae_fast import checks, scales, seeds
from vae_fast.ops import backend, gaussian, kinds, small_latents
from vae_fast.ops.gaussian import APART, NO_KL

NOTHING = (None, None)


def compute(posterior, logvar, dim, prior, logvar_clamp, scale, kl, num_samples, reduction, noise):
    """The tensors asked for, z before kl. posterior: mu where `dim` is APART; or moments along it, and logvar is None.

    noise: (seed, generator, eps), or None where nothing is sampled. reduction may be NO_KL. The rest as in
    `vae_fast.sample_kl`.
    """
    options = prior, logvar_clamp, scale, kl, num_samples, reduction, noise
    made = small_latents.compute(posterior, logvar, dim, *options)
    if made is not None:
        return made
    seed, generator, eps = noise or (None, None, None)
    key, kind = kinds.find(
        (
            posterior, logvar, eps, seed if isinstance(seed, torch.Tensor) else None,
            *(prior if isinstance(prior, (tuple, list)) else ()),
        ),
        dim, type(dim), prior is None, logvar_clamp, isinstance(logvar_clamp, tuple) and (*map(type, logvar_clamp),),
        scale, kl, num_samples, type(num_samples), reduction, noise is None, seed is None, generator is None,
    )  # fmt: skip
    if kind is not None:
        prior = NOTHING if prior is None else _expanded(prior, kind.shape)
        seed = None if noise is None or eps is not None else seeds.of(seed, generator, "mu", posterior)
        return kind(posterior, logvar, *prior, seed, eps)
    if dim is APART:
        checks.posterior(posterior, logvar)
    mu, dim = (posterior, 0) if dim is APART else _first_half(posterior, dim)
    if reduction is NO_KL:
        reduction = None
    else:
        checks.choice("reduction", reduction, checks.LATENT_REDUCTIONS)
    checks.choice("kl", kl, checks.KLS)
    prior = NOTHING if prior is None else _expanded(checks.prior(prior, mu.shape, mu), mu.shape)
    clamp = checks.clamp(logvar_clamp, mu.dtype)
    found = scales.lookup(scale, logvar_clamp)
    if num_samples is not None:
        num_samples = checks.count("num_samples", num_samples)
    chosen = backend.choose(mu)
    seed, eps = NOTHING if noise is None else seeds.noise(mu, num_samples, *noise, chosen)
    spec = gaussian.Spec(reduction, *clamp, *found, kl, num_samples, dim, chosen)
    kinds.keep(key, (posterior, logvar, *prior), gaussian.Kind, spec, mu)
    return gaussian.latent(posterior, logvar, *prior, seed, eps, spec)


def _first_half(moments, dim):
    """(mu, dim counted from the front) of moments along `dim`."""
    dim = checks.moments(moments, dim)
    return moments.narrow(dim, 0, moments.shape[dim] // 2), dim


def _expanded(prior, shape):
    return tuple(t if checks.has_shape(t, shape) else t.expand(shape) for t in prior)
