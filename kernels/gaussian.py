"""The latent op: reparameterised sample and closed-form KL of a diagonal Gaussian, forward and backward.

One kernel each way. What is not asked for (the sample, the KL, a prior, a clamp) is compiled out.
"""

import torch
import triton
import triton.language as tl

from vae_fast.kernels import noise, reductions, tiling
from vae_fast.kernels.elementary import expm1, expm1_minus_x

NONE = (None, None)


def forward(mu, logvar, *, prior=NONE, seed=None, eps=None, clamp=NONE, reduction=None):
    """z = mu + exp(logvar / 2) * eps where seed or eps is given, and the KL to the prior where a reduction is.

    mu, logvar, the prior's two tensors and eps: [B, ...] of one shape, any strides; seed: int64 [1].
    Returns (z like mu or None, kl float32 or None). Moves 3L elements for sample + KL (eps and each tensor of a prior
    1L more), the kl and the 8-byte seed: without eps, noise is made in registers and never stored. One launch; one more
    for the partial sums of "latent", of the scalar reductions, and of "sample" beyond MAX_COLUMNS latents.
    """
    z = None if seed is None and eps is None else torch.empty_like(mu)
    elementwise = torch.empty_like(mu, dtype=tiling.accumulator(mu.dtype)) if reduction == "none" else None
    view, (position, *operands) = tiling.view(
        [tiling.dense_like(mu), mu, logvar, *prior, z, eps, elementwise], by_sample=reduction in ("sample", "latent")
    )
    tiles = tiling.tiles(view, over_samples=reduction == "latent")
    partials = None
    if reduction not in (None, "none"):
        partials = reductions.workspace(mu, _partial_count(view, tiles, reduction))
    _launch(_forward, mu, view, tiles, position, operands, seed, partials, clamp, reduction)
    return z, elementwise if partials is None else _finish(partials, mu, view, tiles, reduction)


def backward(
    grad_z,
    grad_kl,
    mu,
    logvar,
    *,
    prior=NONE,
    seed=None,
    eps=None,
    clamp=NONE,
    reduction=None,
    prior_grad=False,
    out=None,
):
    """Gradients of (z, kl) in mu, logvar and, with `prior_grad`, in the prior's mu and logvar; those not made are None.

    grad_z: like mu, any strides, or None; grad_kl: of the kl's shape, any strides, or None. `out` = (grad_mu,
    grad_logvar) are written instead of new tensors. Without grad_kl and `out` the gradient in mu is grad_z itself, and
    None is returned for it. Moves 5L elements for sample + KL: mu, logvar and grad_z in, two gradients out. One launch.
    """
    grads = out or (None if grad_kl is None else torch.empty_like(mu), torch.empty_like(logvar))
    grads = (*grads, *(torch.empty_like(p) if prior_grad else None for p in prior))
    by_sample = grad_kl is not None and reduction in ("sample", "latent")
    upstream = None if grad_kl is None else tiling.expand_upstream(grad_kl, mu, reduction)
    view, (position, *operands) = tiling.view(
        [tiling.dense_like(mu), mu, logvar, *prior, grad_z, upstream, eps, *grads], by_sample
    )
    divisor = reductions.divisor(reduction, mu.shape)
    _launch(_backward, mu, view, tiling.tiles(view), position, operands, seed, divisor, clamp, reduction)
    return grads


def _launch(kernel, mu, view, tiles, position, operands, seed, extra, clamp, reduction):
    with tiling.on_device(mu):
        kernel[(tiles.programs,)](
            tuple(operands), seed, extra, (view.rows, view.columns), view.shape, position[1],
            LOW=clamp[0], HIGH=clamp[1], REDUCTION=reduction, QUADS=view.shape[0] % 4 == 0 and position[1][1] == 1,
            ROWS=tiles.rows, COLUMNS=tiles.columns, AXES=tiles.axes, WIDE=view.wide, num_warps=tiles.warps(view),
        )  # fmt: skip


def _partial_count(view, tiles, reduction):
    if reduction == "sample":
        return view.rows * tiles.column_blocks
    return tiles.row_blocks * view.columns if reduction == "latent" else tiles.programs


def _finish(partials, mu, view, tiles, reduction):
    if reduction == "sample":
        if tiles.column_blocks == 1:
            return partials
        out, outer, count = partials.new_empty(view.rows), view.rows, tiles.column_blocks
        strides = (count, 1)
    elif reduction == "latent":
        out, outer, count = torch.empty_like(mu[0], dtype=partials.dtype), view.columns, tiles.row_blocks
        strides = (1, outer)
    else:
        out, outer, count = partials.new_empty(()), 1, tiles.programs
        strides = (0, 1)
    divisor = reductions.divisor(reduction, mu.shape)
    return reductions.sum_partials(partials, out, outer=outer, count=count, strides=strides, divisor=divisor)


