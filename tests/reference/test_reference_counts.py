"""The reference's likelihoods of counts against scipy and mpmath; derivatives against finite differences; extremes."""

import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats

from vae_fast.reference import likelihoods, special

pytestmark = pytest.mark.filterwarnings("error")

NAMES = ["poisson", "negative_binomial", "zero_inflated_negative_binomial"]
TARGETS = np.array([0.0, 1, 2, 5, 30, 400])


def draw(name, seed=0):
    """Parameters of an ordinary size and a target of each count."""
    rng = np.random.default_rng(seed)
    shape = (4, len(TARGETS))
    log_rate, theta, pi = 2 * rng.normal(size=shape), np.exp(2 * rng.normal(size=shape)), 3 * rng.normal(size=shape)
    params = [log_rate] if name == "poisson" else [np.exp(log_rate), theta, pi][: NAMES.index(name) + 1]
    return params, np.broadcast_to(TARGETS, shape).copy()


def test_poisson_equals_scipy():
    (log_rate,), target = draw("poisson")
    nll, _ = likelihoods.poisson(log_rate, target)
    np.testing.assert_allclose(nll, -scipy.stats.poisson.logpmf(target, np.exp(log_rate)), rtol=1e-12, atol=1e-12)


def test_negative_binomial_equals_scipy():
    (mean, theta), target = draw("negative_binomial")
    nll, _ = likelihoods.negative_binomial(mean - likelihoods.MEAN_EPSILON, theta, target)
    expected = -scipy.stats.nbinom.logpmf(target, theta, theta / (theta + mean))
    np.testing.assert_allclose(nll, expected, rtol=1e-9, atol=1e-12)  # scipy's own differences cancel


def test_zero_inflation_mixes_a_zero_in():
    (mean, theta, pi), target = draw("zero_inflated_negative_binomial")
    nll, _ = likelihoods.zero_inflated_negative_binomial(mean, theta, pi, target)
    nb, _ = likelihoods.negative_binomial(mean, theta, target)
    inflated = scipy.special.expit(pi)
    likely = nb < 500  # or else its probability underflows
    probability = (inflated * (target == 0) + scipy.special.expit(-pi) * np.exp(-nb))[likely]
    assert likely.sum() > 15
    np.testing.assert_allclose(nll[likely], -np.log(probability), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("mean", "theta", "pi"), [(3.0, 0.4, -1.0), (0.2, 50.0, 2.0), (0.0, 2.0, 0.0)])
def test_the_probabilities_sum_to_1(mean, theta, pi):
    target = np.arange(3000.0)
    like = np.ones_like(target)
    nb, _ = likelihoods.negative_binomial(mean * like, theta * like, target)
    zinb, _ = likelihoods.zero_inflated_negative_binomial(mean * like, theta * like, pi * like, target)
    poisson, _ = likelihoods.poisson(np.log(mean + 1) * like, target)
    for nll in (nb, zinb, poisson):
        assert abs(np.exp(-nll).sum() - 1) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_equal_finite_differences(name, numerical_gradient):
    params, target = draw(name, seed=1)
    likelihood = getattr(likelihoods, name)
    _, derivatives = likelihood(*params, target)
    for place, param in enumerate(params):

        def total(x, place=place):
            return likelihood(*[x if i == place else p for i, p in enumerate(params)], target)[0].sum()

        scale = max(1.0, np.abs(likelihood(*params, target)[0]).sum())
        # Relative steps: a mean or theta of 1e-3 bends within 1e-5.
        numeric = numerical_gradient(lambda x, total=total, param=param: total(param * x), np.ones_like(param))
        np.testing.assert_allclose(derivatives[place] * param, numeric, rtol=1e-6, atol=1e-9 * scale)


