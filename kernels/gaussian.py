"""The latent op: reparameterised sample and KL of a diagonal Gaussian, forward and backward.

One kernel each way, in `latent_forward` and `latent_backward`: these are their launchers.
"""

import torch

from vae_fast.kernels import noise, reductions, tiling
from vae_fast.kernels.latent_backward import _backward
from vae_fast.kernels.latent_forward import _forward
from vae_fast.kernels.launching import launch, replayed

NONE = (None, None)
LOGVAR = ("logvar", 0.0, 0.0)


@replayed
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
    samples=None,
    reduction=None,
):
    """z = mu + exp(logvar / 2) * eps where seed or eps is given, and the KL to the prior where a reduction is.

    mu, logvar, the prior's two tensors and eps: [B, ...] of one shape, any strides, all but eps of float64 or none;
    seed: int64 [1]. scale: what the second tensors hold, as (name, bound, epsilon). kl: "closed_form", or
    "monte_carlo": at z before it is rounded.
    samples: K; z and eps are then [K, B, ...], and a Monte Carlo kl has a dimension K in front.
    Returns (z like mu or None, kl float32 or None). Moves 3L elements for sample + KL (eps and each tensor of a prior
    1L more), (2 + K) L for K samples, the kl and the 8-byte seed: without eps, noise is made in registers and never
    stored. One launch; one more for the partial sums of "latent" (K for a Monte Carlo kl of K samples), of the scalar
    reductions, and of "sample" where a tile does not take the latents of a sample: 4096, or fewer of costly scales and
    of float64.
    """
    dtype, each = tiling.accumulator(mu.dtype), samples if kl == "monte_carlo" else None
    z = None if seed is None and eps is None else sampled_like(mu, samples)
    elementwise = sampled_like(mu, each, dtype) if reduction == "none" else None
    view, (position, *operands) = tiling.view(
        [
            tiling.dense_like(mu), mu, logvar, *prior,
            _first(z, samples), _first(eps, samples), _first(elementwise, each),
        ],
        by_sample=reduction in ("sample", "latent"),
    )  # fmt: skip
    tiles = tiling.tiles(view, over_samples=reduction == "latent", portion=_portion(_forward, scale, prior, mu.dtype))
    partials, count = None, 0
    if reduction not in (None, "none"):
        count = _partial_count(view, tiles, reduction)
        partials = reductions.workspace(mu, count if each is None else (each, count))
    if samples is not None:
        operands[4:] = (_whole(*pair) for pair in zip((z, eps, elementwise), operands[4:], strict=True))
    steps = _steps(mu, samples, z, eps, elementwise, count)
    _launch(_forward, mu, view, tiles, position, operands, seed, partials, clamp, scale, kl, steps, reduction)
    return z, elementwise if partials is None else _finish(partials, mu, view, tiles, reduction, each)


@replayed
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
    samples=None,
    reduction=None,
    prior_grad=False,
    out=None,
):
    """Gradients of (z, kl) in mu, logvar and, with `prior_grad`, in the prior's mu and logvar; those not made are None.

    grad_z: like z, any strides, or None; grad_kl: of the kl's shape, any strides, or None. `out` = (grad_mu,
    grad_logvar) are written instead of new tensors. Without grad_kl and `out` the gradient in mu is grad_z itself, and
    None is returned for it, unless there are several samples or the scale bounds mu. Moves 5L elements for sample + KL:
    mu, logvar and grad_z in, two gradients out; (4 + K) L for K samples. One launch.
    """
    passed = grad_kl is None and samples is None and scale[0] != "soft_clamp"
    grads = out or (None if passed else torch.empty_like(mu), torch.empty_like(logvar))
    grads = (*grads, *(torch.empty_like(p) if prior_grad else None for p in prior))
    by_sample = grad_kl is not None and reduction in ("sample", "latent")
    kl = "closed_form" if grad_kl is None else kl
    each = samples if kl == "monte_carlo" else None
    upstream = None if grad_kl is None else tiling.expand_upstream(_first(grad_kl, each), mu, reduction)
    view, (position, *operands) = tiling.view(
        [tiling.dense_like(mu), mu, logvar, *prior, _first(grad_z, samples), upstream, _first(eps, samples), *grads],
        by_sample,
    )
    if samples is not None:
        whole = (grad_z, grad_kl if each is not None else upstream, eps)
        operands[4:7] = (_whole(*pair) for pair in zip(whole, operands[4:7], strict=True))
    steps = _steps(mu, samples, grad_z, eps, grad_kl if each is not None else None, 0)
    tiles = tiling.tiles(view, portion=_portion(_backward, scale, prior, mu.dtype))
    divisor = reductions.divisor(reduction, mu.shape)
    _launch(_backward, mu, view, tiles, position, operands, seed, divisor, clamp, scale, kl, steps, reduction)
    return grads


