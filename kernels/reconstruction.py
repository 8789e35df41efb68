"""Reduces any likelihood: forward, forward with gradient, backward, in one kernel that compiles out the rest."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from vae_fast.kernels import likelihoods, noise, reductions, shared, targets, tiling, upstreams
from vae_fast.kernels.elementary import log1p
from vae_fast.kernels.launching import launch, replayed
from vae_fast.kernels.upstreams import scale_  # noqa: F401 (one of the entry points)


class FirstStage(NamedTuple):
    """The loss, the gradients, and the sums that complete them: the loss's own, where it has one, is the first."""

    loss: torch.Tensor
    grads: tuple
    sums: tuple


@replayed
def forward(params, target, likelihood, reduction, wanted, extras=targets.PLAIN):
    """The reduced nll of `target` and the gradients of the parameters that are `wanted`, for an upstream gradient of 1.

    params: tensors, all of float64 or none, any strides: the first [B, ...], each other of its shape, or shared: one
    number, or one for each index of one dimension but the batch; target: of the first's shape, of any real dtype;
    likelihood: a name in `likelihoods`; wanted: one bool a parameter. extras: (weight, seed, scale): the weight of each
    element's nll, expanded to the shape, bool or float, or None; the seed, int64 [1], of a target sampled from grey
    values, or None; what the target is multiplied by. Returns (loss, gradients with None where not wanted), each of its
    parameter's shape and dtype. Reads (p + 1)N elements and writes N for each gradient, (2p + 1)N for all, and one
    partial sum a program; a weight or a shared parameter moves its own size, again for each tile of samples where it is
    shared by samples, and the gradient of one the partial sums of `shared`. Two launches, the second for all that is
    summed; one where nothing is: no gradient of a shared parameter, and "none", or "sample" where a tile takes a sample
    whole.
    """
    stage = first_stage(params, target, likelihood, reduction, wanted, extras)
    reductions.sum_partials(*stage.sums)
    return stage.loss, stage.grads


def first_stage(params, target, likelihood, reduction, wanted, extras=targets.PLAIN):
    """All but what a second launch adds, in one launch."""
    loss = torch.empty_like(params[0], dtype=tiling.accumulator(params[0].dtype)) if reduction == "none" else None
    partials, grads = None, _empty_grads(params, wanted)
    view, tiles, operands, groups, sums = _plan(params, target, loss, None, grads, likelihood, reduction, extras)
    if loss is None:
        rows, count = (view.rows, tiles.column_blocks) if reduction == "sample" else (1, tiles.programs)
        loss = partials = reductions.workspace(params[0], rows * count)
        if reduction != "sample" or count > 1:
            loss = partials.new_empty((rows,) if reduction == "sample" else ())
            divisor = reductions.divisor(reduction, target.shape)
            sums = (reductions.Sum(partials, loss, rows, count, (count, 1), divisor), *sums)
    _launch(params, target, likelihood, reduction, view, tiles, operands, groups, partials, None, extras)
    return FirstStage(loss, grads, sums)


@replayed
def backward(grad_loss, params, target, likelihood, reduction, wanted, extras=targets.PLAIN):
    """Gradients of the wanted parameters, recomputed: reads (p + 1)N elements, writes N each, in one launch.

    grad_loss: of the loss's shape, any strides; or, for a scalar loss, an `upstreams.Upstream`. The rest as in
    `forward`, also what shared parameters take: a second launch for the gradients of all that are.
    """
    grads = _empty_grads(params, wanted)
    scalars, elementwise = None, None
    if reduction in ("none", "sample"):
        elementwise = tiling.expand_upstream(grad_loss, target, reduction)
    else:
        scalars = upstreams.of(grad_loss)
    view, tiles, operands, groups, sums = _plan(params, target, None, elementwise, grads, likelihood, reduction, extras)
    _launch(params, target, likelihood, reduction, view, tiles, operands, groups, None, scalars, extras)
    reductions.sum_partials(*sums)
    return grads


def _empty_grads(params, wanted):
    return tuple(torch.empty_like(p) if want else None for p, want in zip(params, wanted, strict=True))


