"""The forward kernel of the latent op: the samples and the KL of a tile.

What is not asked for (the sample, the KL, a prior, a clamp, a scale, several samples) is compiled out.
The maths of an element is in `scales` and `divergence`.
"""

import triton
import triton.language as tl

from vae_fast.kernels import divergence, latent, noise, scales, tiling

# Instructions per element on sm_90 (make audit): the sum of what a launch asks for, and of `tiling.ISSUED`. Sample + KL
# of whole float32 tensors issues 50 of the 57 that this allows.
ISSUED = {
    "tensors": 7,
    "sample": 2,
    "noise": noise.ISSUED,
    "closed_form": 17,
    "monte_carlo": 7,
    "prior": 10,
    "clamp": 3,
    "samples": 2,
}
# What a scale adds for the posterior, and again for a prior: to the sample alone, and with either KL.
ISSUED_SCALES = {
    "logvar": {None: 0, "closed_form": 0, "monte_carlo": 0},
    "logstd": {None: 0, "closed_form": 0, "monte_carlo": 0},
    "std": {None: 0, "closed_form": 15, "monte_carlo": 23},
    "softplus": {None: 8, "closed_form": 27, "monte_carlo": 34},
    "soft_clamp": {None: 30, "closed_form": 30, "monte_carlo": 31},
    "soft_clamp with epsilon": {None: 34, "closed_form": 47, "monte_carlo": 51},
}


@triton.jit
def _forward(
    operands, seed, partials, size, shape, positions, samples,
    LOW: tl.constexpr, HIGH: tl.constexpr, SCALE: tl.constexpr, BOUND: tl.constexpr, EPSILON: tl.constexpr,
    KL: tl.constexpr, REDUCTION: tl.constexpr, MANY: tl.constexpr, WAY: tl.constexpr,
    STEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, column = tiling.tile(size[1], ROWS, COLUMNS, AXES, WIDE)
    # A mask on an odd size would narrow every access: full blocks go without one.
    if (row + ROWS <= size[0]) & (column + COLUMNS <= size[1]):
        _forward_tile(
            operands, seed, partials, size, shape, positions, samples, row, column,
            LOW, HIGH, SCALE, BOUND, EPSILON, KL, REDUCTION, MANY, WAY, STEP, ROWS, COLUMNS, WIDE, False,
        )  # fmt: skip
    else:
        _forward_tile(
            operands, seed, partials, size, shape, positions, samples, row, column,
            LOW, HIGH, SCALE, BOUND, EPSILON, KL, REDUCTION, MANY, WAY, STEP, ROWS, COLUMNS, WIDE, True,
        )  # fmt: skip


@triton.jit
def _forward_tile(
    operands, seed, partials, size, shape, positions, samples, first_row, first_column,
    LOW: tl.constexpr, HIGH: tl.constexpr, SCALE: tl.constexpr, BOUND: tl.constexpr, EPSILON: tl.constexpr,
    KL: tl.constexpr, REDUCTION: tl.constexpr, MANY: tl.constexpr, WAY: tl.constexpr,
    STEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    mu, logvar, prior_mu, prior_logvar, z, eps, kl = operands
    row = first_row + tl.arange(0, ROWS)[:, None]
    column = first_column + tl.arange(0, COLUMNS)[None, :]
    inside = None
    if EDGE:
        inside = (row < size[0]) & (column < tiling.whole(size[1], STEP))
    DIRECT: tl.constexpr = SCALE == "std" or SCALE == "softplus" or EPSILON > 0
    m = scales.mean(tiling.load(mu, row, column, shape, inside, STEP), SCALE, BOUND)
    v = scales.clamped(tiling.load(logvar, row, column, shape, inside, STEP), LOW, HIGH)
    v, std = scales.deviation(v, SCALE, BOUND, EPSILON)
    prior = ()
    if REDUCTION is not None:
        prior = latent.load_prior(prior_mu, prior_logvar, row, column, shape, inside, SCALE, BOUND, EPSILON, STEP)
    if z is not None:
        k = latent.first_sample(WIDE)
        if MANY:
            while k < samples[0]:
                _draw(
                    m, v, std, prior, z, eps, kl, seed, partials, size, shape, positions, samples, k,
                    first_row, first_column, inside, KL, DIRECT, REDUCTION, MANY, WAY, STEP, ROWS, COLUMNS, WIDE,
                )  # fmt: skip
                k += 1
        else:
            _draw(
                m, v, std, prior, z, eps, kl, seed, partials, size, shape, positions, samples, k,
                first_row, first_column, inside, KL, DIRECT, REDUCTION, MANY, WAY, STEP, ROWS, COLUMNS, WIDE,
            )  # fmt: skip
    if REDUCTION is not None and KL == "closed_form":
        terms = divergence.closed_form(m, v, std, prior, DIRECT, EPSILON)
        _reduce(terms, kl, partials, size, shape, first_row, first_column, inside, REDUCTION, STEP, ROWS, COLUMNS)


@triton.jit
def _draw(
    m, v, std, prior, z, eps, kl, seed, partials, size, shape, positions, samples, k, first_row, first_column, inside,
    KL: tl.constexpr, DIRECT: tl.constexpr, REDUCTION: tl.constexpr, MANY: tl.constexpr, WAY: tl.constexpr,
    STEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Store sample k and, where it is taken there, its KL."""
    row = first_row + tl.arange(0, ROWS)[:, None]
    column = first_column + tl.arange(0, COLUMNS)[None, :]
    e = latent.draw_noise(
        eps, seed, positions, samples, k, row, column, first_column, shape, inside, MANY, WAY, STEP, COLUMNS, WIDE
    ).to(std.dtype)
    sample = m + std * e
    if MANY:
        z = z[0] + k * tiling.whole(samples[1], STEP), z[1]
    tiling.store(z, row, column, shape, inside, sample, STEP)
    if REDUCTION is not None and KL == "monte_carlo":
        if MANY:
            if REDUCTION == "none":
                kl = kl[0] + k * samples[3], kl[1]
            else:
                partials = partials + k * samples[3]
        terms = divergence.monte_carlo(sample, e, v, std, prior, DIRECT)
        _reduce(terms, kl, partials, size, shape, first_row, first_column, inside, REDUCTION, STEP, ROWS, COLUMNS)


@triton.jit
def _reduce(
    terms, kl, partials, size, shape, first_row, first_column, inside,
    REDUCTION: tl.constexpr, STEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Store the KL of each element, or this program's partial sums."""
    if inside is not None:
        terms = tl.where(inside, terms, 0.0)
    if REDUCTION == "none":
        row = first_row + tl.arange(0, ROWS)[:, None]
        column = first_column + tl.arange(0, COLUMNS)[None, :]
        tiling.store(kl, row, column, shape, inside, terms, STEP)
    elif REDUCTION == "sample":
        line = first_row + tl.arange(0, ROWS)
        block = line * tl.cdiv(size[1], COLUMNS) + first_column // COLUMNS
        tl.store(partials + block, tl.sum(terms, 1), mask=line < size[0])
    elif REDUCTION == "latent":
        line = first_column + tl.arange(0, COLUMNS)
        tl.store(partials + (first_row // ROWS) * size[1] + line, tl.sum(terms, 0), mask=line < size[1])
    else:
        tl.store(partials + tl.program_id(0), tl.sum(tl.sum(terms, 1), 0))
