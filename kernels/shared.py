"""The gradient of a shared parameter, each number of which is that of many elements: the sum over these.

It is made where the elements' derivatives are: a program writes partial sums of what its tile holds to a workspace, and
one more launch adds those in a fixed order. A number is shared by neighbouring columns, a run, in every row; one
number for all is shared by one run, of all columns.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from vae_fast.kernels import reductions, tiling

# Instructions per element on sm_90 (make audit) that a shared parameter's gradient adds.
ISSUED = {
    "one number": 1,
    "columns": 6,
    "dimensions": 15,  # instead, where a column has several indices: a division finds the number, above all to read it
}


class Sums(NamedTuple):
    """`partials` holds, for each rows of tiles and each `group` of columns, a sum; `run` neighbours are of one run."""

    grad: torch.Tensor
    partials: torch.Tensor
    group: int
    run: int


def plan(view, grads, operands, heavy):
    """(tiles, operands, the `Sums` of each) of a launch that makes these gradients, of which some may be None.

    The operands given are of the gradients expanded; those returned have the partial sums of what is shared. Where a
    run has few columns to add a tile has many rows, so that a partial sum is one of `LATENT_ROWS` elements or more, as
    long as there are as many samples.
    """
    runs = [_run(view, *pair) for pair in zip(grads, operands, strict=True)]
    few = any(run and _group(view, run) < tiling.LATENT_ROWS for run in runs)
    tiles = tiling.tiles(view, over_samples=few, heavy=heavy)
    sums = [_sums(view, tiles, grad, run) if run else None for grad, run in zip(grads, runs, strict=True)]
    outs = (o if made is None else (made.partials, o[1]) for o, made in zip(operands, sums, strict=True))
    return tiles, tuple(outs), sums


def _run(view, grad, operand):
    """The columns of a run; 0 where every element has its own number, or no gradient is made."""
    if grad is None or grad.numel() == view.rows * view.columns:
        return 0
    length = 1
    for size, stride in zip(view.shape, operand[1][1:], strict=True):
        if stride:
            break
        length *= size
    return length


def _group(view, run):
    """The most columns to add, a power of two: a run must be whole groups, but for one of all columns."""
    return tiling.power_of_2(run) if run == view.columns else run & -run


def _sums(view, tiles, grad, run):
    group = min(_group(view, run), tiles.columns)
    count = tiles.row_blocks * tiling.ceil_div(view.columns, group)
    return Sums(grad, reductions.workspace(grad, count), group, 1 if run == view.columns else run // group)


def finish(sums):
    """Add the partial sums of each gradient, in a launch of its own."""
    for grad, partials, _, run in filter(None, sums):
        numbers, count = grad.numel(), partials.numel() // grad.numel()
        strides = (run, numbers * run)
        reductions.sum_partials(partials, grad, outer=numbers, count=count, strides=strides, run=run, divisor=1)


@triton.jit
def store(
    operand, row, column, size, shape, inside, value, first_row, first_column,
    GROUPS: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Store the gradient of parameter K: every element's, where GROUPS[K] is 0, or else the sums of a tile."""
    GROUP: tl.constexpr = GROUPS[K]  # Triton 3.6 passes an element of a tuple on as no constexpr
    if GROUP == 0:
        tiling.store(operand, row, column, shape, inside, value)
    else:
        value = tl.broadcast_to(value, (ROWS, COLUMNS))
        if inside is not None:
            value = tl.where(inside, value, 0.0)
        if GROUP > 1:
            value = tl.sum(tl.reshape(value, (ROWS, COLUMNS // GROUP, GROUP)), 2)
        group = first_column // GROUP + tl.arange(0, COLUMNS // GROUP)
        groups = tl.cdiv(size[1], GROUP)
        tl.store(operand[0] + (first_row // ROWS) * groups + group, tl.sum(value, 0), mask=group < groups)
