"""The second stage by itself: any sums, each of its own shape and order, in one launch."""

import pytest
import torch

from tests.kernels.latents import drawer
from vae_fast.kernels import reductions, tiling

# outer, count, strides, run
SUMS = {
    "one number": (1, 5, (5, 1), 1),
    "one number of more than a tile": (1, reductions.SUM_TILE + 3, (0, 1), 1),
    "rows": (7, 130, (130, 1), 1),
    "columns": (33, 9, (1, 33), 1),
    "columns of several programs": (tiling.ROW_TILE + 5, 3, (1, tiling.ROW_TILE + 5), 1),
    "runs": (3, 20, (4, 12), 4),
    "a single term": (6, 1, (1, 6), 1),
}
TOGETHER = [[name] for name in SUMS] + [list(SUMS), list(SUMS)[::-1], ["rows", "rows"]]


def a_sum(name, draw, divisor):
    outer, count, strides, run = SUMS[name]
    partials = draw(outer * count)
    return reductions.Sum(partials, torch.empty(outer).to(partials), outer, count, strides, divisor, run)


def expected(each):
    """Every address by itself, as the docstring of `Sum` has it."""
    o, k = torch.arange(each.outer)[:, None], torch.arange(each.count)[None, :]
    at = o * each.strides[0] + k // each.run * each.strides[1] + k % each.run
    return each.partials.cpu().double()[at].sum(1) / each.divisor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("names", TOGETHER, ids=", ".join)
def test_each_sum_is_its_own(names, dtype, kernels_device):
    sums = [a_sum(name, drawer(kernels_device, dtype, k), k + 1) for k, name in enumerate(names)]
    reductions.sum_partials(*sums)
    for each in sums:
        torch.testing.assert_close(each.out.cpu().double(), expected(each), rtol=1e-5, atol=1e-5)


def test_what_is_added_beside_it_changes_no_number(kernels_device):
    """A NaN least of all."""
    alone, beside = (a_sum("rows", drawer(kernels_device, torch.float32), 1) for _ in range(2))
    other = a_sum("columns", drawer(kernels_device, torch.float32, 1), 1)
    other.partials.fill_(float("nan"))
    reductions.sum_partials(alone)
    reductions.sum_partials(other, beside)
    assert other.out.isnan().all()
    torch.testing.assert_close(beside.out, alone.out)


def test_no_sums_take_no_launch():
    reductions.sum_partials()
