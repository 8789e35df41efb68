"""The likelihoods of counts, element by element, against mpmath: errors as a share of the sum of the absolute terms."""

import functools

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from tests.kernels import counts
from vae_fast.eager import likelihoods as eager_likelihoods
from vae_fast.kernels import likelihoods
from vae_fast.kernels.elementary import log1p
from vae_fast.reference import likelihoods as reference

BLOCK = 2048
NAMES = ["poisson", "negative_binomial", "zero_inflated_negative_binomial"]
ROOMS = ["kernels", "eager", "reference"]


@triton.jit
def _apply(params, target, nll, derivatives, size, FUNCTION: tl.constexpr, TILE: tl.constexpr):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    mask = at < size
    values = ()
    for k in tl.static_range(len(params)):
        values = values + (tl.load(params[k] + at, mask=mask, other=1),)
    base, excess, slopes = FUNCTION(values, tl.load(target + at, mask=mask, other=1))
    if len(excess) > 0:
        base += log1p(excess[0])
    tl.store(nll + at, base, mask=mask)
    for k in tl.static_range(len(params)):
        tl.store(derivatives[k] + at, slopes[k], mask=mask)


def run_kernel(name, params, target):
    nll, derivatives = torch.empty_like(target), tuple(torch.empty_like(p) for p in params)
    count = target.numel()
    launch = _apply[(triton.cdiv(count, BLOCK),)]
    launch(params, target, nll, derivatives, count, FUNCTION=getattr(likelihoods, name), TILE=BLOCK, num_warps=8)
    return nll, derivatives


def run(room, name, params, target, device="cpu"):
    """(nll, derivatives) of a room as float64 arrays."""
    if room == "reference":
        return getattr(reference, name)(*(p.double().numpy() for p in params), target.double().numpy())
    if room == "kernels":
        nll, derivatives = run_kernel(name, tuple(p.to(device) for p in params), target.to(device))
    else:
        row = getattr(eager_likelihoods, name)
        nll = functools.reduce(torch.add, [term.clone() for term in row.terms(params, target, None)])
        derivatives = row.derivatives(params, target, (None,) * len(params))
    return nll.cpu().double().numpy(), tuple(d.cpu().double().numpy() for d in derivatives)


@functools.cache
def case(name, dtype):
    """(params, target, what `counts.exact` returns)."""
    if name == "poisson":
        arguments = counts.grid([-700, -30, -9.2, -1, 0, 0.3, 2, 6.9, 13.8], [*counts.TARGETS, 0.3, 1.5], dtype=dtype)
    elif name == "negative_binomial":
        arguments = counts.negative_binomial_grid(dtype)
    else:
        mean, theta, pi, x = counts.grid(
            [*counts.MEANS[:9:2], 1e6], counts.THETAS[::2], counts.PI_LOGITS, [0, 1, 30, 1e6], dtype=dtype
        )
        arguments = (mean, theta, pi, x)
    return arguments[:-1], arguments[-1], counts.exact(getattr(counts, name), arguments)


def share(got, expected, size, dtype):
    """The error as a share of `size`; what underflows may be flushed to zero."""
    tiny = float(torch.finfo(dtype).smallest_normal)
    return np.maximum(np.abs(got - expected) - tiny, 0) / np.maximum(size, tiny)


def allowed(room, dtype):
    return 1e-6 if dtype == torch.float32 and room != "reference" else 1e-13


def worst(error, params, target):
    at = np.nanargmax(np.where(np.isnan(error), np.inf, error))
    return f"{error[at]:.2e} at {[p[at].item() for p in params]}, target {target[at].item()}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("room", ROOMS)
def test_the_nll_and_its_derivatives(room, name, dtype, request):
    device = request.getfixturevalue("kernels_device") if room == "kernels" else "cpu"
    params, target, (nll, size, derivatives, sizes) = case(name, dtype)
    got, slopes = run(room, name, params, target, device)
    for got_one, exact_one, size_one in [(got, nll, size), *zip(slopes, derivatives, sizes, strict=True)]:
        error = share(got_one, exact_one, size_one, dtype)
        assert (error <= allowed(room, dtype)).all(), worst(error, params, target)