# Instructions per element on sm_90 (make audit): the sum of what a launch asks for, and of `tiling.ISSUED`. Sample + KL
# of whole float32 tensors issues 58 of the 64 that this allows.
ISSUED_FORWARD = {"tensors": 10, "sample": 2, "noise": noise.ISSUED, "kl": 17, "prior": 16, "clamp": 3}


@triton.jit
def _forward(
    operands, seed, partials, size, shape, positions,
    LOW: tl.constexpr, HIGH: tl.constexpr, REDUCTION: tl.constexpr, QUADS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, column = tiling.tile(size[1], ROWS, COLUMNS, AXES, WIDE)
    # A mask on an odd size would narrow every access: full blocks go without one.
    if (row + ROWS <= size[0]) & (column + COLUMNS <= size[1]):
        _forward_tile(
            operands, seed, partials, size, shape, positions, row, column,
            LOW, HIGH, REDUCTION, QUADS, ROWS, COLUMNS, WIDE, False,
        )  # fmt: skip
    else:
        _forward_tile(
            operands, seed, partials, size, shape, positions, row, column,
            LOW, HIGH, REDUCTION, QUADS, ROWS, COLUMNS, WIDE, True,
        )  # fmt: skip


@triton.jit
def _forward_tile(
    operands, seed, partials, size, shape, positions, first_row, first_column,
    LOW: tl.constexpr, HIGH: tl.constexpr, REDUCTION: tl.constexpr, QUADS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    mu, logvar, prior_mu, prior_logvar, z, eps, kl = operands
    row = first_row + tl.arange(0, ROWS)[:, None]
    column = first_column + tl.arange(0, COLUMNS)[None, :]
    inside = None
    if EDGE:
        inside = (row < size[0]) & (column < size[1])
    m = tiling.load(mu, row, column, shape, inside)
    v = clamped(tiling.load(logvar, row, column, shape, inside), LOW, HIGH)
    std = tl.exp(0.5 * v)
    if z is not None:
        e = _noise(eps, seed, positions, row, column, first_column, shape, inside, QUADS, COLUMNS, WIDE)
        tiling.store(z, row, column, shape, inside, m + std * e.to(std.dtype))
    if REDUCTION is not None:
        terms = divergence(m, v, std, _load_prior(prior_mu, prior_logvar, row, column, shape, inside))
        if EDGE:
            terms = tl.where(inside, terms, 0.0)
        if REDUCTION == "none":
            tiling.store(kl, row, column, shape, inside, terms)
        elif REDUCTION == "sample":
            line = first_row + tl.arange(0, ROWS)
            block = line * tl.cdiv(size[1], COLUMNS) + first_column // COLUMNS
            tl.store(partials + block, tl.sum(terms, 1), mask=line < size[0])
        elif REDUCTION == "latent":
            line = first_column + tl.arange(0, COLUMNS)
            tl.store(partials + (first_row // ROWS) * size[1] + line, tl.sum(terms, 0), mask=line < size[1])
        else:
            tl.store(partials + tl.program_id(0), tl.sum(tl.sum(terms, 1), 0))


# As ISSUED_FORWARD; the gradients of sample + KL issue 60 of 65.
ISSUED_BACKWARD = {
    "tensors": 7,
    "sample": 6,
    "noise": noise.ISSUED,
    "kl": 17,
    "prior": 16,
    "gradient of the prior": 6,
    "clamp": 14,
}


@triton.jit
def _backward(
    operands, seed, divisor, size, shape, positions,
    LOW: tl.constexpr, HIGH: tl.constexpr, REDUCTION: tl.constexpr, QUADS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, column = tiling.tile(size[1], ROWS, COLUMNS, AXES, WIDE)
    if (row + ROWS <= size[0]) & (column + COLUMNS <= size[1]):
        _backward_tile(
            operands, seed, divisor, size, shape, positions, row, column,
            LOW, HIGH, REDUCTION, QUADS, ROWS, COLUMNS, WIDE, False,
        )  # fmt: skip
    else:
        _backward_tile(
            operands, seed, divisor, size, shape, positions, row, column,
            LOW, HIGH, REDUCTION, QUADS, ROWS, COLUMNS, WIDE, True,
        )  # fmt: skip


@triton.jit
def _backward_tile(
    operands, seed, divisor, size, shape, positions, first_row, first_column,
    LOW: tl.constexpr, HIGH: tl.constexpr, REDUCTION: tl.constexpr, QUADS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    mu, logvar, prior_mu, prior_logvar, grad_z, grad_kl, eps, out_mu, out_logvar, out_prior_mu, out_prior_logvar = (
        operands
    )
    row = first_row + tl.arange(0, ROWS)[:, None]
    column = first_column + tl.arange(0, COLUMNS)[None, :]
    inside = None
    if EDGE:
        inside = (row < size[0]) & (column < size[1])
    raw = tiling.load(logvar, row, column, shape, inside)
    v = clamped(raw, LOW, HIGH)
    std = tl.exp(0.5 * v)
    d_mu = tl.zeros_like(std)
    d_logvar = tl.zeros_like(std)
    if grad_z is not None:
        d_mu = tiling.load(grad_z, row, column, shape, inside)
        e = _noise(eps, seed, positions, row, column, first_column, shape, inside, QUADS, COLUMNS, WIDE)
        d_logvar = d_mu * e.to(std.dtype) * (0.5 * std)
    if grad_kl is not None:
        g = tiling.load_spread(grad_kl, row, column, size, shape, REDUCTION, EDGE) / divisor
        m = tiling.load(mu, row, column, shape, inside)
        prior = _load_prior(prior_mu, prior_logvar, row, column, shape, inside)
        kl_mu, kl_logvar = divergence_gradient(m, v, std, prior)
        d_mu = d_mu + g * kl_mu
        d_logvar = d_logvar + g * kl_logvar
        if out_prior_mu is not None:
            tiling.store(out_prior_mu, row, column, shape, inside, -g * kl_mu)
            tiling.store(out_prior_logvar, row, column, shape, inside, -g * (kl_logvar + 0.5 * kl_mu * (m - prior[0])))
    if out_mu is not None:
        tiling.store(out_mu, row, column, shape, inside, d_mu)
    tiling.store(out_logvar, row, column, shape, inside, clamped_gradient(d_logvar, raw, LOW, HIGH))


@triton.jit
def _load_prior(prior_mu, prior_logvar, row, column, shape, inside):
    """(mu, logvar), or () for N(0, I). Triton 3.6 cannot return None."""
    if prior_mu is None:
        return ()
    else:
        return (
            tiling.load(prior_mu, row, column, shape, inside),
            tiling.load(prior_logvar, row, column, shape, inside),
        )


@triton.jit
def _noise(
    eps, seed, positions, row, column, first_column, shape, inside,
    QUADS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The given eps, or the seed's: the same in forward and backward."""
    if eps is not None:
        return tiling.load(eps, row, column, shape, inside)
    elif QUADS:
        quad = first_column + 4 * tl.arange(0, COLUMNS // 4)[None, :]
        return noise.normal_quads(tl.load(seed), tiling.offset(row, quad, shape, positions), noise.LATENTS, WIDE)
    else:
        return noise.normal_lanes(tl.load(seed), tiling.offset(row, column, shape, positions), noise.LATENTS, WIDE)


@triton.jit
def clamped(logvar, LOW: tl.constexpr, HIGH: tl.constexpr):
    """logvar within [LOW, HIGH]; NaN stays NaN."""
    if LOW is not None:
        low = tl.full((1, 1), LOW, logvar.dtype)  # a bare constant would be rounded to float32 first
        high = tl.full((1, 1), HIGH, logvar.dtype)
        logvar = tl.clamp(logvar, low, high, propagate_nan=tl.PropagateNan.ALL)
    return logvar


@triton.jit
def clamped_gradient(gradient, logvar, LOW: tl.constexpr, HIGH: tl.constexpr):
    """The gradient through `clamped`: 1 at the bounds, 0 outside; NaN stays NaN."""
    if LOW is not None:
        low = tl.full((1, 1), LOW, logvar.dtype)
        high = tl.full((1, 1), HIGH, logvar.dtype)
        gradient = tl.where((logvar < low) | (logvar > high), 0.0, gradient)
    return gradient


@triton.jit
def divergence(mu, logvar, std, prior):
    """KL(N(mu, exp(logvar)) || prior) of each element in nats (Kingma & Welling 2014, appendix B)."""
    if len(prior) == 0:
        return 0.5 * (mu * mu + expm1_minus_x(logvar, std * std))
    else:
        ratio = logvar - prior[1]
        shift = mu - prior[0]
        return 0.5 * (expm1_minus_x(ratio, tl.exp(ratio)) + shift * shift * tl.exp(-prior[1]))


@triton.jit
def divergence_gradient(mu, logvar, std, prior):
    """Derivatives of `divergence` in mu and logvar.

    In the prior's mu it is minus the first, in its logvar minus the second and half of the first times (mu - prior mu).
    """
    if len(prior) == 0:
        return mu, 0.5 * expm1(logvar, std * std)
    else:
        ratio = logvar - prior[1]
        return (mu - prior[0]) * tl.exp(-prior[1]), 0.5 * expm1(ratio, tl.exp(ratio))
