"""More than 2^31 elements, by address arithmetic: no test here but the last needs the memory."""

import itertools

import pytest
import torch
import triton
import triton.language as tl

from tests.kernels.latents import check as check_latent
from tests.kernels.latents import posterior
from tests.kernels.outputs import Case
from tests.support.tolerance import assert_noise_close
from vae_fast import elbo_loss, reconstruction_loss, sample_kl
from vae_fast.kernels import categorical, reductions, tiling
from vae_fast.reference import noise

LIMIT = tiling.MAX_INT32_EXTENT
INT32 = 2**31 - 1


def meta(*shape, strides=None):
    tensor = torch.empty(shape, device="meta")
    return tensor if strides is None else torch.empty_strided(shape, strides, device="meta")


@pytest.mark.parametrize("by_sample", [False, True])
@pytest.mark.parametrize(
    ("tensors", "wide"),
    [
        ([meta(LIMIT)], False),
        ([meta(LIMIT + 1)], True),
        ([meta(2, 2**30)], True),  # 2^31 exactly
        ([meta(2, 3)], False),
        ([meta(2, 3, strides=(LIMIT - 2, 1))], False),  # the last element is at LIMIT
        ([meta(2, 3, strides=(LIMIT - 1, 1))], True),  # few elements, far apart
        ([meta(3, 2, 4, strides=(4, 2**31, 1))], True),  # far apart within a sample
        ([meta(2, 2), meta(2, 2, strides=(1, 2**31))], True),  # one tensor of several
        ([meta(2, 2), None, meta(2, 2)], False),
        ([meta(1).expand(LIMIT + 1)], True),  # one number, seen often: its column numbers are large
        ([meta(2**16, 1).expand(2**16, 2**16)], True),
    ],
)
def test_when_offsets_need_64_bits(tensors, wide, by_sample):
    assert tiling.view(tensors, by_sample)[0].wide is wide


