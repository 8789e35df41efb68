"""The latent ops, value and gradient, against the reference: every layout, dtype, reduction and option."""

import itertools

import pytest
import torch

from tests.kernels.latents import DTYPES, LAYOUTS, REDUCTIONS, check, drawer, posterior
from vae_fast import gaussian_kl, reparameterize, sample_kl, sample_kl_packed

SEED = 2**40 + 3
CLAMP = (-0.75, 0.5)
ABOVE_ZERO = (0.25, 1.0)  # what lies outside the tensor is loaded as 0, and clamped to a KL that is not 0
PRIORS = {"no prior": None, "a full prior": (5, 3, 7), "a prior a latent": (3, 7), "a prior a channel": (1, 3, 1)}


LARGE = ["full tiles", "primes", "the longest row of one program", "rows split over programs", "one long row"]
GRID = [*itertools.product((name for name in LAYOUTS if name not in LARGE), REDUCTIONS)]
GRID += [*itertools.product(LARGE, ["sample", "sum"]), ("full tiles", "latent"), ("primes", "latent")]


@pytest.mark.parametrize(("layout", "reduction"), GRID)
def test_sample_kl_of_every_layout_and_reduction(layout, reduction, backend):
    p = posterior(layout, backend)
    z, kl = sample_kl(p.mu, p.logvar, seed=SEED, reduction=reduction)
    assert z.dtype == p.mu.dtype
    assert z.stride() == torch.empty_like(p.mu).stride()
    check(p, z, kl, seed=SEED, reduction=reduction)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize(
    ("layout", "reduction"),
    [
        *itertools.product(["odd", "chunk(2, 1)", "images"], REDUCTIONS),
        *itertools.product(["rows split over programs"], ["sample", "sum"]),
    ],
)
def test_sample_kl_of_every_dtype(layout, reduction, dtype, backend):
    p = posterior(layout, backend, dtype)
    z, kl = sample_kl(p.mu, p.logvar, seed=SEED, reduction=reduction)
    assert z.dtype == dtype
    check(p, z, kl, seed=SEED, reduction=reduction)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("clamp", [None, CLAMP], ids=["free", "clamped"])
@pytest.mark.parametrize("source", ["seed", "eps"])
@pytest.mark.parametrize("prior", PRIORS)
def test_sample_kl_with_every_option(prior, source, clamp, dtype, backend):
    p = posterior("odd", backend, dtype, PRIORS[prior])
    noise = {"seed": SEED} if source == "seed" else {"eps": drawer(backend.device, dtype, seed=4)(5, 3, 7)}
    # a reduction of each kind in turn
    reduction = REDUCTIONS[(len(prior) + DTYPES.index(dtype) + len(source)) % len(REDUCTIONS)]
    z, kl = sample_kl(p.mu, p.logvar, prior=p.prior, logvar_clamp=clamp, reduction=reduction, **noise)
    check(p, z, kl, clamp=clamp, reduction=reduction, **noise)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_prior_with_every_reduction(reduction, backend):
    p = posterior("odd", backend, prior=(3, 7))
    z, kl = sample_kl(p.mu, p.logvar, prior=p.prior, logvar_clamp=CLAMP, reduction=reduction, seed=SEED)
    check(p, z, kl, clamp=CLAMP, reduction=reduction, seed=SEED)


@pytest.mark.parametrize("eps_dtype", DTYPES, ids=str)
def test_eps_may_have_a_dtype_and_a_layout_of_its_own(eps_dtype, backend):
    p = posterior("odd", backend)
    eps = drawer(backend.device, eps_dtype, seed=4)(7, 3, 5).permute(2, 1, 0)
    z, kl = sample_kl(p.mu, p.logvar, eps=eps)
    check(p, z, kl, eps=eps.float(), reduction="sample")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reparameterize_of_every_layout(layout, backend):
    p = posterior(layout, backend)
    check(p, reparameterize(p.mu, p.logvar, seed=SEED), None, seed=SEED)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("clamp", [None, CLAMP], ids=["free", "clamped"])
