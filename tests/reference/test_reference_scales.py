"""Scales, the Monte Carlo KL and several samples: against torch.distributions, autograd and finite differences."""

import itertools

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from vae_fast.reference import gaussian, noise, reductions, scales

pytestmark = pytest.mark.filterwarnings("error")

SCALES = {  # mean and standard deviation as a PyTorch user would write them
    "logvar": lambda m, v: (m, (v / 2).exp()),
    "logstd": lambda m, v: (m, v.exp()),
    "std": lambda m, v: (m, v),
    "softplus": lambda m, v: (m, F.softplus(v) + 1e-4),
    ("softplus", 0.0, 0.25): lambda m, v: (m, F.softplus(v) + 0.25),
    ("soft_clamp", 5.0, 0.0): lambda m, v: (5 * (m / 5).tanh(), (5 * (v / 5).tanh()).exp()),
    ("soft_clamp", 1.5, 0.01): lambda m, v: (1.5 * (m / 1.5).tanh(), (1.5 * (v / 1.5).tanh()).exp() + 0.01),
}
KLS = ["closed_form", "monte_carlo"]


def draw(seed, scale, shapes):
    rng = np.random.default_rng(seed)
    mu, v = (rng.normal(size=shape) for shape in shapes)
    return mu, np.exp(v / 2) if scale == "std" else v


def torch_latent(leaves, prior, eps, scale, kl, reduction):
    """z and the KL from torch.distributions."""
    posterior = Normal(*SCALES[scale](*leaves))
    z = posterior.loc + posterior.scale * eps
    if prior:
        q = Normal(*(t.expand(posterior.loc.shape) for t in SCALES[scale](*prior)))
    else:
        q = Normal(torch.zeros_like(posterior.loc), torch.ones_like(posterior.loc))
    reduce = {"sample": lambda t: t.flatten(1).sum(1), "latent": lambda t: t.mean(0), "mean": torch.mean}[reduction]
    if kl == "closed_form":
        return z, reduce(kl_divergence(posterior, q))
    terms = posterior.log_prob(z) - q.log_prob(z)
    return z, torch.stack([reduce(one) for one in terms]) if eps.dim() > leaves[0].dim() else reduce(terms)


@pytest.mark.parametrize("samples", [None, 3])
@pytest.mark.parametrize("prior_shapes", [None, ((2, 3, 4), (4,))])
@pytest.mark.parametrize("reduction", ["sample", "latent", "mean"])
@pytest.mark.parametrize(("scale", "kl"), [*itertools.product(SCALES, KLS)])
def test_values_and_gradients_equal_those_of_torch_distributions(scale, kl, reduction, prior_shapes, samples):
    mu, v = draw(0, scale, [(2, 3, 4)] * 2)
    prior = () if prior_shapes is None else draw(1, scale, prior_shapes)
    eps = noise.normal(11, mu.size * (samples or 1)).reshape((() if samples is None else (samples,)) + mu.shape)
    leaves = [torch.tensor(a, requires_grad=True) for a in (mu, v, *prior)]
    theirs = torch_latent(leaves[:2], leaves[2:], torch.tensor(eps), scale, kl, reduction)
    options = {"prior": prior or None, "scale": scale, "kl": kl, "samples": samples, "reduction": reduction}
    ours = gaussian.forward(mu, v, seed=11, **options)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their.detach(), rtol=1e-10, atol=1e-12)
    upstream = [np.random.default_rng(4).normal(size=our.shape) for our in ours]
    for used in itertools.product((True, False), repeat=2):
        gradients = gaussian.backward(*(g if u else None for g, u in zip(upstream, used)), mu, v, seed=11, **options)
        loss = sum(leaf.sum() * 0 for leaf in leaves)
        loss = loss + sum((t * torch.tensor(g)).sum() for t, g, u in zip(theirs, upstream, used) if u)
        expected = torch.autograd.grad(loss, leaves, retain_graph=True)
        for our, their in zip(gradients, expected, strict=False):
            np.testing.assert_allclose(our, their, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("scale", "kl"), [*itertools.product(SCALES, KLS)])
def test_gradients_equal_finite_differences(scale, kl, numerical_gradient):
    arrays = (*draw(5, scale, [(2, 3)] * 2), *draw(6, scale, [(2, 3)] * 2))
    rng = np.random.default_rng(7)

    def options(arrays):
        return {"prior": arrays[2:], "seed": 1, "scale": scale, "kl": kl, "samples": 2, "reduction": "sample"}

    z, value = gaussian.forward(*arrays[:2], **options(arrays))
    upstream = rng.normal(size=z.shape), rng.normal(size=value.shape)
    gradients = gaussian.backward(*upstream, *arrays[:2], **options(arrays))
    for place, array in enumerate(arrays):

        def loss(x, place=place):
            changed = [x if i == place else a for i, a in enumerate(arrays)]
            made = gaussian.forward(*changed[:2], **options(changed))
            return sum(np.sum(g * t) for g, t in zip(upstream, made, strict=True))

        np.testing.assert_allclose(gradients[place], numerical_gradient(loss, array), rtol=1e-6, atol=1e-8)


def test_the_monte_carlo_kl_averages_to_the_closed_form():
    mu, logvar = draw(2, "logvar", [(1, 3)] * 2)
    _, exact = gaussian.forward(mu, logvar, reduction="sum")
    _, drawn = gaussian.forward(mu, logvar, seed=3, kl="monte_carlo", samples=40000, reduction="sum")
    assert abs(drawn.mean() - exact) < 4 * drawn.std() / 200


def test_samples_are_drawn_one_behind_the_other():
    mu, logvar = draw(2, "logvar", [(3, 5)] * 2)
    z, _ = gaussian.forward(mu, logvar, seed=3, samples=2)
    np.testing.assert_allclose((z - mu) / np.exp(logvar / 2), noise.normal(3, 30).reshape(2, 3, 5), atol=1e-12)
    np.testing.assert_array_equal(z[0], gaussian.forward(mu, logvar, seed=3)[0])


def test_every_reduction_of_several_samples_has_them_in_front():
    mu, logvar = draw(2, "logvar", [(3, 5)] * 2)
    for reduction in reductions.REDUCTIONS:
        one = gaussian.forward(mu, logvar, seed=3, kl="monte_carlo", reduction=reduction)[1]
        many = gaussian.forward(mu, logvar, seed=3, kl="monte_carlo", samples=2, reduction=reduction)[1]
        assert many.shape == (2, *np.shape(one))
        np.testing.assert_allclose(many[0], one)


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="scale is 'variance'"):
        scales.deviation(np.ones(1), "variance")
