"""The gradient of a shared parameter, each number of which is that of many elements: the sum over these.

It is made where the elements' derivatives are: a program writes partial sums of what its tile holds to a workspace, and
the launch that finishes the loss adds those too. Every row shares a number with every other; in a row neighbouring
columns share one, and are a run: a single column of a feature, H x W of a channel, all where there is one number.
"""

import triton
import triton.language as tl

from vae_fast.kernels import reductions, tiling

# Instructions per element on sm_90 (make audit) that a shared parameter's gradient adds.
ISSUED = {
    "one number": 1,
    "columns": 6.25,
    "columns of one row": 11,  # instead, where a thread has eight elements of 16 bits, all of one row: it adds none
    "dimensions": 13,  # instead, where a column has several indices: divisions, for all tensors and in more lanes
}


def plan(view, grads, operands, portion):
    """(tiles, operands, groups, sums) of a launch that makes these gradients, of which some may be None.

    operands: of the gradients, expanded. Those returned have partial sums in place of a gradient that is shared: one
    for the rows of a tile and each group of columns. groups: how many columns such a group has, 0 where nothing is
    shared. sums: the `reductions.Sum` of each shared gradient. Where a run has few columns a tile has many rows, so
    that a partial sum adds `LATENT_ROWS` elements or more, if samples and registers allow such a tile; otherwise a tile
    lies within one run, if there are samples enough to fill it.
    """
    whole = view.rows * view.columns
    made = [grad is not None and grad.numel() < whole for grad in grads]
    if not any(made):
        return tiling.tiles(view, portion=portion), tuple(operands), (0,) * len(grads), ()
    runs = [_run(view, operand) if shared else 0 for operand, shared in zip(operands, made, strict=True)]
    group = min(_group(view, run) for run in runs if run)
    within = group if group * view.rows >= tiling.ROW_TILE else tiling.MAX_COLUMNS
    tiles = tiling.tiles(view, over_samples=group < tiling.LATENT_ROWS, portion=portion, within=within)
    groups = tuple(min(_group(view, run), tiles.columns) if run else 0 for run in runs)
    sums = [_sum(view, tiles, *each) if each[-1] else None for each in zip(grads, runs, groups, strict=True)]
    outs = (o if s is None else (s.partials, o[1]) for o, s in zip(operands, sums, strict=True))
    return tiles, tuple(outs), groups, tuple(filter(None, sums))


def spread(view, tiles, operand):
    """How a parameter's numbers spread over a tile, as `tiling.load_each` takes it."""
    kind = tiling.spread(operand)
    if kind == "latent" and _run(view, operand) % tiles.columns == 0:
        return "tile"
    return "none" if kind == "latent" and view.rows == 1 else kind


def _run(view, operand):
    """How many neighbouring columns have one number."""
    length = 1
    for size, stride in zip(view.shape, operand[1][1:], strict=True):
        if stride:
            break
        length *= size
    return length


def _group(view, run):
    """The most columns to add, a power of two: a run must be whole groups, but for one of all columns."""
    return tiling.FLAT_TILE if run == view.columns else run & -run


def _sum(view, tiles, grad, run, group):
    partials = tiles.row_blocks * tiling.ceil_div(view.columns, group)
    numbers, near = grad.numel(), 1 if run == view.columns else run // group  # neighbouring partial sums of one number
    workspace, strides = reductions.workspace(grad, partials), (near, numbers * near)
    return reductions.Sum(workspace, grad, numbers, partials // numbers, strides, run=near)


@triton.jit
def store(
    operand, row, column, size, shape, inside, value, first_row, first_column,
    GROUPS: tl.constexpr, K: tl.constexpr, STEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Store the gradient of parameter K: every element's, where GROUPS[K] is 0, or else the sums of a tile."""
    GROUP: tl.constexpr = GROUPS[K]  # Triton 3.6 passes an element of a tuple on as no constexpr
    if GROUP == 0:
        tiling.store(operand, row, column, shape, inside, value, STEP)
    else:
        value = tl.broadcast_to(value, (ROWS, COLUMNS))
        if inside is not None:
            value = tl.where(inside, value, 0.0)
        if GROUP > 1:
            value = tl.sum(tl.reshape(value, (ROWS, COLUMNS // GROUP, GROUP)), 2)
        group = first_column // GROUP + tl.arange(0, COLUMNS // GROUP)
        groups = tl.cdiv(size[1], GROUP)
        tl.store(operand[0] + (first_row // ROWS) * groups + group, tl.sum(value, 0), mask=group < groups)
