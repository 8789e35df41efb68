"""The latent op: reparameterised sample and KL of a diagonal Gaussian, forward and backward.

One kernel each way, in `latent`: these are their launchers.
"""

import torch

from vae_fast.kernels import latent, reductions, tiling

NONE = (None, None)
LOGVAR = ("logvar", 0.0, 0.0)


def forward(
    mu,
    logvar,
    *,
    prior=NONE,
    seed=None,
    eps=None,
    clamp=NONE,
    scale=LOGVAR,
    kl="closed_form",
    reduction=None,
):
    """z = mu + exp(logvar / 2) * eps where seed or eps is given, and the KL to the prior where a reduction is.

    mu, logvar, the prior's two tensors and eps: [B, ...] of one shape, any strides; seed: int64 [1]. scale: what the
    second tensors hold, as (name, bound, epsilon). kl: "closed_form", or "monte_carlo": at z before it is rounded.
    Returns (z like mu or None, kl float32 or None). Moves 3L elements for sample + KL (eps and each tensor of a prior
    1L more), the kl and the 8-byte seed: without eps, noise is made in registers and never stored. One launch; one more
    for the partial sums of "latent", of the scalar reductions, and of "sample" beyond MAX_COLUMNS latents.
    """
    z = None if seed is None and eps is None else torch.empty_like(mu)
    elementwise = torch.empty_like(mu, dtype=tiling.accumulator(mu.dtype)) if reduction == "none" else None
    view, (position, *operands) = tiling.view(
        [_like_sample(mu), mu, logvar, *prior, z, eps, elementwise], by_sample=reduction in ("sample", "latent")
    )
    tiles = tiling.tiles(view, over_samples=reduction == "latent")
    partials = None
    if reduction not in (None, "none"):
        partials = reductions.workspace(mu, _partial_count(view, tiles, reduction))
    _launch(latent._forward, mu, view, tiles, position, operands, seed, partials, clamp, scale, kl, reduction)
    return z, elementwise if partials is None else _finish(partials, mu, view, tiles, reduction)


def backward(
    grad_z,
    grad_kl,
    mu,
    logvar,
    *,
    prior=NONE,
    seed=None,
    eps=None,
    clamp=NONE,
    scale=LOGVAR,
    kl="closed_form",
    reduction=None,
    prior_grad=False,
    out=None,
):
    """Gradients of (z, kl) in mu, logvar and, with `prior_grad`, in the prior's mu and logvar; those not made are None.

    grad_z: like mu, any strides, or None; grad_kl: of the kl's shape, any strides, or None. `out` = (grad_mu,
    grad_logvar) are written instead of new tensors. Without grad_kl and `out` the gradient in mu is grad_z itself, and
    None is returned for it, unless the scale bounds mu. Moves 5L elements for sample + KL: mu, logvar and grad_z in,
    two gradients out. One launch.
    """
    passed = grad_kl is None and scale[0] != "soft_clamp"
    grads = out or (None if passed else torch.empty_like(mu), torch.empty_like(logvar))
    grads = (*grads, *(torch.empty_like(p) if prior_grad else None for p in prior))
    by_sample = grad_kl is not None and reduction in ("sample", "latent")
    upstream = None if grad_kl is None else tiling.expand_upstream(grad_kl, mu, reduction)
    view, (position, *operands) = tiling.view(
        [_like_sample(mu), mu, logvar, *prior, grad_z, upstream, eps, *grads], by_sample
    )
    divisor = reductions.divisor(reduction, mu.shape)
    kl = "closed_form" if grad_kl is None else kl
    _launch(latent._backward, mu, view, tiling.tiles(view), position, operands, seed, divisor, clamp, scale, kl, reduction)
    return grads


def _launch(kernel, mu, view, tiles, position, operands, seed, extra, clamp, scale, kl, reduction):
    name, bound, epsilon = scale
    with tiling.on_device(mu):
        kernel[(tiles.programs,)](
            tuple(operands), seed, extra, (view.rows, view.columns), view.shape, position[1],
            LOW=clamp[0], HIGH=clamp[1], SCALE=name, BOUND=bound, EPSILON=epsilon, KL=kl, REDUCTION=reduction,
            QUADS=view.shape[0] % 4 == 0 and position[1][1] == 1,
            ROWS=tiles.rows, COLUMNS=tiles.columns, AXES=tiles.axes, WIDE=view.wide, num_warps=tiles.warps(view),
        )  # fmt: skip


def _like_sample(mu):
    """Has the strides of z: noise depends on an element's position in z, whatever the strides of a chunk."""
    return mu if mu.is_contiguous() else torch.empty_like(mu, device="meta")


def _partial_count(view, tiles, reduction):
    if reduction == "sample":
        return view.rows * tiles.column_blocks
    return tiles.row_blocks * view.columns if reduction == "latent" else tiles.programs


def _finish(partials, mu, view, tiles, reduction):
    if reduction == "sample":
        if tiles.column_blocks == 1:
            return partials
        out, outer, count = partials.new_empty(view.rows), view.rows, tiles.column_blocks
        strides = (count, 1)
    elif reduction == "latent":
        out, outer, count = torch.empty_like(mu[0], dtype=partials.dtype), view.columns, tiles.row_blocks
        strides = (1, outer)
    else:
        out, outer, count = partials.new_empty(()), 1, tiles.programs
        strides = (0, 1)
    divisor = reductions.divisor(reduction, mu.shape)
    return reductions.sum_partials(partials, out, outer=outer, count=count, strides=strides, divisor=divisor)
