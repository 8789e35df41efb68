"""The reconstruction loss and the negative ELBO against PyTorch's own, gradients against differences and autograd."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vae_fast.reference import likelihoods, reconstruction

pytestmark = pytest.mark.filterwarnings("error")

LOSSES = {
    likelihoods.bernoulli: (1, lambda a, x: F.binary_cross_entropy_with_logits(a, x, reduction="none")),
    likelihoods.mse: (1, lambda a, x: F.mse_loss(a, x, reduction="none")),
    likelihoods.gaussian: (
        2,
        lambda m, v, x: F.gaussian_nll_loss(m, x, v.exp(), full=True, eps=0.0, reduction="none"),
    ),
}
TORCH_REDUCTIONS = {
    "none": lambda t: t,
    "sample": lambda t: t.flatten(1).sum(1),
    "sum": torch.sum,
    "mean": torch.mean,
    "batchmean": lambda t: t.sum() / len(t),
}
B, SHAPE = 3, (3, 2, 5)


@pytest.fixture(params=LOSSES, ids=lambda likelihood: likelihood.__name__)
def case(request):
    """(likelihood, params, target, the loss of each element in PyTorch)"""
    rng = np.random.default_rng(0)
    count, elementwise = LOSSES[request.param]
    return request.param, tuple(rng.normal(size=SHAPE) for _ in range(count)), rng.uniform(size=SHAPE), elementwise


@pytest.mark.parametrize("reduction", TORCH_REDUCTIONS)
def test_forward_and_backward_equal_torch(case, reduction):
    likelihood, params, target, elementwise = case
    loss = reconstruction.forward(params, target, likelihood, reduction)
    leaves = [torch.tensor(p, requires_grad=True) for p in params]
    expected = TORCH_REDUCTIONS[reduction](elementwise(*leaves, torch.tensor(target)))
    assert loss.shape == tuple(expected.shape)
    np.testing.assert_allclose(loss, expected.detach(), rtol=1e-12)

    grad_loss = np.random.default_rng(1).normal(size=loss.shape)
    gradients = reconstruction.backward(grad_loss, params, target, likelihood, reduction)
    theirs = torch.autograd.grad(expected, leaves, torch.tensor(grad_loss))
    assert isinstance(gradients, tuple)
    for our, their in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("reduction", TORCH_REDUCTIONS)
def test_backward_equals_finite_differences(case, reduction, numerical_gradient):
    likelihood, params, target, _ = case
    loss = reconstruction.forward(params, target, likelihood, reduction)
    grad_loss = np.random.default_rng(2).normal(size=loss.shape)
    gradients = reconstruction.backward(grad_loss, params, target, likelihood, reduction)
    for place, param in enumerate(params):

        def total(x, place=place):
            changed = tuple(x if i == place else p for i, p in enumerate(params))
            return np.sum(grad_loss * reconstruction.forward(changed, target, likelihood, reduction))

        np.testing.assert_allclose(gradients[place], numerical_gradient(total, param), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kl_shape", [(B,), ()], ids=["per sample", "already averaged"])
@pytest.mark.parametrize("used", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)])
def test_elbo_equals_torch(case, kl_shape, used):
    likelihood, params, target, elementwise = case
    rng = np.random.default_rng(3)
    kl, beta = rng.uniform(size=kl_shape), 0.7
    grads = [g if use else None for g, use in zip(rng.normal(size=3), used, strict=True)]

    leaves = [torch.tensor(a, requires_grad=True) for a in (*params, kl)]
    rec = elementwise(*leaves[:-1], torch.tensor(target)).sum() / B
    expected = (rec + beta * leaves[-1].mean(), rec, leaves[-1].mean())
    results = reconstruction.elbo_forward(params, target, kl, beta, likelihood)
    np.testing.assert_allclose(results, [e.item() for e in expected], rtol=1e-12)

    grad_params, grad_kl = reconstruction.elbo_backward(*grads, params, target, kl, beta, likelihood)
    loss = sum(e * (0.0 if g is None else g) for e, g in zip(expected, grads, strict=True))
    theirs = torch.autograd.grad(loss, leaves)
    assert isinstance(grad_params, tuple)
    assert grad_kl.shape == kl_shape
    for our, their in zip((*grad_params, grad_kl), theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-11, atol=1e-14)


def test_elbo_backward_equals_finite_differences(case, numerical_gradient):
    likelihood, params, target, _ = case
    kl, beta, grads = np.array([0.5, 1.5, 4.0]), 2.5, (0.3, -1.1, 0.8)
    grad_params, grad_kl = reconstruction.elbo_backward(*grads, params, target, kl, beta, likelihood)

    def total(params, kl):
        return np.dot(grads, reconstruction.elbo_forward(params, target, kl, beta, likelihood))

    np.testing.assert_allclose(grad_kl, numerical_gradient(lambda x: total(params, x), kl), rtol=1e-6)
    numeric = numerical_gradient(lambda x: total((x, *params[1:]), kl), params[0])
    np.testing.assert_allclose(grad_params[0], numeric, rtol=1e-6, atol=1e-8)


def test_an_empty_batch(case):
    likelihood, params, _, _ = case
    empty = tuple(np.empty((0, 4)) for _ in params)
    assert reconstruction.forward(empty, np.empty((0, 4)), likelihood, "sum") == 0.0
    assert np.isnan(reconstruction.forward(empty, np.empty((0, 4)), likelihood, "mean"))
    assert np.isnan(reconstruction.elbo_forward(empty, np.empty((0, 4)), np.empty(0), 1.0, likelihood)).all()
    grad_params, grad_kl = reconstruction.elbo_backward(
        1.0, None, None, empty, np.empty((0, 4)), np.empty(0), 1.0, likelihood
    )
    assert [g.shape for g in grad_params] == [(0, 4)] * len(params)
    assert grad_kl.shape == (0,)


def test_nan_and_infinity_pass_through_without_warnings():
    target = np.zeros((2, 2))
    for bad in (np.nan, np.inf):
        params = (np.array([[0.0, 1.0], [bad, 0.0]]),)
        total, rec, kl = reconstruction.elbo_forward(params, target, [1.0, 2.0], 1.0, likelihoods.mse)
        assert not np.isfinite([total, rec]).any()
        assert kl == 1.5
        (grad,) = reconstruction.backward(0.0, params, target, likelihoods.mse, "batchmean")
        np.testing.assert_array_equal(grad, [[0.0, 0.0], [np.nan, 0.0]])  # 0 x inf
        total, rec, kl = reconstruction.elbo_forward((target,), target, [1.0, bad], 0.0, likelihoods.mse)
        assert np.isnan(total)  # beta = 0 does not hide a broken KL
        assert rec == 0.0


def test_a_kl_of_another_shape_is_refused():
    x = np.ones((3, 2))
    for shape in ((3, 2), (2,), (1,)):
        with pytest.raises(ValueError, match=r"kl has shape .* expected \[3\] .*or \[\]"):
            reconstruction.elbo_forward((x,), x, np.ones(shape), 1.0, likelihoods.mse)
