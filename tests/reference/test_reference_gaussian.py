"""Sample and KL against torch.distributions, quadrature and mpmath; gradients against differences and autograd."""

import itertools

import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch.distributions import Normal, kl_divergence

from vae_fast.reference import divergence, gaussian, noise, reductions

pytestmark = pytest.mark.filterwarnings("error")

SHAPES = [
    (1, 1),  # the smallest
    (5,),  # one latent, no axis for it
    (3, 7),  # primes
    (2, 3, 2, 2),  # a latent image
]
PRIORS = [
    None,
    ((2, 3, 4), (2, 3, 4)),  # as many as mu
    ((4,), (1, 4)),  # one for all samples, given in two ways
    ((), (3, 1)),  # a number, and a stretched axis
    ((2, 1, 4), ()),
]
CLAMPS = [None, (-0.5, 0.5)]


def draw(shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.normal(size=shape)


def torch_latent(mu, logvar, prior, eps, clamp, reduction):
    """z and KL as a PyTorch user would write them."""
    logvar = logvar if clamp is None else logvar.clamp(*clamp)
    m, l = (torch.zeros(()), torch.zeros(())) if prior is None else prior  # noqa: E741
    posterior = Normal(mu, (logvar / 2).exp())
    kl = kl_divergence(posterior, Normal(m.double().expand(mu.shape), (l.double() / 2).exp().expand(mu.shape)))
    reduce = {
        "none": lambda t: t,
        "sample": lambda t: t.flatten(1).sum(1),
        "latent": lambda t: t.mean(0),
        "sum": torch.sum,
        "mean": torch.mean,
        "batchmean": lambda t: t.sum() / len(t),
    }
    return posterior.loc + posterior.scale * eps, reduce[reduction](kl)


def mp_residual(x):
    return mpmath.exp(mpmath.mpf(x)) - 1 - mpmath.mpf(x)


def test_expm1mx_keeps_full_accuracy_over_the_whole_range():
    magnitudes = np.concatenate([np.geomspace(1e-12, 700, 400), np.linspace(0.5, 2, 200), [1.0, np.nextafter(1.0, 0)]])
    with mpmath.workdps(60):
        for x in np.concatenate([magnitudes, -magnitudes]):
            exact = mp_residual(x)
            assert abs((mpmath.mpf(float(divergence.expm1mx(x))) - exact) / exact) < 2e-15, x
    assert divergence.expm1mx(0.0) == 0.0
    assert np.isnan(divergence.expm1mx(np.nan))


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_kl_equals_torch_distributions(shape, with_prior):
    mu, logvar = draw(shape)
    prior = draw(shape, seed=1) if with_prior else (np.zeros(shape), np.zeros(shape))
    _, kl = gaussian.forward(mu, logvar, prior=prior if with_prior else None, reduction="none")
    p, q = (Normal(torch.tensor(m), torch.tensor(v).div(2).exp()) for m, v in ((mu, logvar), prior))
    np.testing.assert_allclose(kl, kl_divergence(p, q).numpy(), rtol=1e-11, atol=1e-13)
    assert np.all(kl >= 0)


@pytest.mark.parametrize(
    ("mu", "logvar", "m", "l"), [(0.3, -1.0, 0.0, 0.0), (-1.2, 0.7, 0.5, -0.4), (2.0, 0.0, 1.9, 1.0)]
)
def test_kl_equals_its_defining_integral(mu, logvar, m, l):  # noqa: E741
    p, q = scipy.stats.norm(mu, np.exp(logvar / 2)), scipy.stats.norm(m, np.exp(l / 2))
    integral, _ = scipy.integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -20, 20)
    _, kl = gaussian.forward([mu], [logvar], prior=([m], [l]), reduction="sum")
    np.testing.assert_allclose(kl, integral, rtol=1e-8)


