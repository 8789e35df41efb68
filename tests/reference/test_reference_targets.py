"""Targets scaled, weighted and sampled, in NumPy: against plain formulas and finite differences."""

import numpy as np
import pytest

from vae_fast.reference import likelihoods, noise, reconstruction, targets

pytestmark = pytest.mark.filterwarnings("error")

SHAPE = (3, 2, 5)
WEIGHTS = {"per sample": (3,), "column": (3, 1, 1), "elementwise": SHAPE, "shared": (1, 1, 5), "one": (1, 1, 1)}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.int8, np.int16, np.int64])
def test_integers_are_multiplied_after_their_conversion(dtype, rng):
    target, logits = rng.integers(0, 2, SHAPE).astype(dtype) * dtype(100), rng.normal(size=SHAPE)
    loss = reconstruction.forward((logits,), target, likelihoods.mse, "sum", scale=1 / 255)
    np.testing.assert_allclose(loss, np.sum((logits - target.astype(float) / 255) ** 2), rtol=1e-12)


@pytest.mark.parametrize("shape", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("reduction", ["none", "sample", "sum", "mean", "batchmean"])
def test_a_weight_multiplies_each_nll_and_its_gradient(reduction, shape, rng, numerical_gradient):
    logits, target, weight = rng.normal(size=SHAPE), rng.uniform(size=SHAPE), rng.uniform(size=shape)
    full = np.broadcast_to(weight.reshape(3, 1, 1) if shape == (3,) else weight, SHAPE)
    options = {"weight": weight, "scale": 0.5}

    def loss(x, reduction=reduction):
        return reconstruction.forward((x,), target, likelihoods.bernoulli, reduction, **options)

    each = likelihoods.bernoulli(logits, target / 2)[0] * full
    np.testing.assert_allclose(loss(logits, "none"), each)
    count = {"mean": each.size, "batchmean": 3}.get(reduction, 1)  # of all elements, whatever their weights
    np.testing.assert_allclose(loss(logits).sum(), each.sum() / count)
    upstream = rng.normal(size=loss(logits).shape)
    (grad,) = reconstruction.backward(upstream, (logits,), target, likelihoods.bernoulli, reduction, **options)
    expected = numerical_gradient(lambda x: np.sum(upstream * loss(x)), logits)
    np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("reduction", ["none", "sample", "batchmean"])
def test_a_weight_of_classes_is_one_for_each_target(reduction, shape, rng, numerical_gradient):
    logits, target, weight = rng.normal(size=(3, 2, 4)), rng.integers(0, 4, (3, 2)), rng.uniform(size=shape)
    weight[0] = 0.0

    def loss(x):
        return reconstruction.forward((x,), target, likelihoods.categorical, reduction, weight=weight)

    upstream = rng.normal(size=loss(logits).shape)
    expected = numerical_gradient(lambda x: np.sum(upstream * loss(x)), logits)
    logits[0] = np.nan if shape[0] == 3 else logits[0]
    (grad,) = reconstruction.backward(upstream, (logits,), target, likelihoods.categorical, reduction, weight=weight)
    np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=1e-8)


def test_a_weight_of_0_hides_anything():
    values = np.array([[1.0, np.nan, np.inf, -np.inf]])
    assert targets.weighted(values, [[2.0, 0.0, 0.0, 0.0]]).tolist() == [[2.0, 0.0, 0.0, 0.0]]
    assert np.isnan(targets.weighted(values, [[np.nan, 0.0, 0.0, 0.0]])[0, 0])


@pytest.mark.parametrize("shape", [(), (4,), (2, 4), (3, 1, 4), (1, 3, 2, 4)])
def test_a_weight_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="weight|broadcast"):
        targets.weighted(np.ones((3, 2, 4)), np.ones(shape) if shape != (3, 1, 4) else np.ones((3, 3, 4)))


def test_a_sample_is_1_where_the_uniform_is_below(rng):
    target = rng.integers(0, 256, SHAPE).astype(np.uint8)
    made = targets.binarize(target, 7, 1 / 255)
    grey = (target.astype(np.float32) * np.float32(1 / 255)).ravel()
    assert made.ravel().tolist() == [float(u < p) for u, p in zip(noise.uniform(7, 30), grey)]


def test_black_white_grey_and_nan():
    for grey in (0.0, 1.0, 0.25):
        assert targets.binarize(np.full(40_000, grey), 0).mean() == pytest.approx(grey, abs=0.01 if grey % 1 else 0)
    assert np.isnan(targets.binarize([np.nan], 0)).all()


def test_the_loss_of_a_sampled_target_is_that_of_its_sample(rng):
    logits, target = rng.normal(size=SHAPE), rng.uniform(size=SHAPE)
    sampled = targets.binarize(target, 3)
    arguments = likelihoods.bernoulli, "batchmean"
    loss = reconstruction.forward((logits,), target, *arguments, seed=3)
    assert loss == reconstruction.forward((logits,), sampled, *arguments)
    (grad,) = reconstruction.backward(1.0, (logits,), target, *arguments, seed=3)
    assert np.array_equal(grad, reconstruction.backward(1.0, (logits,), sampled, *arguments)[0])


def test_the_elbo_takes_the_same_options(rng):
    logits, target, kl = rng.normal(size=SHAPE), rng.uniform(size=SHAPE), rng.uniform(size=3)
    options = {"weight": np.array([1.0, 0.0, 2.0]), "seed": 1, "scale": 0.5}
    _, nll, _ = reconstruction.elbo_forward((logits,), target, kl, 1.0, likelihoods.bernoulli, **options)
    assert nll == reconstruction.forward((logits,), target, likelihoods.bernoulli, "batchmean", **options)
    grads, _ = reconstruction.elbo_backward(1, None, None, (logits,), target, kl, 1.0, likelihoods.bernoulli, **options)
    expected = reconstruction.backward(1.0, (logits,), target, likelihoods.bernoulli, "batchmean", **options)
    assert np.array_equal(grads[0], expected[0])
