"""Objectives beyond the ELBO, made of its parts: free bits, capacity, and importance-weighted samples.

They work on vectors of one number a sample or a latent, where plain PyTorch operators cost nothing worth a kernel.
"""

import math

import torch
from torch import Tensor

from vae_fast import checks
from vae_fast.eager.elementary import clamp


def free_bits(kl: Tensor, nats: float | Tensor, *, per: str = "sample") -> Tensor:
    """The KL with a floor, below which it has no gradient.

    Args:
        kl: in nats, float32 or float64. For per="sample": [B] (reduction="sample"), or 0-d, the mean over the batch
            (reduction="batchmean"). For per="latent": [D, ...], the mean of each latent over the batch
            (reduction="latent").
        nats: the floor: a finite number >= 0, or a 0-d tensor.
        per: what has the floor. "sample": max(nats, kl), all latents of a sample together (Hafner et al. 2023, the
            world model's loss). "latent": sum_j max(nats, kl_j), each latent (Kingma et al. 2016, equation 15).

    Returns:
        In kl's dtype. "sample": of its shape; "latent": 0-d, in nats per sample. Either is a kl for `elbo_loss`. The
        gradient is 1 at the floor.

    Raises:
        TypeError, ValueError: kl has another dtype or shape; nats is negative, not finite, not a number or 0-d tensor,
            on another device, or requires a gradient; an unknown `per`.

    >>> free_bits(torch.tensor([0.25, 3.0]), 1.0)
    tensor([1., 3.])
    >>> free_bits(gaussian_kl(torch.zeros(4, 2), torch.zeros(4, 2), reduction="latent"), 0.5, per="latent").item()
    1.0
    """
    checks.choice("per", per, checks.FREE_BITS_PER)
    if per == "latent":
        checks.latent_kl(kl)
    else:
        checks.kl(kl)
    floored = clamp(kl, _bound(nats, kl))
    return floored.sum() if per == "latent" else floored


def capacity(kl: Tensor, nats: float | Tensor) -> Tensor:
    """The distance of the KL from a capacity: |kl - nats| (Burgess et al. 2018, equation 8).

    There it is weighted by gamma, which is the `beta` of `elbo_loss`, and nats grows from 0 during training.

    Args:
        kl: in nats, float32 or float64: [B] (reduction="sample"), for the distance of each sample; or 0-d
            (reduction="batchmean"), for that of the mean over the batch.
        nats: the capacity: a finite number >= 0, or a 0-d tensor.

    Returns:
        Of kl's shape and dtype: a kl for `elbo_loss`.

    Raises:
        TypeError, ValueError: kl has another dtype or shape; nats is negative, not finite, not a number or 0-d tensor,
            on another device, or requires a gradient.

    >>> capacity(torch.tensor([1.0, 7.0]), 5.0)
    tensor([4., 2.])
    """
    checks.kl(kl)
    return (kl - _bound(nats, kl)).abs()


def iwae_loss(nll: Tensor, kl: Tensor, *, reduction: str = "batchmean") -> Tensor:
    """The negative importance-weighted bound of K samples of z for each x (Burda et al. 2015, equation 8), in nats.

    -log((1/K) sum_k w_k) with log w_k = log p(x | z_k) + log p(z_k) - log q(z_k | x) = -(nll_k + kl_k). With K = 1 it
    is the negative ELBO, estimated with that sample; a larger K never raises its expectation.

    Args:
        nll: [K, B], -log p(x | z_k), in nats, float32 or float64, such as `reconstruction_loss(reduction="sample")` of
            K * B samples, viewed as [K, B].
        kl: [K, B], log q(z_k | x) - log p(z_k) at the sample itself, float32 or float64. `gaussian_kl` is the mean of
            that over samples, and gives a bound for K = 1 alone.
        reduction: "batchmean": nats per sample of the batch; "sum"; "sample": [B].

    Returns:
        A scalar, or [B]: differentiable in nll and kl. An empty batch sums to 0 and averages to NaN.

    Raises:
        TypeError, ValueError: nll or kl has another dtype, shape or device, K is 0, or the reduction is unknown.

    >>> iwae_loss(torch.tensor([[2.0], [2.0]]), torch.tensor([[1.0], [1.0]])).item()
    3.0
    """
    checks.importance("nll", nll)
    checks.importance("kl", kl)
    checks.same_shape("kl", kl, "nll", nll)
    checks.same_device("kl", kl, "nll", nll)
    checks.choice("reduction", reduction, checks.IWAE_REDUCTIONS)
    log_weights = -(nll + kl)
    # The backward pass of logsumexp is exp(x - result): with x in thousands of nats, float32 has that wrong by 1e-4.
    largest = log_weights.detach().amax(0)
    largest = largest.where(largest.isfinite(), 0.0)  # weights that are all 0: -inf - -inf would be NaN
    losses = math.log(len(nll)) - torch.logsumexp(log_weights - largest, dim=0) - largest
    if reduction == "sample":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()


def _bound(nats, kl):
    """nats as a number, or as a tensor in kl's dtype: of two 0-d tensors the wider one would decide the result's."""
    tensor, number = checks.scalar("nats", nats, "kl", kl)
    return checks.held(number, kl.dtype) if tensor is None else tensor.to(kl.dtype)