def test_the_last_tile_of_a_view_of_32_bits_ends_before_2_to_the_31():
    """Its end overhangs the tensor, and is compared with the size: were it to wrap, the tile would go unmasked."""
    sizes = [1, 2, 3, 31, 32, 33, 1000, 2047, 2048, 2049, 4095, 4096, 4097, 2**20 + 1, 2**30]
    for size, over_samples, flipped in itertools.product(sizes, (False, True), (False, True)):
        rows, columns = (size, LIMIT // size) if flipped else (LIMIT // size, size)
        if rows == 0:
            continue
        view = tiling.View(rows, columns, (columns,), ((columns, 1),), False)
        tiles = tiling.tiles(view, over_samples)
        assert tiles.row_blocks * tiles.rows <= INT32
        assert tiles.column_blocks * tiles.columns <= INT32
        assert tiles.row_blocks * tiles.rows >= rows
        assert tiles.column_blocks * tiles.columns >= columns
        assert tiles.programs <= INT32  # the largest grid of CUDA
        assert tiles.rows * tiles.columns <= max(tiling.FLAT_TILE, tiling.MAX_COLUMNS)


@triton.jit
def _offsets(row, column, out, shape, strides, WIDE: tl.constexpr, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    if WIDE:
        at = at.to(tl.int64)
    offset = tiling.offset(row + at[:, None], column + at[None, :], shape, strides)
    lane = tl.arange(0, TILE)
    tl.store(out + lane[:, None] * TILE + lane[None, :], offset.to(tl.int64))


@pytest.mark.parametrize(
    ("shape", "strides", "row", "column"),
    [
        ((2**40,), (0, 1), 0, 2**31 - 2),  # flat, across 2^31
        ((2**40,), (0, 1), 0, 2**33 + 1),
        ((7, 2**35), (2**38, 1, 2**20), 2**20, 2**36),  # two column dimensions
        ((3, 5, 2**30), (2**40, 2**34, 1, 2**31), 5, 13),
        ((2**31 + 11,), (2**31 + 11, 1), 2, 2**31 + 7),  # rows longer than 2^31
    ],
)
def test_offsets_beyond_2_to_the_31(shape, strides, row, column, kernels_device):
    out = torch.empty(4, 4, dtype=torch.int64, device=kernels_device)
    _offsets[(1,)](row, column, out, shape, strides, WIDE=True, TILE=4)
    expected = [[offset(row + i, column + j, shape, strides) for j in range(4)] for i in range(4)]
    assert out.tolist() == expected


def offset(row, column, shape, strides):
    """In Python's own integers."""
    at = row * strides[0]
    for size, stride in zip(shape[:-1], strides[1:-1]):
        at += column % size * stride
        column //= size
    return at + column * strides[-1]


@pytest.fixture
def everything_wide(monkeypatch, planning_anew):
    """64-bit arithmetic for every launch."""
    monkeypatch.setattr(tiling, "MAX_INT32_EXTENT", 0)
    tiling._merge.cache_clear()
    yield
    tiling._merge.cache_clear()


@pytest.mark.parametrize("reduction", ["none", "sample", "latent", "sum"])
@pytest.mark.parametrize("layout", ["odd", "full tiles", "chunk(2, 1) of channels_last images"])
def test_latents_in_64_bit_arithmetic(layout, reduction, backend, everything_wide):
    p = posterior(layout, backend, prior=(1,))
    z, kl = sample_kl(p.mu, p.logvar, prior=p.prior, seed=5, reduction=reduction)
    check_latent(p, z, kl, seed=5, reduction=reduction)


@pytest.mark.parametrize("reduction", ["none", "sample", "mean"])
@pytest.mark.parametrize("layout", ["MNIST", "chunks of images", "rows split over programs", "channels_last target"])
def test_reconstruction_in_64_bit_arithmetic(layout, reduction, backend, everything_wide):
    case = Case(layout, "gaussian", backend)
    case.check(reconstruction_loss(case.output, case.target, "gaussian", reduction=reduction), reduction)


@pytest.mark.usefixtures("planning_anew")
def test_64_bit_arithmetic_gives_the_same_bits(kernels_device, monkeypatch):
    def results():
        tiling._merge.cache_clear()
        torch.manual_seed(0)
        leaves = [torch.randn(5, 1001, device=kernels_device).requires_grad_() for _ in range(3)]
        z, kl = sample_kl(*leaves[:2], seed=3)
        losses = elbo_loss(leaves[2], z.detach().sigmoid(), kl)
        (2 * losses.total + z.sum()).backward()
        return [z, kl, *losses, *(leaf.grad for leaf in leaves)]

    narrow = results()
    monkeypatch.setattr(tiling, "MAX_INT32_EXTENT", 0)
    wide = results()
    tiling._merge.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(narrow, wide))


def test_one_program_adds_many_partial_sums(kernels_device):
    """As the second stage of a tensor of 2^31 elements does: several rounds of SUM_TILE."""
    count = 2 * reductions.SUM_TILE + 5
    partials = torch.arange(count, dtype=torch.float32, device=kernels_device)
    out = torch.empty((), device=kernels_device)
    reductions.sum_partials(reductions.Sum(partials, out, 1, count, (0, 1), divisor=4))
    assert out.item() == pytest.approx(count * (count - 1) / 8, rel=1e-6)


@pytest.mark.compiled_only
@pytest.mark.parametrize("reduction", ["sample", "latent", "sum"])
def test_launches_on_more_than_2_to_the_31_elements_are_wide(reduction):
    from vae_fast.benchmarks.launches import record_launches
    from vae_fast.kernels import gaussian, reconstruction

    mu = meta(2**17 + 1, 2**14)
    seed = torch.empty(1, dtype=torch.int64, device="meta")
    with record_launches() as launches:
        gaussian.forward(mu, mu, seed=seed, reduction=reduction)
        gaussian.backward(mu, meta(), mu, mu, seed=seed, reduction="sum")
        reconstruction.forward((mu,), mu, "bernoulli", "sample" if reduction == "latent" else reduction, [True])
        reconstruction.scale_((mu,), meta())
    first_stages = [launch for launch in launches if "WIDE" in launch.arguments]
    assert len(first_stages) == 4
    for launch in first_stages:
        assert launch.arguments["WIDE"]
        assert launch.grid[0] <= INT32


@pytest.mark.compiled_only
@pytest.mark.parametrize("samples", [3, 5])
def test_samples_that_reach_beyond_2_to_the_31_elements_are_wide(samples):
    from vae_fast.benchmarks.launches import record_launches
    from vae_fast.kernels import gaussian

    mu, kl = meta(2**15, 2**14), meta(samples, 2**15)
    seed = torch.empty(1, dtype=torch.int64, device="meta")
    options = {"seed": seed, "kl": "monte_carlo", "samples": samples, "reduction": "sample"}
    with record_launches() as launches:
        gaussian.forward(mu, mu, **options)
        gaussian.backward(meta(samples, 2**15, 2**14), kl, mu, mu, **options)
    wide = [launch.arguments["WIDE"] for launch in launches if "WIDE" in launch.arguments]
    assert wide == [samples == 5, samples == 5]


@pytest.mark.compiled_only
@pytest.mark.parametrize("samples", [3, 5])
def test_given_noise_whose_samples_lie_far_apart_is_wide(samples):
    """Of few elements."""
    from vae_fast.benchmarks.launches import record_launches
    from vae_fast.kernels import gaussian

    mu, eps = meta(4, 8), meta(samples, 4, 8, strides=(2**29, 8, 1))
    with record_launches() as launches:
        gaussian.forward(mu, mu, eps=eps, samples=samples)
        gaussian.backward(meta(samples, 4, 8), None, mu, mu, eps=eps, samples=samples)
    assert [launch.arguments["WIDE"] for launch in launches] == [samples == 5, samples == 5]


@pytest.mark.compiled_only
def test_classes_that_lie_far_apart_are_wide():
    """One sample of few elements, of which the last is beyond 2^31."""
    from vae_fast.benchmarks.launches import record_launches

    logits = meta(1, 2**12, 2**19 + 1).movedim(1, -1)
    target = torch.empty(1, 2**19 + 1, dtype=torch.int64, device="meta")
    with record_launches() as launches:
        categorical.forward(logits, target, None, "sum", False)
    assert launches[0].arguments["WIDE"]


@pytest.mark.compiled_only
def test_scaling_just_below_2_to_the_31_does_not_wrap():
    """A program's next start may overhang by the stride of the whole grid."""
    from vae_fast.benchmarks.launches import record_launches
    from vae_fast.kernels import reconstruction

    for size in (LIMIT, LIMIT - 1024 * 4096, LIMIT - 1024 * 4096 + 1, 2**30):
        with record_launches() as launches:
            reconstruction.scale_((meta(size),), meta())
        (launch,) = launches
        step = launch.grid[0] * launch.arguments["TILE"]
        assert launch.arguments["WIDE"] or size - 1 + step <= INT32


@pytest.mark.cuda_only
@pytest.mark.no_poison("a copy of 4 GiB to fill is time that the test does not need")
@pytest.mark.big_memory(64, device="cuda")
def test_more_than_2_to_the_31_elements():
    batch, size = 2**17 + 1, 2**14
    mu, logvar = (torch.zeros(batch, size, dtype=torch.bfloat16, device="cuda").requires_grad_() for _ in range(2))
    z, kl = sample_kl(mu, logvar, seed=7)
    assert not kl.any()
    (z.sum(dtype=torch.float32) + kl.sum()).backward()
    for start in (0, 2**31 - 512, 2**31, z.numel() - 1024):
        window = slice(start, start + 1024)
        drawn = noise.normal(7, 1024, start=start)
        assert_noise_close(z.detach().flatten()[window], drawn)
        assert_noise_close(2 * logvar.grad.flatten()[window], drawn)  # dz/dlogvar = eps / 2
    loss = reconstruction_loss(z.detach().requires_grad_(), torch.zeros_like(mu.detach()), "mse", reduction="mean")
    assert abs(loss.item() - 1) < 1e-3  # the variance of the noise
