"""The noise as the ops draw it: a pure function of the seed and of the element's position in z's memory."""

import functools
import operator

import numpy as np
import pytest
import scipy.stats
import torch

from tests.support.tolerance import assert_noise_close
from vae_fast import reparameterize, sample_kl, seeds
from vae_fast.kernels import tiling
from vae_fast.reference import noise as reference

SHAPES = [
    (1, 1),  # the smallest
    (6, 4),  # one quad a row
    (5, 7),  # odd rows: a quad runs on from one row into the next
    (2, 8, 5, 4),  # images
]
LARGE = [
    (257, 31),  # primes: every tail is masked
    (1, 6001),  # one row of several tiles, and an odd end
    (2, 4100),  # rows of several tiles, of whole quads
    (2, 4099),  # the same without
]


def eps_of(mu, seed):
    """The z of a standard normal posterior is its eps."""
    return reparameterize(mu, torch.zeros_like(mu), seed=seed)


def reference_eps(like, seed):
    flat = torch.from_numpy(reference.normal(seed, like.numel()))
    return flat.as_strided(like.shape, torch.empty_like(like, device="meta").stride())


LAYOUTS = {
    "contiguous": lambda shape, device: torch.zeros(shape, device=device),
    "the batch innermost": lambda shape, device: torch.zeros(*shape[1:], shape[0], device=device).movedim(-1, 0),
    "a chunk of the features": lambda shape, device: torch.zeros(
        shape[0], 2 * shape[1], *shape[2:], device=device
    ).chunk(2, 1)[1],
    "a chunk of the last dimension": lambda shape, device: torch.zeros(*shape[:-1], 2 * shape[-1], device=device).chunk(
        2, -1
    )[0],
    "every other element": lambda shape, device: torch.zeros(*shape, 2, device=device)[..., 1],
}


GRID = [(shape, layout) for shape in SHAPES for layout in LAYOUTS]
GRID += [(shape, layout) for shape in LARGE for layout in ("contiguous", "a chunk of the features")]


@pytest.mark.parametrize(("shape", "layout"), GRID, ids=str)
def test_eps_depends_on_the_position_in_memory_of_z_alone(shape, layout, backend):
    mu = LAYOUTS[layout](shape, backend.device)
    assert_noise_close(eps_of(mu, 11), reference_eps(mu, 11))


@pytest.mark.parametrize("reduction", ["none", "sample", "latent", "sum"])
@pytest.mark.parametrize(("shape", "layout"), GRID[: len(SHAPES) * len(LAYOUTS)], ids=str)
def test_eps_does_not_depend_on_what_else_is_computed(shape, layout, reduction, backend):
    mu = LAYOUTS[layout](shape, backend.device)
    assert torch.equal(sample_kl(mu, torch.zeros_like(mu), seed=11, reduction=reduction)[0], eps_of(mu, 11))


@pytest.mark.parametrize("channels", [3, 4])
def test_eps_of_channels_last_images(channels, backend):
    mu = torch.zeros(2, channels, 5, 6, device=backend.device).to(memory_format=torch.channels_last)
    z = eps_of(mu, 11)
    assert z.is_contiguous(memory_format=torch.channels_last)
    assert_noise_close(z.permute(0, 2, 3, 1).flatten(), reference.normal(11, z.numel()))


@pytest.mark.usefixtures("planning_anew")
@pytest.mark.parametrize("constants", [{"FLAT_TILE": 64}, {"ROW_TILE": 256, "MAX_COLUMNS": 128}, {"FLAT_TILE": 8192}])
@pytest.mark.parametrize("shape", [(6, 4), (5, 7), (3, 260), (2, 8, 5, 4)], ids=str)
@pytest.mark.parametrize("reduction", ["sample", "latent", "sum"])
def test_eps_is_the_same_for_every_block_size(shape, constants, reduction, kernels_device, monkeypatch):
    mu = torch.zeros(shape, device=kernels_device)
    before = sample_kl(mu, mu, seed=5, reduction=reduction)[0]
    for name, value in constants.items():
        monkeypatch.setattr(tiling, name, value)
    assert torch.equal(sample_kl(mu, mu, seed=5, reduction=reduction)[0], before)


@pytest.mark.parametrize(("shape", "layout"), GRID, ids=str)
def test_backward_draws_the_noise_of_forward(shape, layout, backend):
    mu = LAYOUTS[layout](shape, backend.device)
    logvar = torch.zeros_like(mu).requires_grad_()
    z = reparameterize(mu, logvar, seed=2**63 + 1)
    z.backward(torch.ones_like(z))
    assert torch.equal(2 * logvar.grad, z)  # dz/dlogvar = eps exp(0) / 2


