"""The likelihoods of counts, element by element, against mpmath: errors as a share of the sum of the absolute terms."""

import functools

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from tests.kernels import counts
from tests.kernels.latents import drawer
from vae_fast import reconstruction_loss
from vae_fast.eager import likelihoods as eager_likelihoods
from vae_fast.kernels import likelihoods
from vae_fast.kernels.elementary import log1p
from vae_fast.reference import likelihoods as reference

BLOCK = 2048
NAMES = ["poisson", "negative_binomial", "zero_inflated_negative_binomial"]
ROOMS = ["kernels", "eager", "reference"]


@triton.jit
def _apply(parameters, target, nll, derivatives, size, FUNCTION: tl.constexpr, TILE: tl.constexpr):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    mask = at < size
    values = ()
    for k in tl.static_range(len(parameters)):
        values = values + (tl.load(parameters[k] + at, mask=mask, other=1),)  # noqa: RUF005 (Triton has no unpacking)
    base, excess, slopes = FUNCTION(values, tl.load(target + at, mask=mask, other=1))
    if len(excess) > 0:
        base += log1p(excess[0])
    tl.store(nll + at, base, mask=mask)
    for k in tl.static_range(len(parameters)):
        tl.store(derivatives[k] + at, slopes[k], mask=mask)


def run_kernel(name, params, target, tile=BLOCK):
    nll, derivatives = torch.empty_like(target), tuple(torch.empty_like(p) for p in params)
    count = target.numel()
    launch = _apply[(triton.cdiv(count, tile),)]
    launch(params, target, nll, derivatives, count, FUNCTION=getattr(likelihoods, name), TILE=tile, num_warps=4)
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


def allowed(room, dtype, name="", params=()):
    """As a share: 1e-6 of float32, and for a log rate 6e-8 of that exponent."""
    if dtype != torch.float32 or room == "reference":
        return 1e-13
    return 1e-6 + 6e-8 * np.minimum(params[0].abs().numpy(), 104) if name == "poisson" else 1e-6


def worst(error, params, target):
    at = np.nanargmax(np.where(np.isnan(error), np.inf, error))
    return f"{error[at]:.2e} at {[p[at].item() for p in params]}, target {target[at].item()}"


def check(room, name, dtype, device="cpu", slack=1.0):
    """The nll and its derivatives over their whole range. slack: times what is allowed."""
    params, target, (nll, size, derivatives, sizes) = case(name, dtype)
    got, slopes = run(room, name, params, target, device)
    for got_one, exact_one, size_one in [(got, nll, size), *zip(slopes, derivatives, sizes, strict=True)]:
        error = share(got_one, exact_one, size_one, dtype)
        assert (error <= slack * allowed(room, dtype, name, params)).all(), worst(error, params, target)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # NumPy's, in a branch of expm1 that is not taken
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("room", ROOMS)
def test_the_nll_and_its_derivatives(room, name, dtype, request):
    check(room, name, dtype, request.getfixturevalue("kernels_device") if room == "kernels" else "cpu")


def scvi_log_nb_positive(x, mu, theta, eps=1e-8):
    """What scvi-tools computes (scvi.distributions), in the dtype of its arguments."""
    log_theta_mu = torch.log(theta + mu + eps)
    first = theta * (torch.log(theta + eps) - log_theta_mu) + x * (torch.log(mu + eps) - log_theta_mu)
    return first + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)


def scvi_log_zinb_positive(x, mu, theta, pi, eps=1e-8):
    softplus = torch.nn.functional.softplus
    zero = softplus(theta * (torch.log(theta + eps) - torch.log(theta + mu + eps)) - pi) - softplus(-pi)
    return torch.where(x < eps, zero, scvi_log_nb_positive(x, mu, theta, eps) - pi - softplus(-pi))


@pytest.mark.parametrize(("theta", "theirs"), [(1e4, 8.5e-3), (1e7, 12.0)])
@pytest.mark.parametrize("room", ROOMS[:2])
def test_large_theta_costs_the_plain_formula_its_digits_and_ours_none(room, theta, theirs, request):
    """Users of scvi-tools meet it (its issue 2965): absolute errors of a log-likelihood of about -3."""
    device = request.getfixturevalue("kernels_device") if room == "kernels" else "cpu"
    x = torch.arange(40.0).repeat(25)
    mean, theta = torch.linspace(0.1, 40, 25).repeat_interleave(40), torch.full_like(x, theta)
    exact, *_ = counts.exact(counts.negative_binomial, (mean, theta, x))
    plain = scvi_log_nb_positive(x, mean, theta).double().numpy()
    ours, _ = run(room, "negative_binomial", (mean, theta), x, device)
    assert theirs / 3 < np.abs(-plain - exact).max() < theirs * 5  # 4.2 times as much on a processor without AVX2
    assert np.abs(ours - exact).max() < 3e-5


