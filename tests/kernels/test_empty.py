"""Empty batches and empty samples: sums are 0, averages over nothing NaN, gradients empty; no kernel is launched."""

import numpy as np
import pytest
import torch

from tests.kernels.latents import DTYPES
from tests.kernels.latents import REDUCTIONS as LATENT_REDUCTIONS
from tests.kernels.outputs import LIKELIHOODS, REDUCTIONS
from vae_fast import elbo_loss, gaussian_kl, reconstruction_loss, reparameterize, sample_kl, sample_kl_packed
from vae_fast.reference import reductions

SHAPES = [
    (0,),  # a batch alone
    (0, 3),  # no samples
    (3, 0),  # samples without elements
    (0, 0),
    (2, 0, 4),  # an empty dimension that is not the last
]


def leaf(shape, backend, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype, device=backend.device).requires_grad_()


def expected(shape, reduction):
    with np.errstate(invalid="ignore", divide="ignore"):
        return torch.from_numpy(np.asarray(reductions.reduce(np.zeros(shape), reduction)))


def check_loss(loss, shape, reduction, dtype):
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.detach().cpu().double(), expected(shape, reduction), equal_nan=True, atol=0, rtol=0)


def check_grads(outputs, inputs):
    sum(output.sum() for output in outputs).backward()
    for input in inputs:
        assert input.grad.shape == input.shape
        assert input.grad.dtype == input.dtype
        assert not input.grad.any()


@pytest.mark.parametrize("reduction", LATENT_REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sample_kl(shape, reduction, backend):
    for dtype in DTYPES:
        for noise in ({"seed": 0}, {}, {"eps": torch.zeros(shape, dtype=dtype, device=backend.device)}):
            mu, logvar = leaf(shape, backend, dtype), leaf(shape, backend, dtype)
            prior = leaf((), backend, dtype), leaf(shape, backend, dtype)
            z, kl = sample_kl(mu, logvar, prior=prior, logvar_clamp=(-1, 1), reduction=reduction, **noise)
            assert z.shape == shape
            assert z.dtype == dtype
            check_loss(kl, shape, reduction, dtype)
            check_grads((z, kl), (mu, logvar, *prior))


@pytest.mark.parametrize("reduction", LATENT_REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gaussian_kl_and_reparameterize(shape, reduction, backend):
    mu, logvar = leaf(shape, backend), leaf(shape, backend)
    kl = gaussian_kl(mu, logvar, reduction=reduction)
    check_loss(kl, shape, reduction, torch.float32)
    z = reparameterize(mu, logvar, seed=0)
    assert z.shape == shape
    check_grads((z, kl), (mu, logvar))


@pytest.mark.parametrize("reduction", LATENT_REDUCTIONS)
@pytest.mark.parametrize(("shape", "dim"), [((0, 4), 1), ((3, 0), 1), ((2, 4, 0), 1), ((2, 0, 4), -1)], ids=str)
def test_sample_kl_packed(shape, dim, reduction, backend):
    moments = leaf(shape, backend)
    half = moments.chunk(2, dim)[0].shape
    z, kl = sample_kl_packed(moments, dim, seed=0, reduction=reduction)
    assert z.shape == half
    check_loss(kl, half, reduction, torch.float32)
    check_grads((z, kl), (moments,))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reconstruction_loss(shape, likelihood, reduction, backend):
    for dtype in DTYPES:
        params = [leaf(shape, backend, dtype) for _ in range(LIKELIHOODS[likelihood])]
        output = params[0] if len(params) == 1 else tuple(params)
        loss = reconstruction_loss(output, params[0].detach(), likelihood, reduction=reduction)
        check_loss(loss, shape, reduction, dtype)
        check_grads([2 * loss], params)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reconstruction_loss_of_bytes_weighted_and_sampled(shape, reduction, backend):
    for options in ({"weight": torch.ones(shape[0], device=backend.device)}, {"seed": 0, "binarize": True}):
        logits = leaf(shape, backend)
        target = torch.zeros(shape, dtype=torch.uint8, device=backend.device)
        loss = reconstruction_loss(logits, target, reduction=reduction, **options)
        check_loss(loss, shape, reduction, torch.float32)
        check_grads([2 * loss], [logits])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reconstruction_loss_of_two_parameters_weighted(shape, backend):
    """Which have a constant for each element: it counts by the weights."""
    params = [leaf(shape, backend) for _ in range(2)]
    weight = torch.ones(shape[0], device=backend.device)
    for reduction in REDUCTIONS:
        target = torch.zeros(shape, device=backend.device)
        loss = reconstruction_loss(params, target, "gaussian", reduction=reduction, weight=weight)
        check_loss(loss, shape, reduction, torch.float32)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_elbo_loss(shape, likelihood, backend):
    params = [leaf(shape, backend) for _ in range(LIKELIHOODS[likelihood])]
    kl = torch.full(shape[:1], 5.0, device=backend.device).requires_grad_()
    output = params[0] if len(params) == 1 else tuple(params)
    losses = elbo_loss(output, params[0].detach(), kl, likelihood=likelihood, beta=3.0)
    assert all(loss.dtype == torch.float32 and loss.shape == () for loss in losses)
    if shape[0] == 0:
        assert all(loss.isnan() for loss in losses)
    else:
        assert [loss.item() for loss in losses] == [15.0, 0.0, 5.0]
    (2 * losses.total).backward()
    assert all(param.grad.shape == shape for param in params)
    assert torch.equal(kl.grad, torch.full_like(kl, 6 / max(shape[0], 1)))


def test_an_empty_batch_with_an_averaged_kl(backend):
    output, kl = leaf((0, 3), backend), leaf((), backend)
    losses = elbo_loss(output, output.detach(), kl)
    assert losses.total.isnan()
    assert losses.reconstruction.isnan()
    assert losses.kl == 0
