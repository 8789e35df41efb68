"""What the kernels of the latent op share: the prior of a tile, and the noise of one of its samples."""

import triton
import triton.language as tl

from vae_fast.kernels import noise, scales, tiling


@triton.jit
def load_prior(
    prior_mu, prior_logvar, row, column, shape, inside,
    SCALE: tl.constexpr, BOUND: tl.constexpr, EPSILON: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """(mean, log-variance, standard deviation, and both tensors' values), or () for N(0, I): not None in Triton 3.6."""
    if prior_mu is None:
        return ()
    else:
        mu = tiling.load(prior_mu, row, column, shape, inside, STEP)
        raw = tiling.load(prior_logvar, row, column, shape, inside, STEP)
        logvar, std = scales.deviation(raw, SCALE, BOUND, EPSILON)
        return scales.mean(mu, SCALE, BOUND), logvar, std, mu, raw


@triton.jit
def first_sample(WIDE: tl.constexpr):
    """0, as wide as the offsets."""
    if WIDE:
        return (tl.program_id(0) * 0).to(tl.int64)
    else:
        return tl.program_id(0) * 0


@triton.jit
def draw_noise(
    eps, seed, positions, samples, k, row, column, first_column, shape, inside,
    MANY: tl.constexpr, WAY: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The given eps of sample k, or the seed's: the same in forward and backward."""
    if eps is not None:
        if MANY:
            eps = eps[0] + k * tiling.whole(samples[2], STEP), eps[1]
        return tiling.load(eps, row, column, shape, inside, STEP)
    else:
        more = 0
        if MANY:
            more = k * samples[4]
        return noise.draw(
            tl.load(seed), row, column, first_column, shape, positions, more, WAY, noise.LATENTS, COLUMNS, WIDE
        )