@pytest.mark.parametrize("source", ["seed", "eps"])
def test_reparameterize_with_every_option(source, clamp, dtype, backend):
    p = posterior("odd", backend, dtype)
    noise = {"seed": SEED} if source == "seed" else {"eps": drawer(backend.device, dtype, seed=4)(5, 3, 7)}
    z = reparameterize(p.mu, p.logvar, logvar_clamp=clamp, **noise)
    check(p, z, None, clamp=clamp, **noise)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("prior", "clamp"), [(None, None), (None, ABOVE_ZERO), ((3, 7), None), ((5, 3, 7), CLAMP)])
def test_gaussian_kl(prior, clamp, reduction, dtype, backend):
    p = posterior("odd", backend, dtype, prior)
    kl = gaussian_kl(p.mu, p.logvar, prior=p.prior, logvar_clamp=clamp, reduction=reduction)
    check(p, None, kl, clamp=clamp, reduction=reduction)


PACKED = {
    "features": ((6, 24), 1, torch.contiguous_format),
    "the last of three": ((3, 4, 10), -1, torch.contiguous_format),
    "channels": ((2, 6, 5, 5), 1, torch.contiguous_format),
    "channels_last": ((2, 6, 5, 5), 1, torch.channels_last),
    "rows": ((2, 3, 8, 5), 2, torch.contiguous_format),
    "split rows": ((1, 8208), 1, torch.contiguous_format),
}


@pytest.mark.parametrize(
    ("dtype", "reduction"), [*itertools.product(DTYPES, ["sample"]), *((torch.float32, r) for r in REDUCTIONS[2:])]
)
@pytest.mark.parametrize("layout", PACKED)
def test_sample_kl_packed(layout, dtype, reduction, backend):
    shape, dim, memory_format = PACKED[layout]
    moments = drawer(backend.device, dtype)(*shape).to(memory_format=memory_format).requires_grad_()
    z, kl = sample_kl_packed(moments, dim, seed=SEED, reduction=reduction, logvar_clamp=CLAMP)
    p = posterior("odd", backend)
    p.mu, p.logvar = moments.chunk(2, dim)

    def grads(outputs, _, upstream):
        (grad,) = torch.autograd.grad(outputs, moments, upstream)
        assert grad.stride() == moments.stride()
        return grad.chunk(2, dim)

    check(p, z, kl, clamp=CLAMP, seed=SEED, reduction=reduction, grads=grads)


@pytest.mark.parametrize("wanted", ["mu", "logvar", "prior", "nothing"])
@pytest.mark.parametrize("used", ["z", "kl", "both"])
def test_gradients_of_what_is_used_in_what_wants_them(used, wanted, backend):
    p = posterior("odd", backend, prior=(3, 7))
    for name, input in zip(("mu", "logvar", "prior", "prior"), p.inputs):
        input.requires_grad_(name == wanted)
    z, kl = sample_kl(p.mu, p.logvar, prior=p.prior, seed=SEED)
    everything = posterior("odd", backend, prior=(3, 7))
    outputs = sample_kl(everything.mu, everything.logvar, prior=everything.prior, seed=SEED)
    for ours, same in zip((z, kl), outputs):
        torch.testing.assert_close(ours, same, rtol=2e-6, atol=1e-7)
        assert ours.requires_grad == (wanted != "nothing")
    if wanted == "nothing":
        return
    loss, same = ({"z": z.sum(), "kl": kl.sum(), "both": z.sum() + kl.sum()}[used] for z, kl in ((z, kl), outputs))
    loss.backward()
    same.backward()
    for input, other in zip(p.inputs, everything.inputs):
        expected = other.grad if input.requires_grad else None
        assert (input.grad is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(input.grad, expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"scale": "softplus"}, {"kl": "monte_carlo", "num_samples": 2}], ids=str)
def test_a_kl_of_each_latent_lies_as_mu_does_wherever_logvar_lies(options, backend):
    """As compilers are told."""
    rows = torch.zeros(2, 3, 4, 5, device=backend.device)
    images = rows.to(memory_format=torch.channels_last)
    for mu, logvar in ((rows, images), (images, rows)):
        kl = sample_kl(mu, logvar, reduction="latent", seed=5, **options)[1]
        assert kl.stride()[-3:] == torch.empty_like(mu[0]).stride()
