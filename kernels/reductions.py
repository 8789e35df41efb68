"""Reductions: what a loss is divided by, and the deterministic second stage that adds the programs' partial sums.

Each program of a first stage writes partial sums to a workspace: of the loss, and of each gradient that many elements
share. One more launch adds them all in a fixed order. There are no float atomics: the same inputs give the same bits.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from vae_fast.kernels import tiling
from vae_fast.kernels.launching import launch

SUM_TILE = 8192  # partial sums that a program adds at a time


class Sum(NamedTuple):
    """out[o] = the sum over k < count of partials[o * strides[0] + k * strides[1]] / divisor, for o < outer.

    Where `run` neighbours belong together the k-th is the (k % run)-th of those at k // run. `out` is dense in the
    order of o.
    """

    partials: torch.Tensor
    out: torch.Tensor
    outer: int
    count: int
    strides: tuple
    divisor: int = 1
    run: int = 1


def divisor(reduction, shape):
    """What the sum is divided by."""
    if reduction == "mean":
        return shape.numel()
    return shape[0] if reduction in ("batchmean", "latent") else 1


def workspace(like, size):
    """Room for `size` partial sums."""
    return torch.empty(size, dtype=tiling.accumulator(like.dtype), device=like.device)


def sum_partials(*sums):
    """Make each `Sum`, all in one launch, or in none where there is no sum; moves the partial sums and `out`."""
    if sums:
        programs, tiles, warps = grid(sums)
        with tiling.on_device(sums[0].out):
            launch(_sum_partials, programs, sums, TILES=tiles, warps=warps)


def grid(sums):
    """(programs, the tile of each sum as (rows, columns), warps) of a launch in which a program has rows of one sum."""
    programs, tiles, largest = 0, (), 0
    for each in sums:
        columns = min(tiling.power_of_2(each.count), SUM_TILE)
        rows = min(tiling.power_of_2(each.outer), max(tiling.ROW_TILE // columns, 1))
        programs += tiling.ceil_div(each.outer, rows)
        tiles += ((rows, columns),)
        largest = max(largest, rows * columns)
    return programs, tiles, min(max(largest // 1024, 1), 8)


@triton.jit
def _sum_partials(sums, TILES: tl.constexpr):
    finish(sums, tl.program_id(0), TILES, 0)


@triton.jit
def finish(sums, program, TILES: tl.constexpr, FIRST: tl.constexpr):
    """Store the rows that are this program's, of the sums from FIRST on, whose programs follow one another from 0."""
    for k in tl.static_range(FIRST, len(sums)):
        program = _finish(sums[k], program, TILES, k)


@triton.jit
def _finish(each, program, TILES: tl.constexpr, K: tl.constexpr):
    """Store a program's rows, where they are of this sum; returns its number among the programs of the next."""
    ROWS: tl.constexpr = TILES[K][0]
    programs = tl.cdiv(each.outer, ROWS)
    if (program >= 0) & (program < programs):
        row = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
        tl.store(each.out + row, add(each, row, TILES, K), mask=row < each.outer)
    return program - programs


@triton.jit
def add(each, row, TILES: tl.constexpr, K: tl.constexpr):
    """These rows of the K-th sum, as float32 (float64 stays): [ROWS]."""
    ROWS: tl.constexpr = TILES[K][0]
    COLUMNS: tl.constexpr = TILES[K][1]
    sums = tiling.upcast(tl.zeros((ROWS, COLUMNS), each.partials.dtype.element_ty))
    start = 0
    while start < each.count:
        column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        run = column // each.run * each.strides[1] + column % each.run
        at = row[:, None] * each.strides[0] + run[None, :]
        inside = (row < each.outer)[:, None] & (column < each.count)[None, :]
        sums += tiling.upcast(tl.load(each.partials + at, mask=inside, other=0))
        start += COLUMNS
    return tl.sum(sums, 1) / each.divisor
