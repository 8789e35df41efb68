"""Logits and class targets of many layouts, and the categorical loss held against the reference."""

import numpy as np
import torch

from tests.kernels.latents import drawer, like_output
from tests.support.tolerance import assert_close, assert_loss_close
from tests.support.ulp import to_numpy
from vae_fast import Categorical, reconstruction_loss
from vae_fast.reference import likelihoods, reductions, targets

LAYOUTS = {  # of [2, 3, 5, K] and the like
    "contiguous": lambda draw, k: draw(2, 3, 5, k),
    "classes second": lambda draw, k: draw(2, k, 3, 5).movedim(1, -1),  # as a convolution gives them
    "channels_last": lambda draw, k: draw(2, k, 3, 5).to(memory_format=torch.channels_last).movedim(1, -1),
    "a chunk": lambda draw, k: draw(2, 3, 5, 2 * k).chunk(2, -1)[1],
    "a chunk of elements": lambda draw, k: draw(2, 6, 5, k).chunk(2, 1)[1],
    "the batch innermost": lambda draw, k: draw(3, 5, k, 2).movedim(-1, 0),
    "stepped": lambda draw, k: draw(2, 3, 5, 2 * k)[..., ::2],
    "expanded elements": lambda draw, k: draw(2, 1, 5, k).expand(2, 3, 5, k),
    "expanded classes": lambda draw, k: draw(2, 3, 5, 1).expand(2, 3, 5, k),
    "unaligned": lambda draw, k: draw(2 * 3 * 5 * k + 1)[1:].view(2, 3, 5, k),
    "a batch alone": lambda draw, k: draw(30, k),
}


def classes(shape, count, device, dtype=torch.int64, seed=1):
    return torch.randint(0, count, shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def case(shape, count, backend, dtype=torch.float32, target_dtype=torch.int64, spread=2.0):
    """(logits with a gradient, targets) of `shape` elements."""
    logits = spread * drawer(backend.device, dtype)(*shape, count)
    return logits.requires_grad_(), classes(shape, count, backend.device, target_dtype)


WEIGHTS = {  # (dtype, the shape beside a target's)
    "per sample": (torch.float32, lambda shape: shape[:1]),
    "elementwise": (torch.float64, lambda shape: shape),
    "a mask": (torch.bool, lambda shape: shape),
    "shared by samples": (torch.bfloat16, lambda shape: (1, *shape[1:])),
    "of the last dimension": (torch.float16, lambda shape: (*(1 for _ in shape[1:]), shape[-1])),
}


def weight_of(kind, target):
    """Numbers in [0, 1] that every dtype holds, some of them 0."""
    dtype, shape = WEIGHTS[kind]
    values = torch.randint(0, 4, shape(target.shape), generator=torch.Generator().manual_seed(2)) / 4
    return values.to(target.device, dtype)


def check(logits, target, reduction, ignore_index=None, upstream=None, weight=None):
    """The loss, and its gradient for a random upstream gradient, against the reference."""
    likelihood = "categorical" if ignore_index is None else Categorical(ignore_index)
    loss = reconstruction_loss(logits, target, likelihood, reduction=reduction, weight=weight)
    a, index = to_numpy(logits), target.cpu().numpy()
    nll, (derivative,) = likelihoods.categorical(a, index, ignore_index)
    if weight is not None:
        full = targets.weighted(np.ones(nll.shape), to_numpy(weight))
        nll, derivative = targets.weighted(nll, full), targets.weighted(derivative, full[..., None])
    assert loss.dtype == torch.promote_types(logits.dtype, torch.float32)
    below = _below(a)
    expected, terms = (reductions.reduce(value, reduction) for value in (nll, nll))
    if reduction == "none":
        assert loss.shape == target.shape
        assert_close(loss, expected, exponent=below.max(-1))
    else:
        assert_loss_close(loss, expected, terms)
    upstream = like_output(loss) if upstream is None else upstream
    (grad,) = torch.autograd.grad(loss, logits, upstream)
    assert (grad.dtype, grad.shape) == (logits.dtype, logits.shape)
    scale = reductions.expand(to_numpy(upstream), nll.shape, reduction)[..., None]
    g = scale * derivative
    twice = reduction not in ("none", "sample") and grad.dtype == torch.bfloat16  # made for an upstream gradient of 1
    atol = torch.finfo(grad.dtype).eps * np.abs(g) if twice else 0.0
    atol = atol + torch.finfo(torch.float32).smallest_normal * np.abs(scale)  # a probability below that is 0 on a GPU
    # each is a sum of positive terms, and so held to its own size: nothing cancels, at the target neither
    assert_close(grad, g, exponent=_exponents(below, index), atol=atol)
    return loss, grad


def _exponents(below, index):
    """Those of the gradients: the target's is that of the largest other class, whose exponentials it sums."""
    at = np.clip(index, 0, below.shape[-1] - 1)[..., None]
    others = below.copy()
    np.put_along_axis(others, at, 104, -1)
    found = below.copy()
    np.put_along_axis(found, at, others.min(-1, keepdims=True), -1)
    return found


def _below(a):
    """The exponents of the softmax, as far as float32 does not underflow; NaN and infinities are not sized here."""
    finite = np.isfinite(a)
    top = np.where(finite, a, -np.inf).max(-1, keepdims=True)
    return np.where(finite, np.minimum(np.where(finite, top - np.where(finite, a, 0), 0), 104), 0)
