"""lgamma, digamma and their differences in the three rooms, against mpmath over their whole range."""

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
DIFFERENCES = {
    "lgamma_difference": lambda x, theta: counts.lgamma(x + theta) - counts.lgamma(theta),
    "digamma_difference": lambda x, theta: counts.digamma(x + theta) - counts.digamma(theta),
}


@triton.jit
def _apply_1(x, out, size, FUNCTION: tl.constexpr, TILE: tl.constexpr):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(out + at, FUNCTION(tl.load(x + at, mask=at < size, other=1)), mask=at < size)


@triton.jit
def _apply_2(x, theta, out, size, FUNCTION: tl.constexpr, TILE: tl.constexpr):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    first = tl.load(x + at, mask=at < size, other=1)
    second = tl.load(theta + at, mask=at < size, other=1)
    tl.store(out + at, FUNCTION(first, second), mask=at < size)


def run(room, name, arguments, request):
    if room == "reference":
        return getattr(reference, name)(*(a.double().numpy() for a in arguments))
    if room == "eager":
        return getattr(eager, name)(*arguments).double().numpy()
    arguments = [a.to(request.getfixturevalue("kernels_device")) for a in arguments]
    out, size = torch.empty_like(arguments[0]), arguments[0].numel()
    kernel = _apply_1 if len(arguments) == 1 else _apply_2
    kernel[(triton.cdiv(size, BLOCK),)](*arguments, out, size, FUNCTION=getattr(special, name), TILE=BLOCK)
    return out.cpu().double().numpy()


def exact(oracle, arguments):
    """The oracle at the very numbers of the tensors."""
    with mpmath.workdps(counts.DIGITS):
        rows = zip(*(a.double().tolist() for a in arguments), strict=True)
        return np.array([float(oracle(*map(mpmath.mpf, row))) for row in rows])


def allowed(room, dtype):
    return 1e-6 if dtype == torch.float32 and room != "reference" else 1e-13


def check(room, dtype, got, expected, arguments, size=1):
    """Absolute (times `size`) where the result is below 1, as around its zeros, and relative above."""
    error = np.abs(got - expected) / np.maximum(np.abs(expected), size)
    worst = error.argmax()
    assert (error <= allowed(room, dtype)).all(), f"{error[worst]:.2e} at {[a[worst].item() for a in arguments]}"


def positive(dtype):
    """From 1e-4 to 1e8, dense where a function changes its form and around the zeros of lgamma and digamma."""
    edges = np.array([1, 4, 10], dtype=str(dtype)[6:])
    beside = [np.nextafter(edges, edges * side) for side in (0, 2)]
    values = [np.geomspace(1e-4, 1e8, 900), np.linspace(0.9, 2.1, 241), np.linspace(3.9, 4.1, 21), edges, *beside]
    return torch.from_numpy(np.unique(np.concatenate(values))).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["lgamma", "digamma"])
@pytest.mark.parametrize("room", ROOMS)
def test_over_the_whole_range(room, name, dtype, request):
    x = positive(dtype)
    check(room, dtype, run(room, name, (x,), request), exact(getattr(counts, name), (x,)), (x,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("room", ROOMS)
def test_the_logarithm_of_a_factorial(room, dtype, request):
    x = torch.cat([torch.tensor([0.0, 1e-3, 0.5]), torch.arange(1.0, 400.0), torch.logspace(2.7, 6, 300).round()])
    x = x.to(dtype)
    check(room, dtype, run(room, "lgamma_1p", (x,), request), exact(lambda v: counts.lgamma(1 + v), (x,)), (x,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize("room", ROOMS)
def test_a_difference_does_not_cancel(room, name, dtype, request):
    thetas = [*np.geomspace(1e-4, 1e8, 49), *counts.THETAS]
    arguments = counts.grid([0, 1e-3, 0.2, 0.9, *range(1, 13), 99, 1234, 5e4, 1e6], thetas, dtype=dtype)
    # lgamma(theta) is -log(theta) at small theta, and may meet a logarithm as large of the other sign.
    size = np.maximum(1, -np.log(arguments[1].double().numpy())) if name == "lgamma_difference" else 1
    check(room, dtype, run(room, name, arguments, request), exact(DIFFERENCES[name], arguments), arguments, size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("room", ROOMS)
def test_the_difference_of_digammas_keeps_its_digits_however_small(room, dtype, request):
    """It is about x / theta, down to 1e-8, so an absolute error says little."""
    arguments = counts.grid([1, 2, 50], [30, 1e3, 1e5, 1e8], dtype=dtype)
    got = run(room, "digamma_difference", arguments, request)
    np.testing.assert_allclose(got, exact(DIFFERENCES["digamma_difference"], arguments), rtol=10 * allowed(room, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize("room", ROOMS)
def test_a_difference_is_exactly_0_at_0(room, name, dtype, request):
    theta = positive(dtype)
    assert not run(room, name, (torch.zeros_like(theta), theta), request).any()


@pytest.mark.parametrize("name", DIFFERENCES)
def test_the_plain_difference_would_fail_the_same_test(name):
    x, theta = torch.tensor([3.0]), torch.tensor([1e8])
    plain = getattr(torch, name.split("_")[0])
    error = (plain(x + theta) - plain(theta)).double().numpy() - exact(DIFFERENCES[name], (x, theta))
    assert np.abs(error) > (1 if name == "lgamma_difference" else 1e-8)


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


@pytest.mark.parametrize("name", ["lgamma", "digamma", *DIFFERENCES])
@pytest.mark.parametrize("room", ROOMS)
def test_nan_stays_nan(room, name, request):
    nan, one = torch.tensor([float("nan")]), torch.ones(1)
    for arguments in [(nan,)] if name in ("lgamma", "digamma") else [(nan, one), (one, nan)]:
        assert np.isnan(run(room, name, arguments, request)).all()
