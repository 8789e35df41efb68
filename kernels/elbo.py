"""The negative ELBO: the reconstruction's first stage, and a second stage that also averages the kl and adds."""

import torch
import triton
import triton.language as tl

from vae_fast.kernels import reconstruction, reductions, targets, tiling
from vae_fast.kernels.launching import launch, replayed
from vae_fast.kernels.upstreams import Upstream


@replayed
def forward(params, target, kl, beta_tensor, beta, likelihood, wanted, extras=targets.PLAIN):
    """(total, reconstruction, kl) in nats per sample, 0-d, and the wanted gradients for an upstream gradient of 1.

    kl: [B] with any stride, averaged here, or 0-d, already averaged. beta is `beta_tensor` (0-d), or the number where
    that is None. The rest as in `reconstruction.forward`: moves what that does, and the kl. Two launches.
    """
    stage = reconstruction.first_stage(params, target, likelihood, "batchmean", wanted, extras)
    total, kl_mean = torch.empty_like(stage.loss), torch.empty_like(stage.loss)
    strides = (0, kl.stride(0) if kl.dim() else 0)
    nll, *grads = stage.sums
    sums = nll, reductions.Sum(kl, kl_mean, 1, kl.numel(), strides, divisor=kl.numel()), *grads
    programs, tiles, warps = reductions.grid(sums)
    with tiling.on_device(target):
        launch(_total, programs - 1, sums, beta_tensor, beta, total, TILES=tiles, warps=warps)
    return total, stage.loss, kl_mean, stage.grads


@replayed
def backward(
    grad_total, grad_reconstruction, grad_kl, params, target, kl, beta_tensor, beta, likelihood, wanted,
    extras=targets.PLAIN,
):  # fmt: skip
    """(the gradient of each kl, 0-d; the wanted gradients), recomputed: launches as in `reconstruction.backward`."""
    upstream = gather(grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta)
    return upstream.kl_grad, reconstruction.backward(upstream, params, target, likelihood, "batchmean", wanted, extras)


@replayed
def scale_(grads, grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta):
    """Multiply the gradients made in forward by their upstream gradient, in place; returns each kl's, 0-d."""
    upstream = gather(grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta)
    reconstruction.scale_(grads, upstream)
    return upstream.kl_grad


def gather(grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta):
    return Upstream(grad_total, grad_reconstruction, grad_kl, beta_tensor, kl.new_empty(()), kl.numel(), beta)


@triton.jit
def _total(sums, beta_tensor, beta: "fp64", total, TILES: tl.constexpr):
    """The first two of `sums`, of the nll and of the kl, are for one program: it needs both."""
    program = tl.program_id(0)
    if program == 0:
        row = tl.arange(0, 1)
        nll = reductions.add(sums[0], row, TILES, 0)
        kl = reductions.add(sums[1], row, TILES, 1)
        weight = beta
        if beta_tensor is not None:
            weight = tl.load(beta_tensor)
        tl.store(total + row, nll + kl * weight)
        tl.store(sums[0].out + row, nll)
        tl.store(sums[1].out + row, kl)
    else:
        reductions.finish(sums, program - 1, TILES, 2)
