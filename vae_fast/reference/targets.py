"""The target as a loss reads it, scaled and sampled; and what a weight does to a loss."""

import numpy as np

from . import noise


def read(target, scale):
    """The target, of any real dtype, times `scale`."""
    return np.asarray(target, dtype=np.float64) * float(scale)


def binarize(target, seed, scale=1.0):
    """A sample of 0 and 1 whose probability of 1 is the target times `scale`: 1 where u < p (NaN stays NaN).

    Element i of the C-contiguous target takes number i of `noise.uniform`. The target, the scale and their product are
    rounded to float32, whatever the dtype: the comparison is then exact, and the same bit for bit everywhere.

    >>> binarize([0, 255, 0, 255], seed=0, scale=1 / 255).tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    target = np.asarray(target)
    p = (target.astype(np.float32) * np.float32(scale)).astype(np.float64)
    sample = noise.uniform(seed, p.size).reshape(p.shape) < p
    return np.where(np.isnan(p), np.nan, sample)


@np.errstate(over="ignore", invalid="ignore")
def weighted(values, weight):
    """weight * values [B, ...], and 0 where the weight is 0, whatever the value.

    weight: None; [B], one a sample; or an array that broadcasts to values, of as many dimensions.
    """
    values = np.asarray(values, dtype=np.float64)
    if weight is None:
        return values
    weight = np.asarray(weight, dtype=np.float64)
    if weight.ndim == 1 < values.ndim and len(weight) == len(values):
        weight = weight.reshape(-1, *(1 for _ in values.shape[1:]))
    if weight.ndim != values.ndim:
        raise ValueError(f"weight has shape {list(weight.shape)}: expected one that suits {list(values.shape)}")
    weight = np.broadcast_to(weight, values.shape)
    return np.where(weight == 0, 0.0, values * weight)
