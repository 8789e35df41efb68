"""The target as the kernels read it, in its own dtype, scaled and sampled; and what a weight does to a loss."""

import torch
import triton
import triton.language as tl

from vae_fast.kernels import noise, tiling
from vae_fast.kernels.elementary import log1p

PLAIN = (None, None, 1.0)  # weight, seed, scale: no weight, nothing sampled, the target as it is

# Instructions per element on sm_90 (make audit) that each adds to the likelihood's number. bfloat16 logits and bytes
# issue 30 in all, under bernoulli, of the 39 that their 5 bytes an element leave time for.
ISSUED = {
    "integers": 4.5,  # each tensor: conversions
    "scale": 1,
    "binarize": 21,  # Philox, one counter for four elements, where the latents' noise has a logarithm and sines besides
    "weight": 10,  # and a sum takes a logarithm for each element
    "weight of rows": 6,  # more, where the rows of a tile share it
}


def readable(tensor):
    """bool as the bytes that it is."""
    return tensor.view(torch.uint8) if tensor is not None and tensor.dtype == torch.bool else tensor


@triton.jit
def read(
    target, scale, seed, positions, row, column, first_column, shape, inside, like,
    SCALED: tl.constexpr, WAY: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The target times `scale` in the dtype of `like`; with a seed a sample, 1 with that probability and 0 otherwise.

    The probability is float32, and u < p exact, so that the same seed gives the same bits everywhere. NaN stays NaN.
    """
    value = tiling.load(target, row, column, shape, inside, STEP)
    if seed is None:
        return _scaled(value.to(like.dtype), scale, SCALED)
    else:
        grey = _scaled(value.to(tl.float32), scale, SCALED)
        u = noise.draw(tl.load(seed), row, column, first_column, shape, positions, 0, WAY, noise.TARGETS, COLUMNS, WIDE)
        return tl.where(u < grey, 1.0, 0.0 * grey).to(like.dtype)


@triton.jit
def _scaled(value, scale, SCALED: tl.constexpr):
    if SCALED:
        value = value * tl.full((1, 1), scale, value.dtype)
    return value


@triton.jit
def weighted(value, weight):
    """weight * value, and 0 where the weight is 0, whatever the value."""
    return tl.where(weight != 0, value * weight, 0.0)


@triton.jit
def each_nll(base, excess, weights):
    """The nll of each element, from what a likelihood returns."""
    nll = base
    if len(excess) == 1:
        nll = base + log1p(excess[0])
    if weights is not None:
        nll = weighted(nll, weights)
    return nll
