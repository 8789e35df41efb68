"""The kernels of the latent op: the sample and the KL of a tile, and their gradients.

What is not asked for (the sample, the KL, a prior, a clamp, a scale) is compiled out. The maths of an element is in
`scales` and `divergence`.
"""

import triton
import triton.language as tl

from vae_fast.kernels import divergence, noise, scales, tiling

# Instructions per element on sm_90 (make audit): the sum of what a launch asks for, and of `tiling.ISSUED`. Sample + KL
# of whole float32 tensors issues 58 of the 64 that this allows.
ISSUED_FORWARD = {"tensors": 10, "sample": 2, "noise": noise.ISSUED, "kl": 17, "prior": 16, "clamp": 3}


@triton.jit
def _forward(
    operands, seed, partials, size, shape, positions,
    LOW: tl.constexpr, HIGH: tl.constexpr, SCALE: tl.constexpr, BOUND: tl.constexpr, EPSILON: tl.constexpr,
    KL: tl.constexpr, REDUCTION: tl.constexpr, QUADS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, column = tiling.tile(size[1], ROWS, COLUMNS, AXES, WIDE)
    # A mask on an odd size would narrow every access: full blocks go without one.
    if (row + ROWS <= size[0]) & (column + COLUMNS <= size[1]):
        _forward_tile(
            operands, seed, partials, size, shape, positions, row, column,
            LOW, HIGH, SCALE, BOUND, EPSILON, KL, REDUCTION, QUADS, ROWS, COLUMNS, WIDE, False,
        )  # fmt: skip
    else:
        _forward_tile(
            operands, seed, partials, size, shape, positions, row, column,
            LOW, HIGH, SCALE, BOUND, EPSILON, KL, REDUCTION, QUADS, ROWS, COLUMNS, WIDE, True,
        )  # fmt: skip


@triton.jit
def _forward_tile(
    operands, seed, partials, size, shape, positions, first_row, first_column,
    LOW: tl.constexpr, HIGH: tl.constexpr, SCALE: tl.constexpr, BOUND: tl.constexpr, EPSILON: tl.constexpr,
    KL: tl.constexpr, REDUCTION: tl.constexpr, QUADS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    mu, logvar, prior_mu, prior_logvar, z, eps, kl = operands
    row = first_row + tl.arange(0, ROWS)[:, None]
    column = first_column + tl.arange(0, COLUMNS)[None, :]
    inside = None
    if EDGE:
        inside = (row < size[0]) & (column < size[1])
    DIRECT: tl.constexpr = SCALE == "std" or SCALE == "softplus" or EPSILON > 0
    m = scales.mean(tiling.load(mu, row, column, shape, inside), SCALE, BOUND)
    v = scales.clamped(tiling.load(logvar, row, column, shape, inside), LOW, HIGH)
    v, std = scales.deviation(v, SCALE, BOUND, EPSILON)
    if z is not None:
        e = _noise(eps, seed, positions, row, column, first_column, shape, inside, QUADS, COLUMNS, WIDE).to(std.dtype)
        sample = m + std * e
        tiling.store(z, row, column, shape, inside, sample)
    if REDUCTION is not None:
        prior = _load_prior(prior_mu, prior_logvar, row, column, shape, inside, SCALE, BOUND, EPSILON)
        if KL == "monte_carlo":
            terms = divergence.monte_carlo(sample, e, v, std, prior, DIRECT)
        else:
            terms = divergence.closed_form(m, v, std, prior, DIRECT)
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
    LOW: tl.constexpr, HIGH: tl.constexpr, SCALE: tl.constexpr, BOUND: tl.constexpr, EPSILON: tl.constexpr,
    KL: tl.constexpr, REDUCTION: tl.constexpr, QUADS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, column = tiling.tile(size[1], ROWS, COLUMNS, AXES, WIDE)
    if (row + ROWS <= size[0]) & (column + COLUMNS <= size[1]):
        _backward_tile(
            operands, seed, divisor, size, shape, positions, row, column,
            LOW, HIGH, SCALE, BOUND, EPSILON, KL, REDUCTION, QUADS, ROWS, COLUMNS, WIDE, False,
        )  # fmt: skip
    else:
        _backward_tile(
            operands, seed, divisor, size, shape, positions, row, column,
            LOW, HIGH, SCALE, BOUND, EPSILON, KL, REDUCTION, QUADS, ROWS, COLUMNS, WIDE, True,
        )  # fmt: skip


@triton.jit
def _backward_tile(
    operands, seed, divisor, size, shape, positions, first_row, first_column,
    LOW: tl.constexpr, HIGH: tl.constexpr, SCALE: tl.constexpr, BOUND: tl.constexpr, EPSILON: tl.constexpr,
    KL: tl.constexpr, REDUCTION: tl.constexpr, QUADS: tl.constexpr,
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
    DIRECT: tl.constexpr = SCALE == "std" or SCALE == "softplus" or EPSILON > 0
    raw = tiling.load(logvar, row, column, shape, inside)
    v, std = scales.deviation(scales.clamped(raw, LOW, HIGH), SCALE, BOUND, EPSILON)
    d_mean = tl.zeros_like(std)
    d_deviation = tl.zeros_like(std)  # in the log-variance, or the standard deviation where that is DIRECT
    if grad_z is not None or KL == "monte_carlo":
        e = _noise(eps, seed, positions, row, column, first_column, shape, inside, QUADS, COLUMNS, WIDE).to(std.dtype)
    if grad_z is not None:
        d_mean = tiling.load(grad_z, row, column, shape, inside)
        d_deviation = _through_sample(d_mean, e, std, DIRECT)
    if grad_kl is not None or SCALE == "soft_clamp":
        raw_mu = tiling.load(mu, row, column, shape, inside)
    if grad_kl is not None:
        g = tiling.load_upstream(grad_kl, row, column, size, shape, REDUCTION, EDGE) / divisor
        at = scales.mean(raw_mu, SCALE, BOUND)
        prior = _load_prior(prior_mu, prior_logvar, row, column, shape, inside, SCALE, BOUND, EPSILON)
        if KL == "monte_carlo":
            at = at + std * e
            kl_mean = divergence.slope(at, prior, DIRECT)
            kl_logvar = tl.zeros_like(std) - 0.5
            d_deviation = d_deviation + _through_sample(g * kl_mean, e, std, DIRECT)
        else:
            kl_mean, kl_logvar = divergence.closed_form_gradient(at, v, std, prior, DIRECT)
        d_mean = d_mean + g * kl_mean
        d_deviation = d_deviation + _through_logvar(g * kl_logvar, std, DIRECT)
        if out_prior_mu is not None:
            d_prior_mu = scales.mean_gradient(-g * kl_mean, prior[3], SCALE, BOUND)
            tiling.store(out_prior_mu, row, column, shape, inside, d_prior_mu)
            d_prior = -g * (kl_logvar + 0.5 * kl_mean * (at - prior[0]))
            d_prior = _through_logvar(d_prior, prior[2], DIRECT)
            d_prior = scales.deviation_gradient(d_prior, prior[4], SCALE, BOUND, EPSILON)
            tiling.store(out_prior_logvar, row, column, shape, inside, d_prior)
    if out_mu is not None:
        if SCALE == "soft_clamp":
            d_mean = scales.mean_gradient(d_mean, raw_mu, SCALE, BOUND)
        tiling.store(out_mu, row, column, shape, inside, d_mean)
    d_deviation = scales.deviation_gradient(d_deviation, raw, SCALE, BOUND, EPSILON)
    tiling.store(out_logvar, row, column, shape, inside, scales.clamped_gradient(d_deviation, raw, LOW, HIGH))


@triton.jit
def _through_sample(gradient, eps, std, DIRECT: tl.constexpr):
    """The gradient in the log-variance, or the standard deviation where that is DIRECT, of one in z."""
    if DIRECT:
        return gradient * eps
    else:
        return gradient * eps * (0.5 * std)


@triton.jit
def _through_logvar(gradient, std, DIRECT: tl.constexpr):
    """The same, of one in the log-variance."""
    if DIRECT:
        return gradient * 2.0 / std
    else:
        return gradient


@triton.jit
def _load_prior(
    prior_mu, prior_logvar, row, column, shape, inside,
    SCALE: tl.constexpr, BOUND: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    """(mean, log-variance, standard deviation, and both tensors' values), or () for N(0, I): not None in Triton 3.6."""
    if prior_mu is None:
        return ()
    else:
        mu = tiling.load(prior_mu, row, column, shape, inside)
        raw = tiling.load(prior_logvar, row, column, shape, inside)
        logvar, std = scales.deviation(raw, SCALE, BOUND, EPSILON)
        return scales.mean(mu, SCALE, BOUND), logvar, std, mu, raw


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