@pytest.mark.parametrize("logvar", [1e-9, -1e-6, 1e-3, -0.4])
def test_a_small_kl_keeps_its_digits(logvar):
    with mpmath.workdps(50):
        exact = float((mp_residual(logvar) + mpmath.mpf(1e-8) ** 2) / 2)
    assert gaussian.forward([1e-8], [logvar], reduction="sum")[1] == pytest.approx(exact, rel=4e-15, abs=0)
    prior = ([0.0], [0.25])
    with mpmath.workdps(50):
        exact = float(mp_residual(mpmath.mpf(0.25 + logvar) - mpmath.mpf(0.25)) / 2)
    _, kl = gaussian.forward([0.0], [0.25 + logvar], prior=prior, reduction="sum")
    assert kl == pytest.approx(exact, rel=4e-15, abs=0)


def test_sample_from_eps_and_from_a_seed():
    mu, logvar = draw((3, 5, 2))
    eps = np.random.default_rng(2).normal(size=mu.shape)
    z, kl = gaussian.forward(mu, logvar, eps=eps)
    assert kl is None
    np.testing.assert_allclose(z, mu + np.exp(logvar) ** 0.5 * eps, rtol=1e-14)
    z, _ = gaussian.forward(mu, logvar, seed=-3)
    np.testing.assert_array_equal(z, gaussian.forward(mu, logvar, eps=noise.normal(-3, 30).reshape(3, 5, 2))[0])


def test_seeded_noise_follows_the_c_order_position_whatever_the_strides():
    mu, logvar = draw((3, 4))
    z, _ = gaussian.forward(mu, logvar, seed=9)
    np.testing.assert_array_equal(z, gaussian.forward(np.asfortranarray(mu), np.asfortranarray(logvar), seed=9)[0])


def test_each_result_is_made_only_on_demand():
    mu, logvar = draw((2, 3))
    assert gaussian.forward(mu, logvar) == (None, None)
    z, kl = gaussian.forward(mu, logvar, seed=0, reduction="sample")
    assert z.shape == (2, 3)
    assert kl.shape == (2,)