class Operands(NamedTuple):
    """Pairs (tensor, strides) in the kernel's order; `positions` are the strides of an element's place in the noise."""

    parameters: tuple
    target: tuple
    weight: tuple | None
    loss: tuple | None
    upstream: tuple | None
    grads: tuple
    positions: tuple


def _plan(params, target, loss, upstream, grads, likelihood, reduction, extras):
    """The joint view, its tiles, the operands, and what `shared` says of the gradients."""
    weight, seed, _ = extras
    position = None if seed is None else tiling.dense_like(params[0])
    read = targets.readable(target), targets.readable(weight)
    inputs, outs = (tiling.expanded(tensors, target.shape) for tensors in (params, grads))
    view, (position, *operands) = tiling.view(
        [position, *inputs, *read, loss, upstream, *outs], by_sample=reduction == "sample"
    )
    p = len(params)
    positions = () if position is None else position[1]
    portion = likelihoods.portion(likelihood, params[0].dtype, weight is not None)
    tiles, outs, groups, sums = shared.plan(view, grads, operands[p + 4 :], portion)
    return view, tiles, Operands(tuple(operands[:p]), *operands[p : p + 4], outs, positions), groups, sums


def _launch(params, target, likelihood, reduction, view, tiles, operands, groups, partials, scalars, extras):
    spreads = ("none", *(shared.spread(view, tiles, p) for p in operands.parameters[1:]))
    weight = tiling.spread(operands.weight)
    halvings = 2 if params[0].element_size() >= 4 else 3  # elements of one 16-byte access: 4 or 8
    _, seed, scale = extras
    with tiling.on_device(target):
        launch(
            _reconstruct, tiles.programs,
            *operands, seed, scale, partials, *upstreams.arguments(scalars), (view.rows, view.columns), view.shape,
            reductions.divisor(reduction, target.shape),
            LIKELIHOOD=getattr(likelihoods, likelihood), REDUCTION=reduction, SCALARS=scalars is not None,
            SPREADS=spreads, GROUPS=groups, WEIGHT=weight, SCALED=scale != 1,
            WAY=noise.way(view, operands.positions, params[0].element_size()),
            STEP=tiling.step(view, _elementwise(operands, spreads, weight, reduction, groups)),
            HALVINGS=min(halvings, tiles.columns.bit_length() - 1),
            ROWS=tiles.rows, COLUMNS=tiles.columns, AXES=tiles.axes, WIDE=view.wide, warps=tiles.warps(view),
        )  # fmt: skip


def _elementwise(operands, spreads, weight, reduction, groups):
    """The operands of which a number is accessed for each element; None for others."""
    read = (p for p, spread in zip(operands.parameters, spreads, strict=True) if spread == "none")
    written = (grad for grad, group in zip(operands.grads, groups, strict=True) if not group)
    weight = operands.weight if weight == "none" else None
    upstream = operands.upstream if reduction == "none" else None
    return [*read, operands.target, weight, operands.loss, upstream, *written]


