"""Reductions of elementwise losses and of their upstream gradients."""

import functools

import torch

from vae_fast.eager.elementary import number

LEAST_MEAN = 2**-3


def accumulator(dtype):
    """Arithmetic and losses are float32, float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def divisor(reduction, shape):
    """What the sum is divided by."""
    if reduction == "mean":
        return shape.numel()
    return shape[0] if reduction in ("batchmean", "latent") else 1


def latent_like(values, dtype):
    """A tensor for one number a latent, in the memory format of a sample."""
    if values.shape[0]:  # not len, which makes an int of a symbol: torch.compile would do so for every batch
        return torch.empty_like(values[0], dtype=dtype)
    return values.new_empty(values.shape[1:], dtype=dtype)


def partial(values, reduction, several=False):
    """The sum of some samples' elementwise `values` [b, ...] that `finish` takes: new memory.

    Of `several` such [K, b, ...], one sum for each; of those `general` makes a "latent" one itself.
    """
    if reduction == "sample":
        first = 2 if several else 1
        return values.flatten(first).sum(first) if values.dim() > first else values.clone()
    if several:
        return values.flatten(1).sum(1)
    return values.sum() if reduction != "latent" else torch.sum(values, 0, out=latent_like(values, values.dtype))


def is_sum(reduction):
    """Whether it sums over the elements of a sample."""
    return reduction not in ("none", "latent")


def outweigh_rounding(sums, count):
    """Whether the `sums`, of `count` numbers in all, are so large that float32's rounding of 1 in each is negligible.

    A mean of 1/8 then errs by less than 1e-6 of itself, were all the roundings of one sign. False where there is a NaN.
    """
    if not sums.numel():
        return True
    least = sums.min() if sums.dim() else sums
    return least.item() * sums.numel() >= LEAST_MEAN * count


def finish(partials, reduction, shape):
    """The reduction of values of `shape` from the sums of blocks of them; no samples sum to 0 and average to NaN."""
    if reduction == "sample":
        return partials[0] if len(partials) == 1 else torch.cat(partials, -1)
    return divide(functools.reduce(torch.add, partials), reduction, shape)


def divide(total, reduction, shape):
    """The reduction of values of `shape` from their sum."""
    count = divisor(reduction, shape)
    return total if count == 1 else total / number(count, total.dtype)


def finish_kl(partials, reduction, mu):
    """The same of a KL; that of each latent lies in memory as mu does, whatever logvar's memory format has made."""
    total = finish(partials, reduction, mu.shape)
    return latent_like(mu, total.dtype).copy_(total) if reduction == "latent" else total


def spread(grad, like, reduction, several=False):
    """The upstream gradient of a reduced loss, as it broadcasts to the elements of `like`: 0-d, or [B, ...].

    Of `several` losses it is [K, 1 or B, ...].
    """
    if reduction == "sample":
        grad = grad.reshape(*grad.shape, *(1,) * (like.dim() - 1))
    elif reduction == "latent":
        grad = grad.unsqueeze(1) if several else grad.expand(like.shape)
    elif several and reduction != "none":
        grad = grad.reshape(-1, *(1,) * like.dim())
    count = divisor(reduction, like.shape)
    return grad if count == 1 else grad / count