@pytest.mark.parametrize("prior_shapes", PRIORS)
@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("reduction", reductions.REDUCTIONS)
def test_values_and_gradients_equal_autograd(reduction, clamp, prior_shapes):
    mu, logvar = draw((2, 3, 4))
    eps = noise.normal(11, mu.size).reshape(mu.shape)
    prior = None if prior_shapes is None else tuple(draw(s, seed=3)[i] for i, s in enumerate(prior_shapes))

    leaves = [torch.tensor(a, requires_grad=True) for a in (mu, logvar, *(prior or ()))]
    torch_z, torch_kl = torch_latent(*leaves[:2], leaves[2:] or None, torch.tensor(eps), clamp, reduction)
    options = {"prior": prior, "clamp": clamp, "reduction": reduction}
    z, kl = gaussian.forward(mu, logvar, seed=11, **options)
    np.testing.assert_allclose(z, torch_z.detach(), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(kl, torch_kl.detach(), rtol=1e-11, atol=1e-13)

    rng = np.random.default_rng(4)
    grad_z, grad_kl = rng.normal(size=z.shape), rng.normal(size=kl.shape)
    for used_z, used_kl in itertools.product((True, False), repeat=2):
        ours = gaussian.backward(
            grad_z if used_z else None, grad_kl if used_kl else None, mu, logvar, seed=11, **options
        )
        loss = sum(leaf.sum() * 0 for leaf in leaves)
        loss = loss + (torch_z * torch.tensor(grad_z)).sum() if used_z else loss
        loss = loss + (torch_kl * torch.tensor(grad_kl)).sum() if used_kl else loss
        expected = torch.autograd.grad(loss, leaves, retain_graph=True)
        assert len(ours) == 4
        assert (ours[2] is None and ours[3] is None) == (prior is None)
        for our, their in zip(ours, expected, strict=False):
            assert our.shape == tuple(their.shape)
            np.testing.assert_allclose(our, their, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("prior_shapes", PRIORS)
@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("reduction", ["none", "sample", "latent", "mean"])
def test_gradients_equal_finite_differences(reduction, clamp, prior_shapes, numerical_gradient):
    mu, logvar = draw((2, 3, 4), seed=5)
    prior = () if prior_shapes is None else tuple(draw(s, seed=6)[i] for i, s in enumerate(prior_shapes))
    arrays = (mu, logvar, *prior)
    rng = np.random.default_rng(7)

    def options(arrays):
        return {"prior": tuple(arrays[2:]) or None, "seed": 1, "clamp": clamp, "reduction": reduction}

    z, kl = gaussian.forward(mu, logvar, **options(arrays))
    grad_z, grad_kl = rng.normal(size=z.shape), rng.normal(size=kl.shape)
    gradients = gaussian.backward(grad_z, grad_kl, mu, logvar, **options(arrays))
    for place, array in enumerate(arrays):

        def loss(x, place=place):
            changed = [x if i == place else a for i, a in enumerate(arrays)]
            z, kl = gaussian.forward(*changed[:2], **options(changed))
            return np.sum(grad_z * z) + np.sum(grad_kl * kl)

        np.testing.assert_allclose(gradients[place], numerical_gradient(loss, array), rtol=1e-6, atol=1e-8)


def test_the_clamp_at_its_bounds_inside_outside_and_at_nan():
    lo, hi = -2.0, 3.0
    logvar = np.array([lo, np.nextafter(lo, -9), hi, np.nextafter(hi, 9), 0.5, -np.inf, np.inf, np.nan])
    mu, eps, ones = np.ones(8), np.full(8, 2.0), np.ones(8)
    z, kl = gaussian.forward(mu, logvar, eps=eps, clamp=(lo, hi), reduction="none")
    clamped = np.array([lo, lo, hi, hi, 0.5, lo, hi, np.nan])
    expected_z, expected_kl = gaussian.forward(mu, clamped, eps=eps, reduction="none")
    np.testing.assert_array_equal(z, expected_z)
    np.testing.assert_array_equal(kl, expected_kl)

    free = gaussian.backward(ones, ones, mu, clamped, eps=eps, reduction="none")
    held = gaussian.backward(ones, ones, mu, logvar, eps=eps, clamp=(lo, hi), reduction="none")
    np.testing.assert_array_equal(held[0], free[0])
    np.testing.assert_array_equal(held[1], np.where([1, 0, 1, 0, 1, 0, 0, 1], free[1], 0.0))
    assert np.isnan(held[1][-1])
    assert np.all(held[1][[0, 2, 4]] != 0)


def test_the_clamp_leaves_the_prior_alone():
    prior = (np.zeros(2), np.full(2, 9.0))
    _, kl = gaussian.forward(np.zeros((1, 2)), np.zeros((1, 2)), prior=prior, clamp=(-1, 1), reduction="none")
    np.testing.assert_allclose(kl, (np.exp(-9.0) - 1 + 9) / 2)


@pytest.mark.parametrize("logvar", np.linspace(-30.0, 80.0, 12))
def test_extreme_log_variances_stay_exact(logvar):
    # KL: (exp(logvar) - 1 - logvar) / 2, from 14.5 at -30 to 2.8e34 at 80; float64 has no overflow before 709.
    z, kl = gaussian.forward([[0.5]], [[logvar]], eps=[[-1.5]], reduction="none")
    _, dlogvar, _, _ = gaussian.backward(None, [[1.0]], [[0.5]], [[logvar]], reduction="none")
    with mpmath.workdps(60):
        v = mpmath.mpf(logvar)
        np.testing.assert_allclose(kl, float((mpmath.exp(v) - 1 - v + 0.25) / 2), rtol=1e-14)
        np.testing.assert_allclose(z, float(0.5 - 1.5 * mpmath.exp(v / 2)), rtol=1e-14)
        np.testing.assert_allclose(dlogvar, float((mpmath.exp(v) - 1) / 2), rtol=1e-14)


def test_nan_and_infinities():
    inf, nan = np.inf, np.nan
    mu = np.array([nan, 0.0, inf, -inf, 0.0, 0.0, 0.0])
    logvar = np.array([0.0, nan, 0.0, 0.0, inf, -inf, 800.0])
    z, kl = gaussian.forward(mu, logvar, eps=np.ones(7), reduction="none")
    np.testing.assert_array_equal(z[:6], [nan, nan, inf, -inf, inf, 0.0])  # no variance: z is mu
    assert not np.isfinite(kl).any()  # a point mass is infinitely far; past 709 exp(logvar) overflows
    assert np.isnan(kl[:2]).all()
    dmu, dlogvar, _, _ = gaussian.backward(np.ones(7), np.ones(7), mu, logvar, eps=np.ones(7), reduction="none")
    assert np.isnan(dmu[0])
    assert np.isnan(dlogvar[1])
    np.testing.assert_array_equal(dlogvar[5:], [-0.5, inf])  # of the KL at -inf: expm1(-inf) / 2
    assert np.isnan(gaussian.forward(mu, logvar, reduction="batchmean")[1])


def test_overflow_is_infinite_and_does_not_warn():
    z, kl = gaussian.forward([0.0], [1500.0], eps=[1.0], reduction="none")
    assert (z, kl) == (np.inf, np.inf)
    prior = ([0.0], [-800.0])
    assert gaussian.forward([1.0], [0.0], prior=prior, reduction="none")[1] == np.inf
    gradients = gaussian.backward(None, [1.0], [1.0], [0.0], prior=prior, reduction="none")
    np.testing.assert_array_equal(np.ravel(gradients), [np.inf, np.inf, -np.inf, -np.inf])


@pytest.mark.parametrize("reduction", reductions.REDUCTIONS)
def test_an_empty_batch(reduction):
    empty = np.empty((0, 3))
    prior = (np.zeros(3), np.zeros((1, 3)))
    z, kl = gaussian.forward(empty, empty, prior=prior, seed=0, reduction=reduction)
    assert z.shape == (0, 3)
    np.testing.assert_array_equal(kl, reductions.reduce(empty, reduction))
    gradients = gaussian.backward(z, np.ones(kl.shape), empty, empty, prior=prior, seed=0, reduction=reduction)
    assert [g.shape for g in gradients] == [(0, 3), (0, 3), (3,), (1, 3)]
    np.testing.assert_array_equal(gradients[2], np.zeros(3))


def test_wrong_shapes_and_combinations_are_refused():
    mu, logvar = draw((2, 3))
    with pytest.raises(ValueError, match=r"logvar has shape \[3\], mu has \[2, 3\]"):
        gaussian.forward(mu, logvar[0], reduction="sum")
    with pytest.raises(ValueError, match=r"eps has shape \[1, 3\]"):
        gaussian.forward(mu, logvar, eps=np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"grad_z has shape \[\]"):
        gaussian.backward(1.0, None, mu, logvar, seed=0)
    with pytest.raises(ValueError, match="both given"):
        gaussian.forward(mu, logvar, seed=0, eps=mu)
    with pytest.raises(ValueError, match="without seed or eps"):
        gaussian.backward(mu, None, mu, logvar)
    with pytest.raises(ValueError, match="broadcast"):
        gaussian.forward(mu, logvar, prior=(np.zeros(2), np.zeros(3)), reduction="sum")


def test_a_closed_form_has_the_gradient_of_one_sample():
    rng = np.random.default_rng(0)
    mu, logvar, grad = rng.normal(size=(3, 2, 4))
    many = gaussian.backward(None, grad, mu, logvar, eps=rng.normal(size=(3, 2, 4)), samples=3, reduction="none")
    np.testing.assert_allclose(many[:2], gaussian.backward(None, grad, mu, logvar, reduction="none")[:2])