@pytest.mark.parametrize("room", ROOMS)
def test_ours_is_scvi_tools_likelihood_within_1e_6_where_float64_lets_it_be_seen(room, request):
    device = request.getfixturevalue("kernels_device") if room == "kernels" else "cpu"
    means, thetas = [0, 1e-8, 1e-4, 0.3, 5, 900], [1e-4, 0.02, 1, 30, 1e4]
    mean, theta, pi, x = counts.grid(means, thetas, [-9, 0, 3], [0, 1, 8, 700], dtype=torch.float64)
    nb, _ = run(room, "negative_binomial", (mean, theta), x, device)
    np.testing.assert_allclose(-nb, scvi_log_nb_positive(x, mean, theta), rtol=1e-6, atol=1.1e-8)
    zinb, _ = run(room, "zero_inflated_negative_binomial", (mean, theta, pi), x, device)
    np.testing.assert_allclose(-zinb, scvi_log_zinb_positive(x, mean, theta, pi), rtol=1e-6, atol=1.1e-8)


def error_of_dtheta_where_it_crosses_zero(room, dtype, device="cpu"):
    """The largest, as a share of the two terms that cancel at the zero: (x - mean)^2 and x, both over 2 theta^2."""
    offsets = [-3, -1.5, -0.5, -0.01, 0.0, 0.02, 0.7, 1.25, 4]
    offset, theta, x = counts.grid(offsets, [1e3, 3e4, 1e6, 1e8], [0, 1, 2, 9, 64], dtype=dtype)
    mean = (x + offset * x.clamp(min=1).sqrt()).clamp(min=0)
    *_, (_, exact), _ = counts.exact(counts.negative_binomial, (mean, theta, x))
    _, (_, dtheta) = run(room, "negative_binomial", (mean, theta), x, device)
    left = (((x - mean) ** 2 + x + 1e-8) / (2 * theta**2)).double().numpy()
    return share(dtheta, exact, left, dtype).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("room", ROOMS)
