"""The latent op in every scale and with either KL, held against the reference: values and gradients."""

import numpy as np
import torch

from tests.kernels.latents import like_output, posterior, reference_eps, sum_to
from tests.support.tolerance import NOISE, assert_close
from tests.support.ulp import to_numpy
from vae_fast import SoftClamp, Softplus
from vae_fast.reference import gaussian, reductions
from vae_fast.reference import scales as reference_scales
from vae_fast.reference.noise import normal
from vae_fast.scales import lookup

SCALES = {
    "logvar": "logvar",
    "logstd": "logstd",
    "std": "std",
    "softplus": "softplus",
    "Softplus(0.5)": Softplus(0.5),  # far from std = 1 for no v
    "SoftClamp": SoftClamp(1.5),  # bends what the tests draw
    "SoftClamp of NVAE's code": SoftClamp(5.0, epsilon=0.01),
}


def scaled(layout, backend, scale, dtype=torch.float32, prior=None):
    """A `Posterior` whose second tensors are positive where they are standard deviations."""
    p = posterior(layout, backend, dtype, prior)
    if scale == "std":
        p.logvar = _positive(p.logvar)
        p.prior = None if p.prior is None else (p.prior[0], _positive(p.prior[1]))
    return p


def _positive(tensor):
    with torch.no_grad():
        tensor = tensor.mul(0.5).exp_()
    return tensor.requires_grad_()


def check(
    p,
    z,
    kl,
    *,
    scale="logvar",
    estimate="closed_form",
    seed=None,
    eps=None,
    num_samples=None,
    reduction=None,
    grads=torch.autograd.grad,
):
    """Hold z, kl (either may be None) and their gradients for random upstream gradients against the reference."""
    grad_z, grad_kl = (None if out is None else like_output(out) for out in (z, kl))
    oracle = Oracle(p, lookup(scale), estimate, seed, eps, num_samples, reduction, grad_z, grad_kl)
    oracle.check_values(z, kl)
    outputs, upstream = zip(*((out, grad) for out, grad in ((z, grad_z), (kl, grad_kl)) if out is not None))
    oracle.check_grads(grads(outputs, p.inputs, upstream))


def _eps_of_samples(mu, seed, samples):
    if samples is None:
        return reference_eps(mu, seed)
    flat = normal(seed, samples * mu.numel()).reshape(samples, -1)
    strides = torch.empty_like(mu, device="meta").stride()
    return np.stack([torch.from_numpy(one.copy()).as_strided(mu.shape, strides).numpy() for one in flat])


