"""The negative ELBO: the reconstruction's first stage, and a second stage that averages the kl and adds."""

import triton
import triton.language as tl

from vae_fast.kernels import reconstruction, reductions, targets, tiling
from vae_fast.kernels.upstreams import Upstream


def forward(params, target, kl, beta_tensor, beta, likelihood, wanted, extras=targets.PLAIN):
    """(total, reconstruction, kl) in nats per sample, 0-d, and the wanted gradients for an upstream gradient of 1.

    kl: [B] with any stride, averaged here, or 0-d, already averaged. beta is `beta_tensor` (0-d), or the number where
    that is None. The rest as in `reconstruction.forward`: moves what that does, and the kl. Two launches.
    """
    stage = reconstruction.first_stage(params, target, likelihood, "batchmean", wanted, extras)
    losses = [stage.partials.new_empty(()) for _ in range(3)]
    _, columns, warps = reductions.sum_tile(1, stage.count)
    _, kl_columns, _ = reductions.sum_tile(1, kl.numel())
    with tiling.on_device(target):
        _total[(1,)](
            stage.partials, stage.count, kl, kl.numel(), kl.stride(0) if kl.dim() else 0, beta_tensor, beta,
            reductions.divisor("batchmean", target.shape), *losses,
            COLUMNS=columns, KL_COLUMNS=kl_columns, num_warps=warps,
        )  # fmt: skip
    return *losses, stage.grads


def backward(
    grad_total, grad_reconstruction, grad_kl, params, target, kl, beta_tensor, beta, likelihood, wanted,
    extras=targets.PLAIN,
):  # fmt: skip
    """(the gradient of each kl, 0-d; the wanted gradients), recomputed in one launch."""
    upstream = gather(grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta)
    return upstream.kl_grad, reconstruction.backward(upstream, params, target, likelihood, "batchmean", wanted, extras)


def scale_(grads, grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta):
    """Multiply the gradients made in forward by their upstream gradient, in place; returns each kl's, 0-d."""
    upstream = gather(grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta)
    reconstruction.scale_(grads, upstream)
    return upstream.kl_grad


def gather(grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta):
    return Upstream(grad_total, grad_reconstruction, grad_kl, beta_tensor, kl.new_empty(()), kl.numel(), beta)


@triton.jit
def _total(
    partials, count, kl, kl_count, kl_stride, beta_tensor, beta: "fp64", divisor, total_out, reconstruction_out, kl_out,
    COLUMNS: tl.constexpr, KL_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, 1)
    nll = reductions.add_partials(partials, row, 1, count, (0, 1), 1, 1, COLUMNS) / divisor
    divergence = reductions.add_partials(kl, row, 1, kl_count, (0, kl_stride), 1, 1, KL_COLUMNS) / kl_count
    if beta_tensor is not None:
        total = nll + divergence * tl.load(beta_tensor)
    else:
        total = nll + divergence * beta
    tl.store(total_out + row, total)
    tl.store(reconstruction_out + row, nll)
    tl.store(kl_out + row, divergence)