def test_the_derivative_in_theta_where_it_crosses_zero(room, dtype, request):
    """Near the mean the plain derivative is rounding errors alone; ours keeps its digits, relative to what is left."""
    device = request.getfixturevalue("kernels_device") if room == "kernels" else "cpu"
    error = error_of_dtheta_where_it_crosses_zero(room, dtype, device)
    assert error < (2e-6 if dtype == torch.float32 and room != "reference" else 1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("name", NAMES[1:])
def test_a_mean_of_0_and_a_target_of_0_have_a_finite_nll(name, room, dtype, request):
    device = request.getfixturevalue("kernels_device") if room == "kernels" else "cpu"
    theta, x = counts.grid([1e-4, 1, 1e8], [0, 1, 5], dtype=dtype)
    params = (torch.zeros_like(x), theta) if name == "negative_binomial" else (torch.zeros_like(x), theta, theta.log())
    nll, derivatives = run(room, name, params, x, device)
    assert np.isfinite(nll).all()
    assert all(np.isfinite(d).all() for d in derivatives)
    assert (nll >= 0).all()
    assert (nll[x == 0] < 1.1e-8).all()


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("name", NAMES)
def test_nan_in_any_argument_gives_a_nan_nll(name, room, request):
    device = request.getfixturevalue("kernels_device") if room == "kernels" else "cpu"
    count = {"poisson": 1, "negative_binomial": 2, "zero_inflated_negative_binomial": 3}[name]
    for place in range(count + 1):
        arguments = [torch.tensor([0.5, 3.0, 20.0]) for _ in range(count)] + [torch.tensor([0.0, 2.0, 1.0])]
        arguments[place][1] = float("nan")
        nll, _ = run(room, name, tuple(arguments[:-1]), arguments[-1], device)
        assert np.isnan(nll).tolist() == [False, True, False]


@pytest.mark.parametrize("room", ROOMS)
def test_zero_inflation_at_extreme_logits(room, request):
    """Inflated for certain, a zero costs nothing and a count its logit; never inflated, it is the negative binomial."""
    device = request.getfixturevalue("kernels_device") if room == "kernels" else "cpu"
    x = torch.tensor([0.0, 0.0, 4.0, 4.0])
    params = (torch.full_like(x, 1e3), torch.full_like(x, 1e3), torch.tensor([200.0, -1e4, 200.0, -1e4]))
    nll, (*_, dpi) = run(room, "zero_inflated_negative_binomial", params, x, device)
    nb, _ = run(room, "negative_binomial", params[:2], x, device)
    np.testing.assert_allclose(nll, [0.0, nb[1], nb[2] + 200, nb[3]], rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(dpi, [0.0, 0.0, 1.0, 0.0], atol=1e-30)


@pytest.mark.parametrize("room", ROOMS)
def test_zero_inflation_that_is_switched_off_by_any_logit(room, request):
    """The nll of a zero is then the negative binomial's: to the logit, however large, nothing is added."""
    device = request.getfixturevalue("kernels_device") if room == "kernels" else "cpu"
    pi = -(10.0 ** torch.arange(2, 31))
    ones = torch.ones_like(pi)
    nll, (*_, dpi) = run(room, "zero_inflated_negative_binomial", (ones, ones, pi), 0 * ones, device)
    np.testing.assert_allclose(nll, np.log(2.0), rtol=1e-6)
    np.testing.assert_allclose(dpi, 0.0, atol=1e-30)


@pytest.mark.parametrize("room", ROOMS)
def test_an_endless_theta_is_the_poisson_distribution(room, request):
    device = request.getfixturevalue("kernels_device") if room == "kernels" else "cpu"
    mean, theta, x = counts.grid([0.3, 5, 4e3], [1e12, 1e18, 1e25, 1e38], [0, 1, 7, 3e3], dtype=torch.float32)
    nll, _ = run(room, "negative_binomial", (mean, theta), x, device)
    poisson, _ = reference.poisson(np.log(mean.double().numpy()), x.double().numpy())
    np.testing.assert_allclose(nll, poisson, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ["negative_binomial", "zero_inflated_negative_binomial"])
def test_in_the_kernels_a_mean_beyond_1e18_counts_as_that_and_infinity_is_not_finite(name, kernels_device):
    theta, x = torch.tensor([1e-4, 0.5, 3.0, 1e6]), torch.tensor([1.0, 7.0, 0.0, 1e6])
    others = (theta,) if name == "negative_binomial" else (theta, torch.full_like(theta, -1.0))

    def nll(mean):
        return run("kernels", name, (torch.full_like(theta, mean), *others), x, kernels_device)[0]

    exact, _ = getattr(reference, name)(np.full(4, 1e18), *(t.double().numpy() for t in (*others, x)))
    for mean in (1e18, 3e19, 1e30, 3e38):
        np.testing.assert_allclose(nll(mean), exact, rtol=1e-5)
    assert not np.isfinite(nll(float("inf"))).any()


@pytest.mark.compiled_only
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("name", NAMES)
def test_it_compiles_without_spills_or_local_memory(name, target):
    from vae_fast.benchmarks.audit import Budget, audit, check

    report = audit(_recorded(name, torch.float32), target, elements=("TILE",))
    assert check(report, Budget()) == []


@pytest.mark.compiled_only
@pytest.mark.parametrize("name", NAMES)
def test_float64_has_no_float32_in_it(name):
    """A number kept as float32 on the way loses eight digits; the interpreter does not always show it."""
    from vae_fast.benchmarks.audit import compile_launch

    assert "arith.extf" not in compile_launch(_recorded(name, torch.float64), "sm_90").asm["ttir"]


def _recorded(name, dtype):
    from vae_fast.benchmarks.launches import record_launches

    x = torch.empty(1 << 20, dtype=dtype)
    count = NAMES.index(name) + 1
    with record_launches() as launches:
        run_kernel(name, (x,) * count, x, tile=1024)
    return launches[0]


def test_a_count_below_1e_8_is_a_zero(backend):
    """As scvi-tools has it, where counts were divided by something."""
    params = tuple(drawer(backend.device, torch.float32, seed)(4, 9).abs().requires_grad_() for seed in range(3))
    name, zero = "zero_inflated_negative_binomial", torch.zeros(4, 9, device=backend.device)
    losses = [reconstruction_loss(params, x, name, reduction="none") for x in (zero, zero + 9e-9)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), params) for loss in losses))
