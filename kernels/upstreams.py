"""The upstream gradients of scalar losses, and the scaling of gradients that forward made for one of 1."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from vae_fast.kernels import tiling
from vae_fast.kernels.launching import launch, replayed

SCALE_PROGRAMS = 1024  # where the upstream gradient is 1 they read it and return; fewer would not fill a large GPU


class Upstream(NamedTuple):
    """Upstream gradients of scalar losses, on the device, and where the gradient of the kl goes.

    The reconstruction's is total + reconstruction; each kl's is (total * beta + kl) / kl_count. beta is `beta_tensor`,
    or the number where that is None.
    """

    total: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    kl: torch.Tensor | None = None
    beta_tensor: torch.Tensor | None = None
    kl_grad: torch.Tensor | None = None
    kl_count: int = 1
    beta: float = 1.0


@replayed
def scale_(grads, grad_loss):
    """Multiply the gradients made in forward by the upstream gradient, in place, and write the kl's, in one launch.

    Where the upstream gradient is 1 no gradient is touched: the comparison is made on the device, because on the host
    it would cost a synchronisation and break graph capture. Otherwise moves 2N elements for each of `grads`, of N.
    Returns `grads`.
    """
    sizes = tuple(grad.numel() for grad in grads)
    size = max(sizes)
    programs = min(tiling.ceil_div(size, tiling.FLAT_TILE), SCALE_PROGRAMS)
    wide = size > tiling.MAX_INT32_EXTENT - programs * tiling.FLAT_TILE
    with tiling.on_device(grads[0]):
        launch(
            _scale, programs,
            tuple(grads), *arguments(of(grad_loss)), size, sizes, programs,
            TILE=tiling.FLAT_TILE, WIDE=wide, warps=16 if wide else 8,
        )  # fmt: skip
    return grads


def of(grad_loss):
    """The `Upstream` of a reconstruction's own gradient, or what is one already."""
    return grad_loss if isinstance(grad_loss, Upstream) else Upstream(reconstruction=grad_loss)


def arguments(upstream):
    """An `Upstream`, or None, as kernel arguments: beta apart, because a number in a tuple is float32 to Triton."""
    return (None, 1.0) if upstream is None else (tuple(upstream[:-1]), upstream.beta)


@triton.jit
def scalar_upstream(scalars, beta):
    """The reconstruction's upstream gradient (see `Upstream`); the first program writes the kl's gradient."""
    total, reconstruction, kl, beta_tensor, kl_grad, kl_count = scalars
    g = 0.0
    if total is not None:
        g = tl.load(total)
    if kl_grad is not None:  # noqa: SIM102 (one condition is for the compiler, the other for the GPU)
        if tl.program_id(0) == 0:
            weight = beta
            if beta_tensor is not None:
                weight = tl.load(beta_tensor)
            kl_g = g * weight
            if kl is not None:
                kl_g = kl_g + tl.load(kl)
            tl.store(kl_grad, kl_g / kl_count)
    if reconstruction is not None:
        g = g + tl.load(reconstruction)
    return g


# Instructions per element on sm_90 (make audit), for each tensor scaled.
ISSUED_SCALE = 4.5
ISSUED_SCALE_WIDE = 7  # beyond 2^31 elements a thread has half as many: 64-bit offsets take the registers


@triton.jit
def _scale(grads, scalars, beta: "fp64", size, sizes, programs, TILE: tl.constexpr, WIDE: tl.constexpr):
    g = scalar_upstream(scalars, beta)
    if g != 1.0:
        start = tl.program_id(0)
        if WIDE:
            start = start.to(tl.int64)
        start = start * TILE
        while start < size:
            at = start + tl.arange(0, TILE)
            for k in tl.static_range(len(grads)):
                if start + TILE <= sizes[k]:
                    value = tiling.upcast(tl.load(grads[k] + at))
                    tl.store(grads[k] + at, (value * g).to(grads[k].dtype.element_ty))
                else:
                    value = tiling.upcast(tl.load(grads[k] + at, mask=at < sizes[k], other=0))
                    tl.store(grads[k] + at, (value * g).to(grads[k].dtype.element_ty), mask=at < sizes[k])
            start += programs * TILE