class Oracle:
    """The reference's results, with the size of the terms that they are sums of and what the noise may differ by.

    Sizes have the samples in front, one where z has no such dimension.
    """

    @np.errstate(over="ignore", invalid="ignore")
    def __init__(self, p, scale, estimate, seed, eps, samples, reduction, grad_z, grad_kl):
        self.p, self.reduction, self.monte_carlo = p, reduction, estimate == "monte_carlo"
        mu, raw = to_numpy(p.mu), to_numpy(p.logvar)
        seeded = seed is not None
        eps = _eps_of_samples(p.mu, seed, samples) if seeded else None if eps is None else to_numpy(eps)
        prior = None if p.prior is None else tuple(map(to_numpy, p.prior))
        options = {
            "prior": prior,
            "eps": eps,
            "scale": scale,
            "kl": estimate,
            "samples": samples,
            "reduction": reduction,
        }
        self.z, self.kl = gaussian.forward(mu, raw, **options)
        upstream = [None if g is None else to_numpy(g) for g in (grad_z, grad_kl)]
        self.grads = gaussian.backward(*upstream, mu, raw, **options)

        mean, self.d_mean = reference_scales.mean(mu, scale)
        self.logvar, self.std, self.d_logvar, self.d_std = reference_scales.deviation(raw, scale)
        prior_mean, prior_logvar = np.zeros_like(mu), np.zeros_like(mu)
        self.d_prior = (prior_mean, prior_mean)
        if prior is not None:
            prior_mean, slope = reference_scales.mean(np.broadcast_to(prior[0], mu.shape), scale)
            prior_logvar, _, prior_slope, _ = reference_scales.deviation(np.broadcast_to(prior[1], mu.shape), scale)
            self.d_prior = (slope, prior_slope)
        self.precision = np.exp(-prior_logvar)
        self.ratio = self.logvar - prior_logvar
        in_front = (lambda a: a[None]) if samples is None else (lambda a: a)
        each = in_front if self.monte_carlo else (lambda a: a[None])
        self.count = samples or 1
        self.eps = in_front(np.zeros_like(mu) if eps is None else np.abs(eps))
        self.noise = NOISE if seeded else 0.0
        self.mean = np.abs(mean)
        self.shift = np.abs(mean) + np.abs(prior_mean) + (self.std * self.eps if self.monte_carlo else 0)
        self.exponent = np.maximum(np.abs(self.logvar), np.abs(self.ratio)) + np.abs(prior_logvar)
        # How far the logarithm of the variance ratio may be rounded, in units of 1e-6
        self.rounding = 0.0
        if scale.name == "softplus" or scale.epsilon:
            self.rounding = 1.0
        if scale.name == "soft_clamp":
            self.rounding += np.abs(self.logvar) + np.abs(prior_logvar)
        self.grad_z = np.zeros_like(self.eps) if grad_z is None else in_front(np.abs(upstream[0]))
        self.grad_kl = np.zeros_like(self.eps)
        if grad_kl is not None:
            expanded = [reductions.expand(one, mu.shape, reduction) for one in each(upstream[1])]
            self.grad_kl = np.abs(np.stack(expanded)) / (1 if self.monte_carlo else self.count)

    def check_values(self, z, kl):
        if z is not None:
            terms = self.mean + self.std * self.eps
            terms = terms.reshape(self.z.shape)
            assert_close(z, self.z, terms=terms, exponent=self.logvar, atol=self.noise * self.std)
        if kl is None:
            return
        assert kl.dtype == (torch.float64 if self.p.mu.dtype == torch.float64 else torch.float32)
        if self.monte_carlo:
            terms = (self.shift**2 * self.precision + self.eps**2 + np.abs(self.ratio) + self.rounding) / 2
            noise = self.noise * (self.eps + self.std * self.shift * self.precision)
        else:
            terms = gaussian.divergence.expm1mx(self.ratio) / 2 + self.shift**2 * self.precision / 2
            terms, noise = terms + np.abs(np.expm1(self.ratio)) * self.rounding / 2, 0 * terms
        if self.monte_carlo:
            terms, noise = (np.stack([reductions.reduce(one, self.reduction) for one in t]) for t in (terms, noise))
            terms, noise = terms.reshape(self.kl.shape), noise.reshape(self.kl.shape)
        else:
            terms, noise = (reductions.reduce(t, self.reduction) for t in (terms, noise))
        exponent = self.exponent if self.reduction == "none" else 0.0
        assert_close(kl, self.kl, terms=terms, exponent=exponent, atol=noise)

    def check_grads(self, grads):
        for grad, oracle, terms, atol, input in zip(grads, self.grads, *self._terms(), self.p.inputs, strict=False):
            assert grad.dtype == input.dtype
            terms, atol = (np.abs(np.broadcast_to(t, self.eps.shape)).sum(0) for t in (terms, atol))
            exponent = self.exponent
            if terms.shape != oracle.shape:
                # autograd adds the gradients of an expanded prior, each rounded to its dtype
                terms, atol, exponent = sum_to(terms, oracle.shape), sum_to(atol, oracle.shape), exponent.max()
                atol = atol + 2 * torch.finfo(grad.dtype).eps * terms
            assert_close(grad, oracle, terms=terms, exponent=exponent, atol=atol)

    def _terms(self):
        """For each gradient: the sum of its absolute terms, and what the noise may differ by."""
        g, slope, noise = self.grad_kl, self.shift * self.precision, self.noise
        if self.monte_carlo:
            from_z, direct = self.grad_z + g * slope, np.ones_like(slope)
            of_slope = noise * g * self.precision * self.std
        else:
            from_z = self.grad_z
            direct = np.abs(np.expm1(self.ratio)) + np.exp(self.ratio) * self.rounding
            of_slope = 0 * slope
        terms = (
            (self.grad_z + g * slope) * self.d_mean,
            from_z * self.eps * self.d_std + g * direct / 2 * self.d_logvar,
            g * slope * self.d_prior[0],
            g * (direct + self.shift * slope) / 2 * self.d_prior[1],
        )
        of_noise = (
            of_slope * self.d_mean,
            (noise * from_z + of_slope * self.eps) * self.d_std,
            of_slope * self.d_prior[0],
            of_slope * self.shift * self.d_prior[1],
        )
        return terms, of_noise
