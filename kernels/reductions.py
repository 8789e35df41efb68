"""Reductions: what a loss is divided by, and the deterministic second stage that adds the programs' partial sums.

Each program of a first stage writes one partial sum a row (or a column) to a workspace; one more launch adds them in a
fixed order. There are no float atomics: the same inputs give the same bits.
"""

import torch
import triton
import triton.language as tl

from vae_fast.kernels import tiling

SUM_TILE = 8192  # partial sums that a program adds at a time


def divisor(reduction, shape):
    """What the sum is divided by."""
    if reduction == "mean":
        return shape.numel()
    return shape[0] if reduction in ("batchmean", "latent") else 1


def workspace(like, size):
    """Room for `size` partial sums."""
    return torch.empty(size, dtype=tiling.accumulator(like.dtype), device=like.device)


def sum_partials(partials, out, *, outer, count, strides, divisor, run=1):
    """out[o] = the sum over k < count of partials[o * strides[0] + k * strides[1]] / divisor, in one launch.

    Where `run` neighbours belong together the k-th is the (k % run)-th of those at k // run. `out` is dense in the
    order of o. Moves the partial sums and `out`.
    """
    rows, columns, warps = sum_tile(outer, count)
    with tiling.on_device(partials):
        _sum_partials[(tiling.ceil_div(outer, rows),)](
            partials, out, outer, count, strides, run, divisor, ROWS=rows, COLUMNS=columns, num_warps=warps
        )
    return out


def sum_tile(outer, count):
    """Rows, columns and warps of a program that adds `count` partial sums for each of `outer` rows."""
    columns = min(tiling.power_of_2(count), SUM_TILE)
    rows = min(tiling.power_of_2(outer), max(tiling.ROW_TILE // columns, 1))
    return rows, columns, min(max(rows * columns // 1024, 1), 8)


@triton.jit
def _sum_partials(partials, out, outer, count, strides, run, divisor, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = add_partials(partials, row, outer, count, strides, run, ROWS, COLUMNS)
    tl.store(out + row, total / divisor, mask=row < outer)


@triton.jit
def add_partials(partials, row, outer, count, strides, run, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sum of each row's `count` partial sums, as float32 (float64 stays): [ROWS]."""
    sums = tiling.upcast(tl.zeros((ROWS, COLUMNS), partials.dtype.element_ty))
    start = 0
    while start < count:
        column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        at = row[:, None] * strides[0] + (column // run * strides[1] + column % run)[None, :]
        inside = (row < outer)[:, None] & (column < count)[None, :]
        sums += tiling.upcast(tl.load(partials + at, mask=inside, other=0))
        start += COLUMNS
    return tl.sum(sums, 1)