# Triton's launcher has a local `params`: a kernel argument of that name cannot be launched. Triton 3.6 can index a
# tuple that holds None, but neither compare it with None nor take its length: SCALARS and `parameters` stand in.
@triton.jit
def _reconstruct(
    parameters, target, weight, loss, upstream, grads, positions, seed, target_scale: "fp64",
    partials, scalars, beta: "fp64", size, shape, divisor,
    LIKELIHOOD: tl.constexpr, REDUCTION: tl.constexpr, SCALARS: tl.constexpr,
    SPREADS: tl.constexpr, GROUPS: tl.constexpr, WEIGHT: tl.constexpr, SCALED: tl.constexpr, WAY: tl.constexpr,
    STEP: tl.constexpr, HALVINGS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXES: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    row, column = tiling.tile(size[1], ROWS, COLUMNS, AXES, WIDE)
    # A mask on an odd size would narrow every access: full blocks go without one.
    if (row + ROWS <= size[0]) & (column + COLUMNS <= size[1]):
        _tile(
            parameters, target, weight, loss, upstream, grads, positions, seed, target_scale,
            partials, scalars, beta, size, shape, divisor, row, column,
            LIKELIHOOD, REDUCTION, SCALARS, SPREADS, GROUPS, WEIGHT, SCALED, WAY, STEP, HALVINGS,
            ROWS, COLUMNS, WIDE, False,
        )  # fmt: skip
    else:
        _tile(
            parameters, target, weight, loss, upstream, grads, positions, seed, target_scale,
            partials, scalars, beta, size, shape, divisor, row, column,
            LIKELIHOOD, REDUCTION, SCALARS, SPREADS, GROUPS, WEIGHT, SCALED, WAY, STEP, HALVINGS,
            ROWS, COLUMNS, WIDE, True,
        )  # fmt: skip


@triton.jit
def _tile(
    parameters, target, weight, loss, upstream, grads, positions, seed, target_scale,
    partials, scalars, beta, size, shape, divisor, first_row, first_column,
    LIKELIHOOD: tl.constexpr, REDUCTION: tl.constexpr, SCALARS: tl.constexpr,
    SPREADS: tl.constexpr, GROUPS: tl.constexpr, WEIGHT: tl.constexpr, SCALED: tl.constexpr, WAY: tl.constexpr,
    STEP: tl.constexpr, HALVINGS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr,
    EDGE: tl.constexpr,
):  # fmt: skip
    row = first_row + tl.arange(0, ROWS)[:, None]
    column = first_column + tl.arange(0, COLUMNS)[None, :]
    inside = None
    if EDGE:
        inside = (row < size[0]) & (column < tiling.whole(size[1], STEP))
    values = tiling.load_each(parameters, row, column, first_column, size, shape, inside, SPREADS, EDGE, STEP)
    x = targets.read(
        target, target_scale, seed, positions, row, column, first_column, shape, inside, values[0],
        SCALED, WAY, STEP, COLUMNS, WIDE,
    )  # fmt: skip
    base, excess, derivatives = LIKELIHOOD(values, x)
    weights = None
    if weight is not None:
        weights = tiling.load_spread(weight, row, column, size, shape, WEIGHT, EDGE, STEP).to(x.dtype)

    if loss is not None:
        tiling.store(loss, row, column, shape, inside, targets.each_nll(base, excess, weights), STEP)
    if partials is not None:
        sums = sum_nll(base, excess, weights, inside, HALVINGS)
        if REDUCTION == "sample":
            line = first_row + tl.arange(0, ROWS)
            block = line * tl.cdiv(size[1], COLUMNS) + first_column // COLUMNS
            tl.store(partials + block, sums, mask=line < size[0])
        else:
            tl.store(partials + tl.program_id(0), tl.sum(sums, 0))

    scale = 1.0
    if upstream is not None:
        scale = tiling.load_spread(upstream, row, column, size, shape, REDUCTION, EDGE, STEP)
    if SCALARS:
        scale = upstreams.scalar_upstream(scalars, beta).to(x.dtype)
    scale = scale / tl.full((1, 1), divisor, x.dtype)
    for k in tl.static_range(len(parameters)):
        if grads[k] is not None:
            grad = derivatives[k] * scale
            if weights is not None:
                grad = targets.weighted(grad, weights)
            shared.store(
                grads[k], row, column, size, shape, inside, grad, first_row, first_column,
                GROUPS, k, STEP, ROWS, COLUMNS,
            )  # fmt: skip


@triton.jit
def sum_nll(base, excess, weights, inside, HALVINGS: tl.constexpr):
    """The nll of each row: unless weighted, with one logarithm for 2^HALVINGS neighbours that a thread holds."""
    if weights is not None:
        base = targets.each_nll(base, excess, weights)
        excess = ()
    if inside is not None:
        base = tl.where(inside, base, 0.0)
    if len(excess) == 0:
        return tl.sum(base, 1)
    else:
        e = excess[0]
        if inside is not None:
            e = tl.where(inside, e, 0.0)
        for _ in tl.static_range(HALVINGS):
            left, right = tl.split(tl.reshape(e, (e.shape[0], e.shape[1] // 2, 2)))
            e = left + (right + left * right)
            left, right = tl.split(tl.reshape(base, (base.shape[0], base.shape[1] // 2, 2)))
            base = left + right
        return tl.sum(base + log1p(e), 1)