@pytest.mark.parametrize("theta", [1e-4, 0.3, 0.999999, 1.0, 9.99999, 10.0, 1e4, 1e8])
@pytest.mark.parametrize("target", [0.0, 1.0, 7.0, 1e6])
def test_negative_binomial_keeps_its_digits_at_any_theta(theta, target):
    for mean in (1e-4, 0.9 * target + 0.1, target + 1e-3, 1e6):
        nll, (dmean, dtheta) = likelihoods.negative_binomial(mean, theta, target)
        with mpmath.workdps(50):
            m, t, x = mpmath.mpf(mean) + mpmath.mpf(likelihoods.MEAN_EPSILON), mpmath.mpf(theta), mpmath.mpf(target)
            log_t, log_m = mpmath.log(t / (t + m)), mpmath.log(m / (t + m))
            difference = mpmath.loggamma(x + t) - mpmath.loggamma(t)
            terms = (t * log_t, x * log_m, difference, -mpmath.loggamma(x + 1))
            size = float(sum(map(abs, terms)))
            slope = -(log_t + (m - x) / (t + m) + mpmath.digamma(x + t) - mpmath.digamma(t))
            assert abs(nll + float(sum(terms))) <= 1e-13 * size
            assert abs(dtheta - float(slope)) <= 1e-13 * size / theta
            assert dmean == pytest.approx(float(t * (m - x) / (m * (t + m))), rel=1e-12, abs=1e-16)


@pytest.mark.parametrize("theta", [1e4, 1e8, 1e12])
@pytest.mark.parametrize(("mean", "target"), [(0.5, 0.0), (6.4, 7.0), (7.0, 6.0), (1e3, 990.0)])
def test_the_slope_in_a_large_theta_keeps_its_digits(mean, target, theta):
    """It is of the size of 1 / theta^2, and each of its terms of 1 / theta."""
    _, (_, dtheta) = likelihoods.negative_binomial(mean, theta, target)
    with mpmath.workdps(80):
        m, t, x = mpmath.mpf(mean) + mpmath.mpf(likelihoods.MEAN_EPSILON), mpmath.mpf(theta), mpmath.mpf(target)
        slope = mpmath.log1p(m / t) - (m - x) / (t + m) - mpmath.digamma(x + t) + mpmath.digamma(t)
        assert dtheta == pytest.approx(float(slope), rel=1e-13, abs=0)


@pytest.mark.parametrize("x", [0.0, 1e-4, 0.1, 0.46163, 0.999, 1.0, 2.0, 8.999, 9.0, 31.4, 1e8])
def test_the_logarithm_of_a_factorial_equals_scipy(x):
    x = np.array(x)
    np.testing.assert_allclose(special.lgamma_1p(x), scipy.special.gammaln(1 + x), rtol=1e-13, atol=3e-14)


def test_a_theta_that_is_huge_is_poisson():
    target = np.arange(20.0)
    mean = np.full_like(target, 6.0)
    nll, _ = likelihoods.negative_binomial(mean, np.full_like(target, 1e12), target)
    np.testing.assert_allclose(nll, likelihoods.poisson(np.log(mean), target)[0], rtol=1e-8)  # 1e-8 in the mean


@pytest.mark.parametrize("name", NAMES)
def test_nan_in_any_argument_gives_nan(name):
    params, target = draw(name)
    for place in range(len(params) + 1):
        arguments = [a[0].copy() for a in (*params, target)]
        arguments[place][1] = np.nan
        nll, _ = getattr(likelihoods, name)(*arguments)
        assert np.isnan(nll).tolist() == [False, True, False, False, False, False]


def test_a_mean_of_0_is_finite_and_a_theta_of_0_does_not_warn():
    nll, derivatives = likelihoods.negative_binomial(np.zeros(2), np.ones(2), np.array([0.0, 3.0]))
    np.testing.assert_allclose(nll, [1e-8, 3 * (np.log(1 + 1e-8) - np.log(1e-8))], rtol=1e-6)
    assert all(np.isfinite(d).all() for d in derivatives)
    likelihoods.zero_inflated_negative_binomial(np.zeros(2), np.zeros(2), np.zeros(2), np.array([0.0, 3.0]))


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_not_broadcast(name):
    params, target = draw(name)
    with pytest.raises(ValueError, match=r"target has shape \[1, 6\]"):
        getattr(likelihoods, name)(*params, target[:1])


def test_a_zero_that_both_parts_make_rare():
    nb = likelihoods.negative_binomial(1e3, 10.0, 0.0)[0]
    nll = likelihoods.zero_inflated_negative_binomial(1e3, 10.0, -40.0, 0.0)[0]
    np.testing.assert_allclose(nll, np.log1p(np.exp(-40)) - np.log(np.exp(-40) + np.exp(-nb)), rtol=1e-13)
