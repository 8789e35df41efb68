"""Likelihoods against scipy and torch; derivatives against finite differences and autograd; then the extremes."""

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_fast.reference import likelihoods

pytestmark = pytest.mark.filterwarnings("error")


def torch_gaussian(mean, logvar, target):
    return -torch.distributions.Normal(mean, (logvar / 2).exp()).log_prob(target)


# name: number of parameters, how to draw a target, the same in PyTorch
CASES = {
    "bernoulli": (1, "unit", lambda a, x: F.binary_cross_entropy_with_logits(a, x, reduction="none")),
    "mse": (1, "real", lambda a, x: F.mse_loss(a, x, reduction="none")),
    "gaussian": (2, "real", torch_gaussian),
}


def draw(name, shape=(4, 5), seed=0):
    count, domain, _ = CASES[name]
    rng = np.random.default_rng(seed)
    target = rng.uniform(size=shape) if domain == "unit" else rng.normal(size=shape)
    return [3 * rng.normal(size=shape) for _ in range(count)], target


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (4, 5), (2, 3, 2, 2)])
def test_values_and_derivatives_equal_torch(name, shape):
    params, target = draw(name, shape)
    nll, derivatives = getattr(likelihoods, name)(*params, target)
    leaves = [torch.tensor(p, requires_grad=True) for p in params]
    expected = CASES[name][2](*leaves, torch.tensor(target))
    assert nll.shape == shape
    assert nll.dtype == np.float64
    np.testing.assert_allclose(nll, expected.detach(), rtol=1e-12, atol=1e-14)
    assert len(derivatives) == len(params)
    for ours, theirs in zip(derivatives, torch.autograd.grad(expected.sum(), leaves), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_equal_finite_differences(name, numerical_gradient):
    params, target = draw(name, seed=1)
    likelihood = getattr(likelihoods, name)
    _, derivatives = likelihood(*params, target)
    for place, param in enumerate(params):

        def total(x, place=place):
            return likelihood(*[x if i == place else p for i, p in enumerate(params)], target)[0].sum()

        # Absolute: a difference quotient of sums of 1e3 and more has an error of about 1e-16 * 1e3 / 1e-5.
        scale = max(1.0, likelihood(*params, target)[0].sum())
        np.testing.assert_allclose(derivatives[place], numerical_gradient(total, param), rtol=1e-6, atol=1e-9 * scale)


def test_bernoulli_equals_scipy_on_binary_targets():
    logits = np.linspace(-6, 6, 13)
    for x in (0, 1):
        nll, _ = likelihoods.bernoulli(logits, np.full(13, x))
        np.testing.assert_allclose(nll, -scipy.stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-logits))), rtol=1e-12)


def test_gaussian_equals_scipy():
    (mean, logvar), target = draw("gaussian")
    nll, _ = likelihoods.gaussian(mean, logvar, target)
    np.testing.assert_allclose(nll, -scipy.stats.norm.logpdf(target, mean, np.exp(logvar / 2)), rtol=1e-12, atol=1e-14)


def test_mse_is_the_gaussian_at_variance_one_half_less_a_constant():
    (output,), target = draw("mse")
    nll, _ = likelihoods.gaussian(output, np.full(output.shape, np.log(0.5)), target)
    np.testing.assert_allclose(likelihoods.mse(output, target)[0], nll - np.log(np.pi) / 2, rtol=1e-12, atol=1e-14)


@given(st.floats(-1e4, 1e4), st.sampled_from([0.0, 0.25, 1.0]))
@settings(max_examples=150, deadline=None)
def test_bernoulli_is_exact_at_any_finite_logit(logit, target):
    nll, (derivative,) = likelihoods.bernoulli(logit, target)
    with mpmath.workdps(40):
        a, x = mpmath.mpf(logit), mpmath.mpf(target)
        exact = mpmath.log1p(mpmath.exp(-abs(a))) + max(a, 0) - a * x
        slope = 1 / (1 + mpmath.exp(-a)) - x
        # Relative to the terms: at x = 1 the two large ones cancel, and what they lose is 1e-16 of each.
        assert abs(float(nll - exact)) <= 1e-15 * (abs(logit) + 1)
        assert abs(float(derivative - slope)) <= 1e-15


