"""The bytes that the latent kernels really load and store, by the exact formula of each argument."""

import pytest
import torch

from tests.kernels.latents import LAYOUTS, drawer
from tests.kernels.recording import bytes_moved, second_stage
from vae_fast import SoftClamp, gaussian_kl, reparameterize, sample_kl, sample_kl_packed, use_backend
from vae_fast.kernels import tiling

pytestmark = pytest.mark.interpreter_only

VIEWS = [
    "the smallest",
    "odd",
    "full tiles",
    "primes",  # several programs, all with tails
    "channels_last images",
    "chunk(2, 1)",
    "chunk(2, 1) of channels_last images",
    "the batch innermost",
    "two layouts",
]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]

FORWARD = ("mu", "logvar", "prior mu", "prior logvar", "z", "eps", "kl")
BACKWARD = (*FORWARD[:4], "grad z", "grad kl", "eps", "d mu", "d logvar", "d prior mu", "d prior logvar")


@pytest.fixture(autouse=True)
def _triton():
    with use_backend("triton"):
        yield


def counted(function):
    table, result = bytes_moved(function)
    return {(kernel, _tensor(kernel, arg), kind): size for (kernel, arg, kind), size in table.items()}, result


def _tensor(kernel, arg):
    operand = arg.removeprefix("operands[").partition("]")[0]
    return (FORWARD if kernel == "_forward" else BACKWARD)[int(operand)] if operand.isdigit() else arg


def leaves(layout, dtype):
    return [t.detach().requires_grad_() for t in LAYOUTS[layout](drawer("cpu", dtype))]


def programs(mu, by_sample):
    """How many programs read the seed: one a tile, of the size that tiling.py says."""
    view, _ = tiling.view([torch.empty_like(mu), mu], by_sample)
    portion = 4 if mu.dtype == torch.float64 else 1  # registers
    return tiling.tiles(view, portion=portion).programs


