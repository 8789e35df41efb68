"""The target as the losses read it, in its own dtype, scaled and sampled; and what a weight does to a loss."""

import math

import torch

from vae_fast.eager import noise
from vae_fast.eager.elementary import cast, is_at_hand, sum_of_logs, sum_of_squares

PLAIN = (None, None, 1.0)  # weight, seed, scale: no weight, nothing sampled, the target as it is


def read(target, scale, dtype):
    """The target times `scale` in `dtype`."""
    target = cast(target, dtype)
    return target if scale == 1 else target * scale


def sampled(target, seed, scale, like):
    """A sample of the target, by the noise contract: u is the i-th number of the memory of a sample of `like`."""
    return binary(noise.uniform(seed, like), read(target, scale, torch.float32))


def binary(u, grey):
    """1 where u < grey and 0 elsewhere, as float32; NaN stays NaN."""
    return torch.where(u < grey, 1.0, 0 * grey)


def own_size(weight, dtype):
    """The weight in `dtype`, expanded along the batch alone: what is done with it costs no more than its own size."""
    for d in range(1, weight.dim()):
        if not weight.stride(d):
            weight = weight.narrow(d, 0, min(weight.shape[d], 1))
    if weight.stride(0):
        return weight.to(dtype)
    return weight[:1].to(dtype).expand_as(weight)


def weighted(value, weight, scale=1.0, out=None):
    """value * weight * scale, and 0 where the weight is 0, whatever the value; in `out` if there is one.

    scale: a number, or a tensor that broadcasts as the weight does.
    """
    is_shared = weight.numel() < value.numel()
    if isinstance(scale, torch.Tensor) or is_shared:
        made = torch.mul(value, weight * scale, out=out)
    elif scale == 1:
        made = torch.mul(value, weight, out=out)
    else:
        made = torch.addcmul(value.new_zeros(()), value, weight, value=scale, out=out)
    if is_at_hand(made):
        has_no_zero = is_shared and weight.all().item()
        if has_no_zero or math.isfinite(made.sum().item()):
            return made
    # By their bits: torch.where takes up to 8 times as long on a CPU.
    integer = torch.int64 if made.dtype == torch.float64 else torch.int32
    made.view(integer).bitwise_and_((weight != 0).to(integer).neg_())
    return made


class Sums:
    """Sums over a block, weighted where there is a weight: by `times`, which is torch's or one that bears 0 * NaN."""

    def __init__(self, weight, times=torch.mul):
        self._weight, self._times = weight, times

    def of(self, values):
        if self._weight is None:
            return values.sum()
        return self._times(values.sum_to_size(self._weight.shape), self._weight).sum()

    def of_squares(self, values):
        """The sum of the squares of the values."""
        plain = self._weight is None and values.is_cpu and values.dtype is torch.float32 and values.is_contiguous()
        return sum_of_squares(values) if plain else self.of(torch.square(values))

    def of_logs(self, values):
        """The sum of the logarithms of new, dense memory that holds numbers in [1/2, 2], and may be lost."""
        return sum_of_logs(values) if self._weight is None else self.of(values.log_())

    def of_ones(self, values):
        """The sum of a 1 for each of the values."""
        count = values.numel()
        return count if self._weight is None else self._weight.sum() * (count / max(self._weight.numel(), 1))