@pytest.mark.parametrize("logit", [-700.0, -40.0, -10.0])
def test_a_confident_bernoulli_keeps_its_digits(logit):
    nll, (derivative,) = likelihoods.bernoulli(logit, 0.0)
    with mpmath.workdps(400):
        e = mpmath.exp(mpmath.mpf(logit))
        np.testing.assert_allclose(nll, float(mpmath.log1p(e)), rtol=2e-15)
        np.testing.assert_allclose(derivative, float(e / (1 + e)), rtol=2e-15)


@pytest.mark.parametrize(
    ("logit", "target", "nll", "derivative"),
    [
        (1e4, 1.0, 0.0, 0.0),
        (1e4, 0.0, 1e4, 1.0),
        (-1e4, 1.0, 1e4, -1.0),
        (-1e4, 0.0, 0.0, 0.0),
        (-1e4, 0.25, 2500.0, -0.25),
        (1e308, 0.0, 1e308, 1.0),
        (-np.inf, 1.0, np.inf, -1.0),  # certain and wrong: infinite
        (-np.inf, 0.0, np.nan, 0.0),  # 0 x inf, as torch's own
        (np.inf, 0.0, np.nan, 1.0),
        (np.inf, 1.0, np.nan, 0.0),
        (np.nan, 0.0, np.nan, np.nan),
        (0.0, np.nan, np.nan, np.nan),
    ],
)
def test_bernoulli_extremes(logit, target, nll, derivative):
    ours, (slope,) = likelihoods.bernoulli(logit, target)
    np.testing.assert_array_equal(ours, nll)
    np.testing.assert_array_equal(slope, derivative)


@pytest.mark.parametrize("logvar", np.linspace(-30.0, 80.0, 12))
def test_gaussian_at_extreme_log_variances(logvar):
    nll, (dmean, dlogvar) = likelihoods.gaussian(0.5, logvar, -1.0)
    with mpmath.workdps(60):
        v = mpmath.mpf(logvar)
        np.testing.assert_allclose(nll, float((v + 2.25 * mpmath.exp(-v) + mpmath.log(2 * mpmath.pi)) / 2), rtol=1e-14)
        np.testing.assert_allclose(dmean, float(1.5 * mpmath.exp(-v)), rtol=1e-14)
        np.testing.assert_allclose(dlogvar, float((1 - 2.25 * mpmath.exp(-v)) / 2), rtol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_nan_in_any_argument_gives_nan(name):
    params, target = draw(name, (3,))
    for place in range(len(params) + 1):
        arguments = [a.copy() for a in (*params, target)]
        arguments[place][1] = np.nan
        nll, derivatives = getattr(likelihoods, name)(*arguments)
        for result in (nll, *derivatives):
            assert np.isnan(result).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("mse", (np.inf, 0.0)), ("mse", (1e200, 0.0)), ("gaussian", (np.inf, 0.0, 0.0)), ("gaussian", (1.0, -800.0, 0.0))],
)
def test_overflow_is_not_finite_and_does_not_warn(name, arguments):
    assert not np.isfinite(getattr(likelihoods, name)(*arguments)[0])


@pytest.mark.parametrize("name", CASES)
def test_shapes_are_not_broadcast(name):
    params, target = draw(name)
    with pytest.raises(ValueError, match=r"target has shape \[1, 5\]"):
        getattr(likelihoods, name)(*params, target[:1])