def moved(kernel, load=(), store=(), **others):
    """An expected table: `load` and `store` name whole tensors of `size` bytes, others are (kind, bytes)."""
    size = others.pop("size")
    table = {(kernel, name, "load"): size for name in load} | {(kernel, name, "store"): size for name in store}
    return table | {(kernel, name.replace("_", " "), kind): count for name, (kind, count) in others.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", VIEWS)
def test_sample_kl_moves_3_and_5_elements(layout, dtype):
    mu, logvar = leaves(layout, dtype)
    size, seeds = mu.numel() * mu.element_size(), 8 * programs(mu, by_sample=True)
    table, (z, kl) = counted(lambda: sample_kl(mu, logvar, seed=1))
    rows = kl.numel() * kl.element_size()
    forward = moved("_forward", ("mu", "logvar"), ("z",), size=size, partials=("store", rows), seed=("load", seeds))
    assert table == forward
    upstream = torch.ones_like(z), torch.ones_like(kl)
    table, _ = counted(lambda: torch.autograd.grad((z, kl), (mu, logvar), upstream))
    assert table == moved(
        "_backward", ("mu", "logvar", "grad z"), ("d mu", "d logvar"),
        size=size, grad_kl=("load", rows), seed=("load", seeds),
    )  # fmt: skip


def test_sample_kl_of_rows_over_several_programs_adds_its_partial_sums():
    mu, logvar = leaves("rows split over programs", torch.float32)
    batch, columns = mu.shape
    blocks = -(-columns // tiling.ROW_TILE)
    table, (z, kl) = counted(lambda: sample_kl(mu, logvar, seed=1))
    seeds, partials = 8 * batch * blocks, 4 * batch * blocks
    assert table == moved(
        "_forward", ("mu", "logvar"), ("z",),
        size=4 * mu.numel(), seed=("load", seeds), partials=("store", partials),
    ) | second_stage((partials, 4 * batch))  # fmt: skip
    upstream = torch.ones_like(z), torch.ones_like(kl)
    table, _ = counted(lambda: torch.autograd.grad((z, kl), (mu, logvar), upstream))
    assert table == moved(
        "_backward", ("mu", "logvar", "grad z"), ("d mu", "d logvar"),
        size=4 * mu.numel(), seed=("load", seeds), grad_kl=("load", partials),  # each program reads its row's number
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [
        ((3, 12), torch.contiguous_format),
        ((5, 14), torch.contiguous_format),  # no row of whole quads
        ((2, 8, 3, 5), torch.contiguous_format),
        ((2, 8, 3, 5), torch.channels_last),
    ],
    ids=str,
)
def test_packed_moments_move_the_same(shape, memory_format):
    moments = drawer("cpu", torch.float32)(*shape).to(memory_format=memory_format).requires_grad_()
    table, (z, kl) = counted(lambda: sample_kl_packed(moments, seed=1))
    size, rows, seeds = 4 * z.numel(), 4 * kl.numel(), 8 * programs(moments.chunk(2, 1)[0], by_sample=True)
    forward = moved("_forward", ("mu", "logvar"), ("z",), size=size, partials=("store", rows), seed=("load", seeds))
    assert table == forward
    upstream = torch.ones_like(z), torch.ones_like(kl)
    table, _ = counted(lambda: torch.autograd.grad((z, kl), moments, upstream))
    assert table == moved(
        "_backward", ("mu", "logvar", "grad z"), ("d mu", "d logvar"),
        size=size, grad_kl=("load", rows), seed=("load", seeds),
    )  # fmt: skip


@pytest.mark.parametrize("layout", VIEWS)
def test_reparameterize_moves_3_elements_each_way(layout):
    mu, logvar = leaves(layout, torch.float32)
    size = 4 * mu.numel()
    table, z = counted(lambda: reparameterize(mu, logvar, seed=1))
    seeds = table["_forward", "seed", "load"]
    assert seeds == 8 * programs(mu, by_sample=False)
    assert table == moved("_forward", ("mu", "logvar"), ("z",), size=size, seed=("load", seeds))
    upstream = torch.ones_like(z)
    table, (grad_mu, _) = counted(lambda: torch.autograd.grad(z, (mu, logvar), upstream))
    # the gradient of mu is the upstream gradient itself
    assert grad_mu.data_ptr() == upstream.data_ptr()
    assert table == moved("_backward", ("logvar", "grad z"), ("d logvar",), size=size, seed=("load", seeds))


@pytest.mark.parametrize("layout", VIEWS)
def test_the_kl_alone_moves_2_and_4_elements(layout):
    mu, logvar = leaves(layout, torch.float32)
    size = 4 * mu.numel()
    table, kl = counted(lambda: gaussian_kl(mu, logvar, reduction="sample"))
    rows = 4 * kl.numel()
    assert table == moved("_forward", ("mu", "logvar"), size=size, partials=("store", rows))
    table, _ = counted(lambda: torch.autograd.grad(kl, (mu, logvar), torch.ones_like(kl)))
    assert table == moved("_backward", ("mu", "logvar"), ("d mu", "d logvar"), size=size, grad_kl=("load", rows))


@pytest.mark.parametrize("reduction", ["sum", "mean", "batchmean"])
def test_a_scalar_kl_adds_one_partial_sum_a_program(reduction):
    mu, logvar = leaves("one long row", torch.float32)
    size, tiles = 4 * mu.numel(), programs(mu, by_sample=False)
    table, kl = counted(lambda: gaussian_kl(mu, logvar, reduction=reduction))
    first = moved("_forward", ("mu", "logvar"), size=size, partials=("store", 4 * tiles))
    assert table == first | second_stage((4 * tiles, 4))
    table, _ = counted(lambda: torch.autograd.grad(kl, (mu, logvar)))
    assert table == moved("_backward", ("mu", "logvar"), ("d mu", "d logvar"), size=size, grad_kl=("load", 4 * tiles))


def test_a_kl_a_latent_writes_one_partial_sum_for_32_samples():
    mu, logvar = leaves("primes", torch.float32)
    size, partials = 4 * mu.numel(), 4 * 31 * -(-257 // tiling.LATENT_ROWS)
    table, _ = counted(lambda: gaussian_kl(mu, logvar, reduction="latent"))
    first = moved("_forward", ("mu", "logvar"), size=size, partials=("store", partials))
    assert table == first | second_stage((partials, 4 * 31))


def test_an_elementwise_kl_writes_one_number_an_element():
    mu, logvar = leaves("odd", torch.bfloat16)
    size = 2 * mu.numel()
    table, kl = counted(lambda: gaussian_kl(mu, logvar, reduction="none"))
    assert table == moved("_forward", ("mu", "logvar"), size=size, kl=("store", 2 * size))
    table, _ = counted(lambda: torch.autograd.grad(kl, (mu, logvar), torch.ones_like(kl)))
    assert table == moved("_backward", ("mu", "logvar"), ("d mu", "d logvar"), size=size, grad_kl=("load", 2 * size))


def test_a_prior_and_eps_move_their_own_elements_and_no_seed():
    mu, logvar = leaves("odd", torch.float32)
    prior = leaves("odd", torch.float32)
    size, rows = 4 * mu.numel(), 4 * len(mu)
    eps = torch.randn_like(mu)
    table, (z, kl) = counted(lambda: sample_kl(mu, logvar, prior=tuple(prior), eps=eps))
    assert table == moved("_forward", (*FORWARD[:4], "eps"), ("z",), size=size, partials=("store", rows))
    upstream = torch.ones_like(z), torch.ones_like(kl)
    table, _ = counted(lambda: torch.autograd.grad((z, kl), (mu, logvar, *prior), upstream))
    assert table == moved("_backward", (*FORWARD[:4], "grad z", "eps"), BACKWARD[7:], size=size, grad_kl=("load", rows))


def test_a_prior_without_gradients_gets_none_written():
    mu, logvar = leaves("odd", torch.float32)
    prior = tuple(t.detach() for t in leaves("odd", torch.float32))
    kl = gaussian_kl(mu, logvar, prior=prior, reduction="sample")
    table, _ = counted(lambda: torch.autograd.grad(kl, (mu, logvar), torch.ones_like(kl)))
    stores = {name for _, name, kind in table if kind == "store"}
    assert stores == {"d mu", "d logvar"}


@pytest.mark.parametrize("kl", ["closed_form", "monte_carlo"])
@pytest.mark.parametrize("scale", ["logvar", "std", "softplus", SoftClamp(5.0, epsilon=0.01)], ids=str)
def test_a_scale_and_either_kl_move_the_same(scale, kl):
    mu, logvar = leaves("primes", torch.float32)
    size, seeds = 4 * mu.numel(), 8 * programs(mu, by_sample=True)
    table, (z, value) = counted(lambda: sample_kl(mu, logvar, scale=scale, kl=kl, seed=1))
    rows = 4 * value.numel()
    forward = moved("_forward", ("mu", "logvar"), ("z",), size=size, partials=("store", rows), seed=("load", seeds))
    assert table == forward
    upstream = torch.ones_like(z), torch.ones_like(value)
    table, _ = counted(lambda: torch.autograd.grad((z, value), (mu, logvar), upstream))
    assert table == moved(
        "_backward", ("mu", "logvar", "grad z"), ("d mu", "d logvar"),
        size=size, grad_kl=("load", rows), seed=("load", seeds),
    )  # fmt: skip


@pytest.mark.parametrize("kl", ["closed_form", "monte_carlo"])
@pytest.mark.parametrize("layout", ["odd", "full tiles", "primes", "chunk(2, 1) of channels_last images"])
def test_k_samples_move_2_plus_k_and_4_plus_k_elements(layout, kl):
    mu, logvar = leaves(layout, torch.float32)
    k, size, tiles = 3, 4 * mu.numel(), programs(mu, by_sample=True)
    table, (z, value) = counted(lambda: sample_kl(mu, logvar, kl=kl, seed=1, num_samples=k))
    rows, seeds = 4 * value.numel(), 8 * k * tiles
    assert table == moved(
        "_forward", ("mu", "logvar"), size=size,
        z=("store", k * size), partials=("store", rows), seed=("load", seeds),
    )  # fmt: skip
    upstream = torch.ones_like(z), torch.ones_like(value)
    table, _ = counted(lambda: torch.autograd.grad((z, value), (mu, logvar), upstream))
    assert table == moved(
        "_backward", ("mu", "logvar"), ("d mu", "d logvar"),
        size=size, grad_z=("load", k * size), grad_kl=("load", rows), seed=("load", seeds),
    )  # fmt: skip


def test_a_soft_clamp_of_the_sample_alone_reads_mu_and_writes_its_gradient():
    mu, logvar = leaves("odd", torch.float32)
    z = reparameterize(mu, logvar, scale=SoftClamp(5.0), seed=1)
    table, _ = counted(lambda: torch.autograd.grad(z, (mu, logvar), torch.ones_like(z)))
    seeds = table["_backward", "seed", "load"]
    assert table == moved(
        "_backward", ("mu", "logvar", "grad z"), ("d mu", "d logvar"), size=4 * mu.numel(), seed=("load", seeds)
    )
