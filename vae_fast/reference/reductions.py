"""How a loss per element becomes what the user asked for, and the adjoint that carries a gradient back."""

import math

import numpy as np

REDUCTIONS = ("none", "sample", "latent", "sum", "mean", "batchmean")


def _axes_and_count(shape, reduction):
    """The axes that a reduction sums over, and what it divides the sum by."""
    if reduction == "none":
        return (), 1
    if reduction == "sample":
        return tuple(range(1, len(shape))), 1
    if reduction == "latent":
        return (0,), shape[0]
    everything = tuple(range(len(shape)))
    if reduction == "sum":
        return everything, 1
    if reduction == "mean":
        return everything, math.prod(shape)
    if reduction == "batchmean":
        return everything, shape[0]
    raise ValueError(f"reduction is {reduction!r}: expected one of {', '.join(REDUCTIONS)}")


@np.errstate(over="ignore", invalid="ignore")
def reduce(values, reduction):
    """Reduce values [B, ...] to

    - "none": themselves, [B, ...]
    - "sample": the sum over all but the batch, [B]
    - "latent": the mean over the batch, [...] (for the Gaussian KL)
    - "sum": the sum over everything, 0-d
    - "mean": the mean over everything, 0-d
    - "batchmean": sum / B, 0-d: nats per sample, as in the ELBO

    An empty batch sums to 0 and averages to NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    axes, count = _axes_and_count(values.shape, reduction)
    return np.sum(values, axis=axes) / count


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def expand(grad, shape, reduction):
    """The adjoint of `reduce`: the gradient in values of `shape`, given the gradient in reduce(values, reduction)."""
    grad = np.asarray(grad, dtype=np.float64)
    axes, count = _axes_and_count(shape, reduction)
    wanted = [size for axis, size in enumerate(shape) if axis not in axes]
    if list(grad.shape) != wanted:
        raise ValueError(f"grad has shape {list(grad.shape)}: {reduction!r} of shape {list(shape)} wants {wanted}")
    return np.broadcast_to(np.expand_dims(grad / count, axes), shape)
