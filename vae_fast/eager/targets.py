"""The target as the losses read it, in its own dtype, scaled and sampled; and what a weight does to a loss."""

import torch

from vae_fast.eager import noise

PLAIN = (None, None, 1.0)  # weight, seed, scale: no weight, nothing sampled, the target as it is


def read(target, scale, dtype):
    """The target times `scale` in `dtype`."""
    target = target.to(dtype)
    return target if scale == 1 else target * scale


def sampled(target, seed, scale, like):
    """A sample of the target, by the noise contract: u is the i-th number of the memory of a sample of `like`."""
    return binary(noise.uniform(seed, like), read(target, scale, torch.float32))


def binary(u, grey):
    """1 where u < grey and 0 elsewhere, as float32; NaN stays NaN."""
    return torch.where(u < grey, 1.0, 0 * grey)


def weighted(value, weight, scale=None, out=None):
    """value * weight * scale, and 0 where the weight is 0, whatever the value; in `out` if there is one.

    Zeros are made of the product's bits: torch.where takes up to 8 times as long on a CPU.
    """
    if weight is None:
        return value
    factor = weight.to(value.dtype)
    made = torch.mul(value, factor if scale is None else factor * scale, out=out)
    integer = torch.int64 if made.dtype == torch.float64 else torch.int32
    made.view(integer).bitwise_and_((weight != 0).to(integer).neg_())
    return made