class TestCategorical:
    """Logits have a dimension more than the target, the last one."""

    @pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 0), (2, 3, 2)])
    @pytest.mark.parametrize("count", [1, 2, 7, 300])
    def test_values_and_derivatives_equal_torch(self, count, shape):
        rng = np.random.default_rng(0)
        logits, target = 3 * rng.normal(size=(*shape, count)), rng.integers(0, count, shape)
        nll, (derivative,) = likelihoods.categorical(logits, target)
        leaf = torch.tensor(logits, requires_grad=True)
        expected = -torch.log_softmax(leaf, -1).gather(-1, torch.tensor(target)[..., None])[..., 0]
        np.testing.assert_allclose(nll, expected.detach(), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(derivative, torch.autograd.grad(expected.sum(), leaf)[0], rtol=1e-12, atol=1e-14)

    def test_derivatives_equal_finite_differences(self, numerical_gradient):
        rng = np.random.default_rng(1)
        logits, target = rng.normal(size=(3, 5)), np.array([0, 4, 2])
        _, (derivative,) = likelihoods.categorical(logits, target)
        expected = numerical_gradient(lambda a: likelihoods.categorical(a, target)[0].sum(), logits)
        np.testing.assert_allclose(derivative, expected, atol=1e-9)

    def test_a_confident_prediction_equals_mpmath(self):
        logits, target = np.array([[60.0, 0.0, 1.0]]), np.array([0])
        nll, (derivative,) = likelihoods.categorical(logits, target)
        with mpmath.workdps(60):
            rest = mpmath.exp(-60) + mpmath.exp(-59)
            np.testing.assert_allclose(nll, [float(mpmath.log1p(rest))], rtol=1e-14)
            np.testing.assert_allclose(derivative[0, 0], float(-rest / (1 + rest)), rtol=1e-14)

    def test_what_is_left_out_and_what_is_no_class(self):
        logits, target = np.full((4, 3), np.nan), np.array([-1, 5, 3, -1])
        logits[2] = 0.0
        nll, (derivative,) = likelihoods.categorical(logits, target, ignore_index=-1)
        np.testing.assert_array_equal(np.isnan(nll), [False, True, True, False])
        np.testing.assert_array_equal(np.isnan(derivative).all(-1), [False, True, True, False])
        assert not nll[[0, 3]].any()
        assert not derivative[[0, 3]].any()

    def test_shapes_must_fit(self):
        with pytest.raises(ValueError, match=r"target has shape \[3\], logits have \[2, 3\]: all but the last"):
            likelihoods.categorical(np.zeros((2, 3)), np.zeros(3, int))


def test_the_series_of_the_continuous_bernoulli_is_its_closed_form():
    b = np.linspace(0.5, 1, 50, endpoint=False)
    nll, (slope,) = likelihoods.continuous_bernoulli(b, np.zeros_like(b))
    np.testing.assert_allclose(nll, b + np.log(-np.expm1(-b) / b), rtol=1e-14)
    np.testing.assert_allclose(slope, 1 - (1 / b - 1 / np.expm1(b)), rtol=1e-13)


def test_the_constants_of_a_student_t_meet():
    last, first = (likelihoods.student_t(0.3, -0.2, 0.1, df=df)[0] for df in (1e6, 1e6 + 1))
    np.testing.assert_allclose(first, last, rtol=0, atol=2e-8)


def test_the_derivative_in_probs_stops_at_1e12():
    (derivative,) = likelihoods.bernoulli_probs(np.array([1e-13, 1e-11]), np.ones(2))[1]
    np.testing.assert_allclose(derivative, [-1e12, -1e11], rtol=1e-10)


def test_what_is_rare_keeps_its_digits():
    nll, _ = likelihoods.bernoulli_probs(np.array([1e-20]), np.zeros(1))
    np.testing.assert_allclose(nll, [1e-20], rtol=1e-15)


@pytest.mark.parametrize("logit", [1e-6, 1e-3, 0.1, 0.999])
def test_a_continuous_bernoulli_near_one_half_keeps_its_digits(logit):
    nll, (slope,) = likelihoods.continuous_bernoulli(logit, 0.0)
    with mpmath.workdps(60):
        a = mpmath.mpf(logit)
        np.testing.assert_allclose(nll, float(mpmath.log(mpmath.expm1(a) / a)), rtol=1e-14)
        np.testing.assert_allclose(slope, float(1 + 1 / mpmath.expm1(a) - 1 / a), rtol=1e-14)


def test_log_cosh_of_a_large_difference_does_not_overflow():
    np.testing.assert_allclose(likelihoods.log_cosh(np.array([1e4]), np.zeros(1))[0], [1e4 - np.log(2.0)], rtol=1e-15)


@pytest.mark.parametrize("delta", [0.1, 7.5])
def test_huber_of_any_delta_equals_torch(delta):
    (output,), target = draw("mse")
    nll, (derivative,) = likelihoods.huber(output, target, delta)
    leaf = torch.tensor(output, requires_grad=True)
    expected = F.huber_loss(leaf, torch.tensor(target), reduction="none", delta=delta)
    np.testing.assert_allclose(nll, expected.detach(), rtol=1e-12)
    np.testing.assert_allclose(derivative, torch.autograd.grad(expected.sum(), leaf)[0], rtol=1e-12)
