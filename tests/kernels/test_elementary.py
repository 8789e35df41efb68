"""The elementary device functions alone, against mpmath over their whole range."""

import math

import mpmath
import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from vae_fast.eager.elementary import expm1_minus_x as eager_expm1_minus_x
from vae_fast.eager.elementary import log_ratio as eager_log_ratio
from vae_fast.eager.elementary import sum_of_logs, sum_of_squares
from vae_fast.kernels import elementary

BLOCK = 4096


@triton.jit
def _expm1_minus_x(x):
    return elementary.expm1_minus_x(x, tl.exp(x))


@triton.jit
def _expm1(x):
    return elementary.expm1(x, tl.exp(x))


@triton.jit
def _rough_log2(x):
    a, b = elementary.rough_log2(x)
    return a + b


@triton.jit
def _apply(x, out, size, FUNCTION: tl.constexpr, TILE: tl.constexpr):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(out + at, FUNCTION(tl.load(x + at, mask=at < size, other=0)), mask=at < size)


def apply(function, x):
    out = torch.empty_like(x)
    _apply[(triton.cdiv(x.numel(), BLOCK),)](x, out, x.numel(), FUNCTION=function, TILE=BLOCK)
    return out


def points(dtype, low, high):
    """Both signs from the smallest normal number up, dense where a function changes its branch, within [low, high]."""
    smallest = float(torch.finfo(dtype).smallest_normal)
    sizes = np.concatenate([np.geomspace(smallest, 1e3, 700), np.linspace(0.9, 1.1, 101), np.linspace(0, 90, 181)])
    edges = np.nextafter(np.array([1, 1], dtype=str(dtype)[6:]), np.array([0, 2], dtype=str(dtype)[6:]))
    values = np.concatenate([-sizes, -edges, [0.0], edges, sizes])
    x = torch.from_numpy(np.unique(values)).to(dtype)
    return x[(x >= low) & (x <= high)]


def exact(function, x):
    """The function at the very numbers of x, rounded to float64 once."""
    with mpmath.workdps(650):  # at 1e-308, exp(x) - 1 - x begins after 616 digits
        return np.array([float(function(mpmath.mpf(value))) for value in x.double().tolist()])


def relative_error(got, expected, dtype):
    # what underflows may be flushed to zero
    tiny = float(torch.finfo(dtype).smallest_normal)
    error = np.abs(got.cpu().double().numpy() - expected) - tiny
    return np.maximum(error, 0) / np.maximum(np.abs(expected), tiny)


