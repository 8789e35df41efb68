"""The gamma function's relatives in the three rooms, against mpmath over their whole range."""

import mpmath
import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from tests.kernels import counts
from vae_fast.eager import special as eager
from vae_fast.kernels import special
from vae_fast.reference import special as reference

BLOCK = 4096
DTYPES = [torch.float32, torch.float64]
ROOMS = ["kernels", "eager", "reference"]
REMAINDERS = {
    "stirling_remainder": lambda y: counts.lgamma(y) - ((y - 0.5) * mpmath.log(y) - y + mpmath.log(2 * mpmath.pi) / 2),
    "stirling_remainder_derivative": lambda y: counts.digamma(y) - mpmath.log(y) + 1 / (2 * y),
}


@triton.jit
def _apply(x, out, size, FUNCTION: tl.constexpr, TILE: tl.constexpr):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(out + at, FUNCTION(tl.load(x + at, mask=at < size, other=1)), mask=at < size)


def run(room, name, arguments, request):
    if room == "reference":
        return getattr(reference, name)(*(a.double().numpy() for a in arguments))
    if room == "eager":
        return getattr(eager, name)(*arguments).double().numpy()
    arguments = [a.to(request.getfixturevalue("kernels_device")) for a in arguments]
    out, size = torch.empty_like(arguments[0]), arguments[0].numel()
    _apply[(triton.cdiv(size, BLOCK),)](*arguments, out, size, FUNCTION=getattr(special, name), TILE=BLOCK)
    return out.cpu().double().numpy()


def exact(oracle, arguments):
    """The oracle at the very numbers of the tensors."""
    with mpmath.workdps(counts.DIGITS):
        rows = zip(*(a.double().tolist() for a in arguments), strict=True)
        return np.array([float(oracle(*map(mpmath.mpf, row))) for row in rows])


def allowed(room, dtype):
    return 1e-6 if dtype == torch.float32 and room != "reference" else 1e-13


def check(room, dtype, got, expected, arguments):
    """Absolute where the result is below 1, as around its zeros, and relative above."""
    error = np.abs(got - expected) / np.maximum(np.abs(expected), 1)
    worst = error.argmax()
    assert (error <= allowed(room, dtype)).all(), f"{error[worst]:.2e} at {[a[worst].item() for a in arguments]}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", REMAINDERS)
@pytest.mark.parametrize("room", ROOMS)
def test_what_stirlings_formula_leaves(room, name, dtype, request):
    """From y = 1 to 1e8, dense where a function changes its form. Only reference takes y, the others 1 / y."""
    edges = np.array([1, 4, 10])
    y = np.concatenate([np.geomspace(1, 1e8, 900), np.linspace(3.9, 4.1, 21), edges, edges * (1 + 1e-7)])
    s = torch.from_numpy(1 / y).to(dtype)
    arguments = (1 / s.double(),) if room == "reference" else (s,)
    expected = exact(lambda v: REMAINDERS[name](1 / v), (s,))
    check(room, dtype, run(room, name, arguments, request), expected, (s,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("room", ROOMS)
def test_the_logarithm_of_a_factorial(room, dtype, request):
    x = torch.cat([torch.tensor([0.0, 1e-3, 0.5]), torch.arange(1.0, 400.0), torch.logspace(2.7, 6, 300).round()])
    x = x.to(dtype)
    check(room, dtype, run(room, "lgamma_1p", (x,), request), exact(lambda v: counts.lgamma(1 + v), (x,)), (x,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("room", ROOMS)
def test_log1p_minus_x_has_no_cancellation(room, dtype, request):
    sizes = torch.cat([torch.logspace(-12, -1, 60, dtype=torch.float64), torch.linspace(0.1, 0.3999, 60).double()])
    x = torch.cat([-sizes, sizes]).to(dtype)
    arguments = (x, torch.log1p(x)) if room == "reference" else (x,)
    with mpmath.workdps(counts.DIGITS):
        expected = exact(lambda v: mpmath.log1p(v) - v, (x,))
    got = run(room, "log1p_minus_x", arguments, request)
    np.testing.assert_allclose(got, expected, rtol=allowed(room, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_short_logarithm_is_good_to_every_normal_number(dtype, request):
    binades = 2.0 ** np.arange(-126, 128)
    mantissas = np.concatenate([np.linspace(1, 1.99, 34), [4 / 3 - 1e-7, 4 / 3, 4 / 3 + 1e-7, 2 - 2**-23]])
    values = [np.outer(binades, mantissas).ravel(), 1 + np.geomspace(1e-7, 0.3, 99), 1 - np.geomspace(1e-7, 0.3, 99)]
    x = torch.from_numpy(np.concatenate(values)).to(dtype)
    got, expected = run("kernels", "log_of_normal", (x,), request), exact(mpmath.log, (x,))
    np.testing.assert_allclose(got, expected, rtol=3e-7 if dtype == torch.float32 else 1e-15)


@pytest.mark.parametrize("name", ["lgamma_1p", *REMAINDERS])
@pytest.mark.parametrize("room", ROOMS)
def test_nan_stays_nan(room, name, request):
    assert np.isnan(run(room, name, (torch.tensor([float("nan")]),), request)).all()