@replayed
def forward_packed(moments, dim, **options):
    """`forward` of mu and logvar side by side along `dim`."""
    return forward(*moments.chunk(2, dim), **options)


@replayed
def backward_packed(grad_z, grad_kl, moments, dim, **options):
    """`backward` of the same: (the gradient in moments, those in the prior's two tensors)."""
    grad = torch.empty_like(moments)
    _, _, *prior = backward(grad_z, grad_kl, *moments.chunk(2, dim), out=grad.chunk(2, dim), **options)
    return grad, *prior


def sampled_like(mu, samples, dtype=None):
    """Room for `samples` tensors like mu, one behind the other in memory; for one like mu where that is None."""
    if samples is None:
        return torch.empty_like(mu, dtype=dtype)
    strides = tiling.dense_like(mu).stride()
    return torch.empty_strided((samples, *mu.shape), (mu.numel(), *strides), dtype=dtype or mu.dtype, device=mu.device)


def _first(tensor, samples):
    """The first of the samples: the others lie as it does."""
    return tensor if tensor is None or samples is None else tensor[0]


def _whole(tensor, operand):
    """The operand of the first sample, as one of all."""
    return None if tensor is None else (tensor, operand[1])


def _steps(mu, samples, z, eps, kl, partials):
    """(samples, and what lies between two of them: in z, eps, the kl or its partial sums, and the noise)."""
    if samples is None:
        return ()
    z, eps, kl = (0 if t is None else t.stride(0) for t in (z, eps, kl))
    return samples, z, eps, kl or partials, mu.numel()


def _launch(kernel, mu, view, tiles, position, operands, seed, extra, clamp, scale, kl, steps, reduction):
    name, bound, epsilon = scale
    stepped = operands if kernel is _forward else [*operands[:5], *operands[6:]]  # but the kl's upstream gradient
    wide = view.wide or (bool(steps) and steps[0] * max(steps[1:]) > tiling.MAX_INT32_EXTENT)
    with tiling.on_device(mu):
        launch(
            kernel, tiles.programs,
            tuple(operands), seed, extra, (view.rows, view.columns), view.shape, position[1], steps,
            LOW=clamp[0], HIGH=clamp[1], SCALE=name, BOUND=bound, EPSILON=epsilon, KL=kl, REDUCTION=reduction,
            MANY=bool(steps), WAY=noise.way(view, position[1], mu.element_size(), bool(steps)),
            STEP=tiling.step(view, stepped, steps[1:3]),
            ROWS=tiles.rows, COLUMNS=tiles.columns, AXES=tiles.axes, WIDE=wide, warps=tiles.warps(view),
        )  # fmt: skip


def _portion(kernel, scale, prior, dtype):
    """As `tiling.tiles` takes it. Derivatives of tanh, its epsilon, a prior's deviation and doubles cost registers."""
    name, _, epsilon = scale
    double = dtype == torch.float64
    if name == "soft_clamp":
        heavy = epsilon or kernel is _backward
    else:
        heavy = name in ("std", "softplus") and (double or prior[0] is not None)
    return (2 if heavy else 1) * (4 if double else 1)


def _partial_count(view, tiles, reduction):
    if reduction == "sample":
        return view.rows * tiles.column_blocks
    return tiles.row_blocks * view.columns if reduction == "latent" else tiles.programs


def _finish(partials, mu, view, tiles, reduction, samples):
    """Add the partial sums; those of `samples` lie one behind the other."""
    lead = () if samples is None else (samples,)
    if reduction == "latent":
        out = sampled_like(mu[0], samples, partials.dtype)
        for sums, total in ((partials, out),) if samples is None else zip(partials.chunk(samples), out, strict=True):
            _add(sums, total, view.columns, tiles.row_blocks, (1, view.columns), mu, reduction)
        return out
    rows, count = (view.rows, tiles.column_blocks) if reduction == "sample" else (1, tiles.programs)
    shape = (*lead, rows) if reduction == "sample" else lead
    if reduction == "sample" and count == 1:
        return partials  # itself: a view that a Function returned could not be written to in place
    return _add(partials, partials.new_empty(shape), (samples or 1) * rows, count, (count, 1), mu, reduction)


def _add(partials, out, outer, count, strides, mu, reduction):
    divisor = reductions.divisor(reduction, mu.shape)
    reductions.sum_partials(reductions.Sum(partials, out, outer, count, strides, divisor))
    return out
