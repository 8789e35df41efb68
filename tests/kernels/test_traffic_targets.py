"""The bytes that targets and weights take: each its own dtype's and its own size, and 8 bytes a program for a seed."""

import pytest
import torch

from tests.kernels.outputs import LIKELIHOODS, WEIGHTS, Case
from tests.kernels.recording import bytes_moved, second_stage
from tests.kernels.test_traffic_reconstruction import CPU, first_stage, grads_of, scaling
from vae_fast import elbo_loss, use_backend
from vae_fast.kernels import tiling

pytestmark = pytest.mark.interpreter_only


@pytest.fixture(autouse=True)
def _triton():
    with use_backend("triton"):
        yield


def tiles(case, reduction="sum"):
    """Of the view that the launcher takes."""
    weight = case.options.get("weight")
    if weight is not None:
        weight = weight.view(-1, *(1 for _ in case.target.shape[1:])) if weight.dim() == 1 else weight
        weight = weight.expand(case.target.shape)
    view, _ = tiling.view([*case.params, case.target, weight], by_sample=reduction == "sample")
    return tiling.tiles(view)


def check(case, reduction, **others):
    """The first pass of a scalar loss is all there is."""
    table, loss = bytes_moved(lambda: case.loss(reduction))
    partials = 4 * tiles(case).programs
    assert table == first_stage(case, partials, **others) | second_stage((partials, 4))
    assert grads_of(loss, case) == scaling(case, 1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_target_moves_the_bytes_of_its_dtype(likelihood, dtype):
    check(Case("MNIST", likelihood, CPU, target_dtype=dtype), "batchmean")


@pytest.mark.parametrize("layout", ["MNIST", "primes", "one long row", "channels_last target"])
def test_bfloat16_logits_and_bytes_are_5_bytes_an_element(layout):
    case = Case(layout, "bernoulli", CPU, torch.bfloat16, torch.uint8)
    table, _ = bytes_moved(lambda: case.loss("sum"))
    partials = second_stage((4 * tiles(case).programs, 4))
    assert sum(table.values()) == 5 * case.target.numel() + 4 * tiles(case).programs + sum(partials.values())


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(
    ("weight", "count"),
    [
        ("per sample", lambda shape, tiles: 4 * shape[0] * tiles.column_blocks),
        ("per sample, as a column", lambda shape, tiles: 2 * shape[0] * tiles.column_blocks),
        ("a mask", lambda shape, tiles: shape.numel()),
        ("elementwise", lambda shape, tiles: 2 * shape.numel()),
        ("shared by samples", lambda shape, tiles: 8 * shape[1:].numel() * tiles.row_blocks),
        ("one number", lambda shape, tiles: 4 * tiles.programs),
    ],
)
@pytest.mark.parametrize("layout", ["MNIST", "primes", "full tiles", "chunks of images"])
def test_a_weight_moves_its_own_size(layout, weight, count, likelihood):
    case = Case(layout, likelihood, CPU, weight=weight)
    check(case, "sum", **{"weight[0]": ("load", count(case.target.shape, tiles(case)))})


def test_every_weight_is_counted_or_like_one_that_is():
    """The others are a mask for each element, as the kernel sees it: channels that share one read it from the cache."""
    case = Case("chunks of images", "mse", CPU, weight="a mask of images")
    check(case, "sum", **{"weight[0]": ("load", case.target.numel())})
    assert len(WEIGHTS) == 9


def test_a_weight_a_sample_of_long_samples_is_read_by_each_program():
    case = Case("rows split over programs", "bernoulli", CPU, weight="per sample")
    assert tiles(case).column_blocks == 3
    check(case, "mean", **{"weight[0]": ("load", 4 * 2 * 3)})


def test_losses_a_sample_recompute_with_the_weight():
    case = Case("MNIST", "bernoulli", CPU, torch.bfloat16, torch.uint8, weight="per sample")
    rows = 4 * len(case.target)
    weight = {"weight[0]": ("load", rows)}
    table, loss = bytes_moved(lambda: case.loss("sample"))
    assert table == first_stage(case, rows, grads=False, **weight)
    assert grads_of(loss, case, torch.ones_like(loss)) == first_stage(case, **weight, **{"upstream[0]": ("load", rows)})


def test_a_sampled_target_is_not_stored():
    case = Case("MNIST", "bernoulli", CPU, torch.bfloat16, torch.uint8, binarize=True, seed=0)
    check(case, "batchmean", seed=("load", 8 * tiles(case).programs))


def test_elbo_loss():
    case = Case("MNIST", "bernoulli", CPU, torch.bfloat16, torch.uint8, weight="a mask", binarize=True, seed=0)
    kl = torch.rand(len(case.target)).requires_grad_()
    table, _ = bytes_moved(lambda: elbo_loss(case.output, case.target, kl, **case.options))
    programs = tiles(case).programs
    others = {"weight[0]": ("load", case.target.numel()), "seed": ("load", 8 * programs)}
    first = first_stage(case, 4 * programs, **others)
    assert {key: count for key, count in table.items() if key[0] == "_reconstruct"} == first