FUNCTIONS = {
    "expm1_minus_x": (_expm1_minus_x, lambda x: mpmath.exp(x) - 1 - x, -1e3, 88.0),
    "expm1": (_expm1, mpmath.expm1, -1e3, 88.0),
    "log1p": (elementary.log1p, mpmath.log1p, -0.99999, 1e3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_relative_error_is_that_of_the_exponential_over_the_whole_range(name, dtype, kernels_device):
    function, oracle, low, high = FUNCTIONS[name]
    x = points(dtype, low, high)
    error = relative_error(apply(function, x.to(kernels_device)), exact(oracle, x), dtype)
    exponent = 0.0 if name == "log1p" else np.abs(x.double().numpy())  # ex2.approx errs by 6e-8 of its argument
    allowed = 1e-6 + 6e-8 * exponent if dtype == torch.float32 else 1e-15 + 2.0**-52 * exponent
    worst = (error / allowed).argmax()
    assert (error <= allowed).all(), f"{name}({x[worst].item()!r}) errs by {error[worst]:.2e} relative"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_rough_logarithm_errs_by_as_much_of_1_near_1(dtype, kernels_device):
    x = torch.from_numpy(np.outer(2.0 ** np.arange(-126, 125), np.linspace(1, 2 - 2**-23, 65)).ravel()).to(dtype)
    with mpmath.workdps(30):
        expected = np.array([float(mpmath.log(value, 2)) for value in x.tolist()])
    allowed = 4e-7 if dtype == torch.float32 else 1e-15
    got = apply(_rough_log2, x.to(kernels_device)).cpu().double().numpy()
    np.testing.assert_allclose(got, expected, rtol=allowed, atol=allowed)


@triton.jit
def _tanh(x):
    return elementary.tanh_of_half(2.0 * x)


@triton.jit
def _sech2(x):
    return elementary.sech2_of_half(2.0 * x)


HYPERBOLIC = {
    "tanh": (_tanh, mpmath.tanh),
    "sech2": (_sech2, lambda x: mpmath.sech(x) ** 2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", HYPERBOLIC)
def test_hyperbolic_functions_over_the_whole_range(name, dtype, kernels_device):
    function, oracle = HYPERBOLIC[name]
    x = points(dtype, -40.0, 40.0)
    error = relative_error(apply(function, x.to(kernels_device)), exact(oracle, x), dtype)
    exponent = np.abs(x.double().numpy()) if name == "sech2" else 0.0
    allowed = 1e-6 + 1.2e-7 * exponent if dtype == torch.float32 else 2e-15 + 2.0**-51 * exponent
    assert (error <= allowed).all()
    far = apply(function, torch.tensor([float("nan"), 1e4, -1e4], dtype=dtype, device=kernels_device))
    assert far[0].isnan()
    assert far[1:].tolist() == ([1.0, -1.0] if name == "tanh" else [0.0, 0.0])


HALF_WAY = {  # on [0, 1/2]
    "log_1_minus": (elementary.log_1_minus, lambda x: mpmath.log1p(-x)),
    "one_minus_exp_over_x": (elementary.one_minus_exp_over_x, lambda x: -mpmath.expm1(-x) / x if x else mpmath.mpf(1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", HALF_WAY)
def test_polynomials_up_to_a_half(name, dtype, kernels_device):
    function, oracle = HALF_WAY[name]
    x = points(dtype, 0.0, 0.5)
    error = relative_error(apply(function, x.to(kernels_device)), exact(oracle, x), dtype)
    assert (error <= (5e-7 if dtype == torch.float32 else 2e-15)).all()


@triton.jit
def _log_of_ratio_to_3(x):
    return elementary.log_near_1(x / 3.0, (x - 3.0) / 3.0)


@triton.jit
def _excess_of_ratio_to_3(x):
    return elementary.square_minus_1_minus_2_log(x / 3.0, (x - 3.0) / 3.0, False)


@triton.jit
def _excess(x):
    return elementary.square_minus_1_minus_2_log(x, x - 1.0, False)


@triton.jit
def _excess_of_normal(x):
    return elementary.square_minus_1_minus_2_log(x, x - 1.0, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_logarithm_of_a_ratio_keeps_its_digits_near_one(dtype, kernels_device):
    close = 3 * (1 + np.concatenate([s * np.geomspace(1e-6, 0.9, 200) for s in (1, -1)]))
    x = torch.from_numpy(np.concatenate([close, np.geomspace(1e-30, 1e30, 200), [3.0]])).to(dtype)
    expected = exact(lambda v: mpmath.log(v / 3), x)
    allowed = 1e-6 if dtype == torch.float32 else 2e-15
    for got in (apply(_log_of_ratio_to_3, x.to(kernels_device)), eager_log_ratio(x, torch.full_like(x, 3.0))):
        assert (relative_error(got, expected, dtype) <= allowed).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_excess_of_a_squared_ratio_keeps_its_digits_near_one(dtype, kernels_device):
    close = 1 + np.concatenate([s * np.geomspace(1e-6, 0.9, 200) for s in (1, -1)])
    x = torch.from_numpy(np.concatenate([close, np.geomspace(1e-15, 1e15, 200)])).to(dtype)
    # From 4/3 on the ratio itself counts: a GPU's division errs by 2^-22 of it, and the excess by seven times that.
    for function, scale, single in ((_excess_of_ratio_to_3, 3, 3e-6), (_excess, 1, 1e-6), (_excess_of_normal, 1, 1e-6)):
        expected = exact(lambda v, scale=scale: (v / scale) ** 2 - 1 - 2 * mpmath.log(v / scale), scale * x)
        error = relative_error(apply(function, (scale * x).to(kernels_device)), expected, dtype)
        assert (error <= (single if dtype == torch.float32 else 4e-15)).all()


def test_the_excess_of_what_is_not_normal(kernels_device):
    below = [-1.0, -(2.0**-24), -5e-8, -1e-40]  # with 2^24 in them, two are near 1
    x = torch.tensor([0.0, -0.0, 1e-44, 1e-39, math.inf, *below, math.nan], device=kernels_device)
    got = apply(_excess, x).double()
    assert got[:2].tolist() == [math.inf] * 2
    assert torch.allclose(got[2:4], -1 - 2 * x[2:4].double().log(), rtol=1e-6)
    assert got[4] == math.inf
    assert got[5:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_eager_expm1_minus_x_over_the_whole_range(dtype):
    x = points(dtype, -1e3, 88.0)
    expm1, got = eager_expm1_minus_x(x)
    absolute = 2.0**-52 if dtype == torch.float32 else 0.0  # float32 takes the difference in float64: 1e-16 nats
    allowed = 2e-16 + 2.0**-52 * np.abs(x.double().numpy()) if dtype == torch.float32 else 1e-15
    for result, name in ((got, "expm1_minus_x"), (expm1, "expm1")):
        expected = exact(FUNCTIONS[name][1], x)
        rounding = 6e-8 if dtype == torch.float32 else 0.0
        error = np.abs(result.double().numpy() - expected) - absolute
        assert (error <= (allowed + rounding) * np.abs(expected) + float(torch.finfo(dtype).smallest_normal)).all(), (
            name
        )


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 4096, 100_003], ids=str)  # around one product and many, and a prime
@pytest.mark.parametrize("bounds", [(0.5, 1.0), (1.0, 2.0), (0.5, 0.5), (2.0, 2.0)], ids=str)  # extremes of products
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_sum_of_logarithms(dtype, bounds, size):
    low, high = bounds
    x = torch.rand(size, dtype=dtype, generator=torch.Generator().manual_seed(0)).mul_(high - low).add_(low)
    logs = np.log(x.double().numpy())
    allowed = 1e-6 if dtype == torch.float32 else 1e-14
    assert abs(sum_of_logs(x.clone()).item() - logs.sum()) <= allowed * np.abs(logs).sum()


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 2**17, 100_003], ids=str)  # around one row, many, a prime
@pytest.mark.parametrize("value", [None, 1 / 3, 0.7, 1.3, 2.9])  # equal ones round to one side
def test_the_sum_of_squares(value, size):
    x = torch.rand(size, generator=torch.Generator().manual_seed(0)) if value is None else torch.full((size,), value)
    expected = x.double().square().sum().item()
    assert abs(sum_of_squares(x).item() - expected) <= 1e-6 * expected


@pytest.mark.parametrize("size", [3, 256, 300])
@pytest.mark.parametrize("special", [math.nan, math.inf, 1e30])
def test_a_sum_of_squares_is_not_finite_where_one_is_not(special, size):
    x = torch.ones(size)
    x[-1] = special
    assert sum_of_squares(x).item() == pytest.approx(math.nan if math.isnan(special) else math.inf, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_plain_form_would_fail_the_same_test(dtype, kernels_device):
    x = torch.tensor([1e-3], dtype=dtype)
    plain = torch.exp(x) - 1 - x
    assert relative_error(plain, exact(FUNCTIONS["expm1_minus_x"][1], x), dtype).item() > 1e-11


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("name", FUNCTIONS)
def test_beyond_the_range_nan_stays_nan_and_an_overflow_is_infinite(name, kernels_device):
    x = torch.tensor([float("nan"), 1000.0], device=kernels_device)
    got = apply(FUNCTIONS[name][0], x)
    assert got[0].isnan()
    assert name == "log1p" or got[1].isinf()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_zero_gives_an_exact_zero(name, kernels_device):
    assert apply(FUNCTIONS[name][0], torch.zeros(1, device=kernels_device)).item() == 0.0