def test_no_number_is_drawn_twice(backend):
    z = eps_of(torch.zeros(65, 1009, device=backend.device), 3).flatten().cpu().numpy()
    neighbours = np.stack([z[:-1], z[1:]], axis=1)  # one float32 repeats by chance, two in a row do not
    assert len(np.unique(neighbours, axis=0)) == len(neighbours)


def test_a_seed_counts_modulo_2_to_the_64_and_as_a_tensor(backend):
    mu = torch.zeros(3, 5, device=backend.device)
    for seed in (0, 12345678901234567, 2**63, 2**64 - 1):
        z = eps_of(mu, seed)
        assert torch.equal(z, eps_of(mu, seed - 2**64) if seed >= 2**63 else z)
        signed = seed if seed < 2**63 else seed - 2**64
        for shape in ((), (1,), (1, 1)):
            assert torch.equal(z, eps_of(mu, torch.full(shape, signed, device=backend.device)))


def test_seeds_draw_different_numbers(backend):
    mu = torch.zeros(64, device=backend.device)
    drawn = [eps_of(mu, seed) for seed in (0, 1, 2**32, 2**63)]
    assert all((a != b).all() for k, a in enumerate(drawn) for b in drawn[:k])


def test_torch_manual_seed_and_a_generator_decide_the_drawn_seed(backend):
    mu = torch.zeros(64, device=backend.device)

    def z(**options):
        return reparameterize(mu, mu, **options)

    torch.manual_seed(1)
    first, second = z(), z()
    torch.manual_seed(1)
    assert torch.equal(z(), first)
    assert not torch.equal(first, second)
    generators = [torch.Generator(backend.device).manual_seed(4) for _ in range(2)]
    assert torch.equal(z(generator=generators[0]), z(generator=generators[1]))


@pytest.mark.parametrize("num_samples", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_what_is_drawn_where_nothing_is_given(dtype, num_samples, backend):
    """A seed for the kernels; elsewhere eps itself, by PyTorch, and not in 16 bits: Philox would take longer."""
    mu = torch.zeros(5, 7, dtype=dtype, device=backend.device)
    torch.manual_seed(2)
    z = reparameterize(mu, mu, num_samples=num_samples)
    torch.manual_seed(2)
    if backend.name == "triton":
        wanted = reparameterize(mu, mu, num_samples=num_samples, seed=seeds.of(None, None, "mu", mu))
    else:
        wanted = torch.empty_like(z, dtype=torch.promote_types(dtype, torch.float32)).normal_().to(dtype)
    assert torch.equal(z, wanted)


def test_a_drawn_seed_has_63_bits():
    """Of 32 bits, two would be equal within a hundred thousand calls."""
    drawn = [seeds.of(None, None, "mu", torch.empty(1)).item() for _ in range(64)]
    assert functools.reduce(operator.or_, drawn) == 2**63 - 1


@pytest.mark.parametrize("shape", [(64, 4096), (262147,)], ids=["whole quads", "an odd end"])
def test_the_distribution_is_standard_normal(shape, backend):
    z = eps_of(torch.zeros(shape, device=backend.device), 1).flatten().cpu().double().numpy()
    n = len(z)
    moments = [np.mean(z**k) for k in range(1, 7)]
    variances = [scipy.stats.norm.moment(2 * k) - scipy.stats.norm.moment(k) ** 2 for k in range(1, 7)]
    for k, (moment, variance) in enumerate(zip(moments, variances), start=1):
        assert abs(moment - scipy.stats.norm.moment(k)) < 4 * np.sqrt(variance / n), f"moment {k}"
    for threshold in (1, 2, 3, 4):
        expected = n * scipy.stats.norm.sf(threshold)
        for tail in (z > threshold, z < -threshold):
            assert abs(tail.sum() - expected) < 4 * np.sqrt(expected), f"beyond {threshold}"
    assert np.abs(z).max() <= 6.77
    assert scipy.stats.kstest(z, "norm").pvalue > 1e-3
    for lag in (1, 2, 3, 4, 4096):
        assert abs(np.mean(z[lag:] * z[:-lag])) < 4 / np.sqrt(n), f"correlation at lag {lag}"
        assert abs(np.mean(z[lag:] ** 2 * z[:-lag] ** 2) - 1) < 4 * np.sqrt(8 / n), f"of squares at lag {lag}"


@pytest.mark.parametrize("seed", [None, 3])
def test_another_default_device_changes_nothing(seed, backend):
    mu = torch.zeros(4, 3, device=backend.device)
    each = torch.vmap(lambda m: reparameterize(m, m, seed=seed), randomness="different")
    with torch.device("meta"):
        for z in (reparameterize(mu, mu, seed=seed), each(mu.view(2, 2, 3))):
            assert z.device == mu.device
            assert z.isfinite().all()
