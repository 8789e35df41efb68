"""Several samples of each latent: the noise, both KLs and the summed gradients, against the reference."""

import itertools

import pytest
import torch

from tests.kernels.latents import DTYPES, REDUCTIONS, drawer
from tests.kernels.scaled import SCALES, check, scaled
from vae_fast import reparameterize, sample_kl, sample_kl_packed

SEED = 2**40 + 3
KLS = ["closed_form", "monte_carlo"]
LAYOUTS = [
    "the smallest",
    "a batch alone",
    "odd",  # no whole quads: the samples begin anywhere in a counter
    "primes",
    "full tiles",
    "channels_last images",
    "rows split over programs",
    "chunk(2, 1) of channels_last images",
    "the batch innermost",
]


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kl", KLS)
def test_sample_kl_of_every_layout(kl, layout, samples, backend):
    p = scaled(layout, backend, "logvar")
    z, value = sample_kl(p.mu, p.logvar, kl=kl, seed=SEED, num_samples=samples)
    assert z.shape == (samples, *p.mu.shape)
    assert z[0].stride() == torch.empty_like(p.mu).stride()
    assert value.shape == ((samples, len(p.mu)) if kl == "monte_carlo" else (len(p.mu),))
    check(p, z, value, estimate=kl, seed=SEED, num_samples=samples, reduction="sample")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("layout", ["odd", "rows split over programs"])
@pytest.mark.parametrize("kl", KLS)
def test_every_reduction(kl, layout, reduction, backend):
    p = scaled(layout, backend, "logvar")
    z, value = sample_kl(p.mu, p.logvar, kl=kl, seed=SEED, num_samples=2, reduction=reduction)
    check(p, z, value, estimate=kl, seed=SEED, num_samples=2, reduction=reduction)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", ["seed", "eps"])
@pytest.mark.parametrize("prior", [None, (5, 3, 7), (1, 3, 1)])
@pytest.mark.parametrize(("scale", "kl"), [*itertools.product(["logvar", "softplus", "SoftClamp"], KLS)])
def test_every_option(scale, kl, prior, source, dtype, backend):
    p = scaled("odd", backend, SCALES[scale], dtype, prior)
    eps = drawer(backend.device, dtype, seed=4)(7, 3, 5, 2).permute(3, 2, 1, 0)
    options = {"scale": SCALES[scale], "num_samples": 2, **({"seed": SEED} if source == "seed" else {"eps": eps})}
    z, value = sample_kl(p.mu, p.logvar, prior=p.prior, kl=kl, **options)
    check(p, z, value, estimate=kl, reduction="sample", **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reparameterize(layout, backend):
    p = scaled(layout, backend, "logvar")
    check(p, reparameterize(p.mu, p.logvar, seed=SEED, num_samples=3), None, seed=SEED, num_samples=3)


@pytest.mark.parametrize("used", ["z", "kl"])
@pytest.mark.parametrize("kl", KLS)
def test_the_gradient_of_one_output_alone(kl, used, backend):
    p = scaled("odd", backend, "logvar", prior=(3, 7) if used == "kl" else None)
    z, value = sample_kl(p.mu, p.logvar, prior=p.prior, kl=kl, seed=SEED, num_samples=2)
    outputs = (z, None) if used == "z" else (None, value)
    reduction = None if used == "z" else "sample"
    check(p, *outputs, estimate=kl, seed=SEED, num_samples=2, reduction=reduction)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("kl", KLS)
def test_packed(kl, memory_format, backend):
    moments = drawer(backend.device, torch.float32)(2, 6, 5, 4).to(memory_format=memory_format).requires_grad_()
    z, value = sample_kl_packed(moments, kl=kl, seed=SEED, num_samples=3)
    p = scaled("odd", backend, "logvar")
    p.mu, p.logvar = moments.chunk(2, 1)

    def grads(outputs, _, upstream):
        (grad,) = torch.autograd.grad(outputs, moments, upstream)
        return grad.chunk(2, 1)

    check(p, z, value, estimate=kl, seed=SEED, num_samples=3, reduction="sample", grads=grads)


@pytest.mark.parametrize("shape", [(5, 3, 7), (4, 8)])
def test_the_first_sample_is_the_one_drawn_alone(shape, backend):
    mu, logvar = (drawer(backend.device, torch.float32, seed)(*shape) for seed in (0, 1))
    many, each = sample_kl(mu, logvar, seed=SEED, kl="monte_carlo", num_samples=3)
    one, alone = sample_kl(mu, logvar, seed=SEED, kl="monte_carlo")
    torch.testing.assert_close(many[0], one, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(each[0], alone, rtol=2e-6, atol=1e-5)
    assert not torch.equal(many[0], many[1])


def test_an_expanded_upstream_gradient(backend):
    """That of a sum over samples: all read one number."""
    p = scaled("odd", backend, "logvar")
    z, kl = sample_kl(p.mu, p.logvar, kl="monte_carlo", seed=SEED, num_samples=3)
    expanded = torch.autograd.grad((z.sum() + kl.sum()), p.inputs, retain_graph=True)
    dense = torch.autograd.grad((z, kl), p.inputs, (torch.ones_like(z), torch.ones_like(kl)))
    for ours, same in zip(expanded, dense):
        assert torch.equal(ours, same)


@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)])
def test_empty(shape, kl, backend):
    mu, logvar = (torch.zeros(shape, device=backend.device).requires_grad_() for _ in range(2))
    for reduction in REDUCTIONS:
        z, value = sample_kl(mu, logvar, kl=kl, seed=SEED, num_samples=2, reduction=reduction)
        assert z.shape == (2, *shape)
        assert [g.shape for g in torch.autograd.grad(z.sum() + value.sum(), (mu, logvar))] == [mu.shape, mu.shape]
