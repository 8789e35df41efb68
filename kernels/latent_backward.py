"""The backward kernel of the latent op: the gradients of a tile, summed over its samples.

As in `latent_forward`, what is not asked for is compiled out.
"""

import triton
import triton.language as tl

from vae_fast.kernels import divergence, latent, noise, scales, tiling

# As in latent_forward; the gradients of sample + KL issue 52 of 57.
ISSUED = {
    "tensors": 5,
    "sample": 6,
    "noise": noise.ISSUED,
    "closed_form": 15,
    "monte_carlo": 5,
    "prior": 6,
    "gradient of the prior": 6,
    "clamp": 14,
    "samples": 5,
}
ISSUED_SCALES = {
    "logvar": {None: 0, "closed_form": 0, "monte_carlo": 0},
    "logstd": {None: 0, "closed_form": 2, "monte_carlo": 2},
    "std": {None: 0, "closed_form": 7, "monte_carlo": 10},
    "softplus": {None: 2, "closed_form": 26, "monte_carlo": 27},
    "soft_clamp": {None: 35, "closed_form": 48, "monte_carlo": 42},
    "soft_clamp with epsilon": {None: 31, "closed_form": 45, "monte_carlo": 45},
}


@triton.jit
def _backward(
    operands, seed, divisor, size, shape, positions, samples,
    LOW: tl.constexpr, HIGH: tl.constexpr, SCALE: tl.constexpr, BOUND: tl.constexpr, EPSILON: tl.constexpr,
    KL: tl.constexpr, REDUCTION: tl.constexpr, MANY: tl.constexpr, WAY: tl.constexpr,
    STEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, column = tiling.tile(size[1], ROWS, COLUMNS, AXES, WIDE)
    if (row + ROWS <= size[0]) & (column + COLUMNS <= size[1]):
        _backward_tile(
            operands, seed, divisor, size, shape, positions, samples, row, column,
            LOW, HIGH, SCALE, BOUND, EPSILON, KL, REDUCTION, MANY, WAY, STEP, ROWS, COLUMNS, WIDE, False,
        )  # fmt: skip
    else:
        _backward_tile(
            operands, seed, divisor, size, shape, positions, samples, row, column,
            LOW, HIGH, SCALE, BOUND, EPSILON, KL, REDUCTION, MANY, WAY, STEP, ROWS, COLUMNS, WIDE, True,
        )  # fmt: skip


@triton.jit
def _backward_tile(
    operands, seed, divisor, size, shape, positions, samples, first_row, first_column,
    LOW: tl.constexpr, HIGH: tl.constexpr, SCALE: tl.constexpr, BOUND: tl.constexpr, EPSILON: tl.constexpr,
    KL: tl.constexpr, REDUCTION: tl.constexpr, MANY: tl.constexpr, WAY: tl.constexpr,
    STEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    mu, logvar, prior_mu, prior_logvar, grad_z, grad_kl, eps, out_mu, out_logvar, out_prior_mu, out_prior_logvar = (
        operands
    )
    row = first_row + tl.arange(0, ROWS)[:, None]
    column = first_column + tl.arange(0, COLUMNS)[None, :]
    inside = None
    if EDGE:
        inside = (row < size[0]) & (column < tiling.whole(size[1], STEP))
    DIRECT: tl.constexpr = SCALE == "std" or SCALE == "softplus" or EPSILON > 0
    raw = tiling.load(logvar, row, column, shape, inside, STEP)
    v, std = scales.deviation(scales.clamped(raw, LOW, HIGH), SCALE, BOUND, EPSILON)
    d_mean = tl.zeros_like(std)
    d_deviation = tl.zeros_like(std)  # in the log-variance, or the standard deviation where that is DIRECT
    d_prior_mean = tl.zeros_like(std)
    d_prior_logvar = tl.zeros_like(std)
    mean = std
    prior = ()
    if grad_kl is not None or SCALE == "soft_clamp":
        raw_mu = tiling.load(mu, row, column, shape, inside, STEP)
        mean = scales.mean(raw_mu, SCALE, BOUND)
    if grad_kl is not None:
        prior = latent.load_prior(prior_mu, prior_logvar, row, column, shape, inside, SCALE, BOUND, EPSILON, STEP)
    if grad_z is not None or KL == "monte_carlo":
        k = latent.first_sample(WIDE)
        if MANY:
            while k < samples[0]:
                sums = _draw_gradient(
                    mean, std, prior, grad_z, grad_kl, eps, seed, divisor, size, shape, positions, samples, k,
                    row, column, first_column, inside, KL, DIRECT, REDUCTION, MANY, WAY, STEP, COLUMNS, WIDE, EDGE,
                )  # fmt: skip
                d_mean += sums[0]
                d_deviation += sums[1]
                if KL == "monte_carlo":
                    d_prior_mean += sums[2]
                    d_prior_logvar += sums[3]
                k += 1
        else:
            d_mean, d_deviation, d_prior_mean, d_prior_logvar = _draw_gradient(
                mean, std, prior, grad_z, grad_kl, eps, seed, divisor, size, shape, positions, samples, k,
                row, column, first_column, inside, KL, DIRECT, REDUCTION, MANY, WAY, STEP, COLUMNS, WIDE, EDGE,
            )  # fmt: skip
    if grad_kl is not None and KL == "closed_form":
        g = tiling.load_spread(grad_kl, row, column, size, shape, REDUCTION, EDGE) / divisor
        half = 0.5 * g
        kl_mean, twice_kl_logvar = divergence.closed_form_gradient(mean, v, std, prior, DIRECT)
        d_mean = d_mean + g * kl_mean
        d_deviation = d_deviation + _through_logvar(half * twice_kl_logvar, std, DIRECT)
        if out_prior_mu is not None:
            d_prior_mean = -g * kl_mean
            d_prior_logvar = -half * (twice_kl_logvar + kl_mean * (mean - prior[0]))
    if out_prior_mu is not None:
        d_prior_mean = scales.mean_gradient(d_prior_mean, prior[3], SCALE, BOUND)
        tiling.store(out_prior_mu, row, column, shape, inside, d_prior_mean, STEP)
        d_prior = _through_logvar(d_prior_logvar, prior[2], DIRECT)
        d_prior = scales.deviation_gradient(d_prior, prior[4], SCALE, BOUND, EPSILON)
        tiling.store(out_prior_logvar, row, column, shape, inside, d_prior, STEP)
    if out_mu is not None:
        if SCALE == "soft_clamp":
            d_mean = scales.mean_gradient(d_mean, raw_mu, SCALE, BOUND)
        tiling.store(out_mu, row, column, shape, inside, d_mean, STEP)
    d_deviation = scales.deviation_gradient(d_deviation, raw, SCALE, BOUND, EPSILON)
    tiling.store(out_logvar, row, column, shape, inside, scales.clamped_gradient(d_deviation, raw, LOW, HIGH), STEP)


@triton.jit
def _draw_gradient(
    mean, std, prior, grad_z, grad_kl, eps, seed, divisor, size, shape, positions, samples, k,
    row, column, first_column, inside,
    KL: tl.constexpr, DIRECT: tl.constexpr, REDUCTION: tl.constexpr, MANY: tl.constexpr, WAY: tl.constexpr,
    STEP: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Sample k's gradients in the mean, the deviation, and the prior's mean and log-variance."""
    e = latent.draw_noise(
        eps, seed, positions, samples, k, row, column, first_column, shape, inside, MANY, WAY, STEP, COLUMNS, WIDE
    ).to(std.dtype)
    d_z = tl.zeros_like(std)
    d_prior_mean = tl.zeros_like(std)
    d_prior_logvar = tl.zeros_like(std)
    if grad_z is not None:
        if MANY:
            grad_z = grad_z[0] + k * tiling.whole(samples[1], STEP), grad_z[1]
        d_z = tiling.load(grad_z, row, column, shape, inside, STEP)
    if KL == "monte_carlo":
        if MANY:
            grad_kl = grad_kl[0] + k * samples[3], grad_kl[1]
        g = tiling.load_spread(grad_kl, row, column, size, shape, REDUCTION, EDGE) / divisor
        sample = mean + std * e
        slope = divergence.slope(sample, prior, DIRECT)
        d_z = d_z + g * slope
        d_deviation = _through_sample(d_z, e, std, DIRECT) + _through_logvar(-0.5 * g, std, DIRECT)
        if len(prior) > 0:
            d_prior_mean = -g * slope
            d_prior_logvar = 0.5 * g * (1.0 - slope * (sample - prior[0]))
    else:
        d_deviation = _through_sample(d_z, e, std, DIRECT)
    return d_z, d_deviation, d_prior_mean, d_prior_logvar


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
