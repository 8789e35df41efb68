"""Upstream gradients of any layout: stride 0 (after sum and expand), transposed, sliced. gradcheck sees none of it."""

import pytest
import torch

from tests.kernels.latents import drawer, posterior
from tests.kernels.outputs import Case
from vae_fast import gaussian_kl, reconstruction_loss, reparameterize, sample_kl, sample_kl_packed


def number_for_all(draw, shape):
    return draw(*(1 for _ in shape)).expand(shape)


def number_a_sample(draw, shape):
    return draw(*shape[:1], *(1 for _ in shape[1:])).expand(shape)


def number_a_column(draw, shape):
    return draw(*shape[-1:]).expand(shape)


def reversed_dimensions(draw, shape):
    return draw(*reversed(shape)).permute(tuple(reversed(range(len(shape)))))


def every_other(draw, shape):
    return draw(*shape, 2)[..., 1]


LAYOUTS = [number_for_all, number_a_sample, number_a_column, reversed_dimensions, every_other]


def check(outputs, inputs, layout, device):
    """The gradients for strided upstream gradients are those for contiguous ones."""
    draw = drawer(device, torch.float32, seed=3)
    strided = [layout(draw, output.shape) for output in outputs]
    grads = torch.autograd.grad(outputs, inputs, strided, retain_graph=True)
    same = torch.autograd.grad(outputs, inputs, [grad.contiguous() for grad in strided])
    torch.testing.assert_close(grads, same, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", ["none", "sample", "latent", "sum"])
@pytest.mark.parametrize("view", ["odd", "the batch innermost", "chunk(2, 1) of channels_last images"])
def test_sample_kl(view, reduction, layout, backend):
    p = posterior(view, backend)
    outputs = sample_kl(p.mu, p.logvar, seed=0, reduction=reduction)
    check(outputs, p.inputs, layout, backend.device)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", ["none", "sample", "latent"])
def test_gaussian_kl_with_a_prior(reduction, layout, backend):
    p = posterior("odd", backend, prior=(3, 7))
    check([gaussian_kl(p.mu, p.logvar, prior=p.prior, reduction=reduction)], p.inputs, layout, backend.device)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reparameterize_and_packed(layout, backend):
    p = posterior("odd", backend)
    check([reparameterize(p.mu, p.logvar, seed=0)], p.inputs, layout, backend.device)
    moments = drawer(backend.device, torch.float32)(4, 6, 5).requires_grad_()
    check(sample_kl_packed(moments, seed=0), [moments], layout, backend.device)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", ["none", "sample", "sum", "mean", "batchmean"])
@pytest.mark.parametrize("view", ["chunks of images", "channels_last output", "the batch innermost"])
def test_reconstruction_loss(view, reduction, layout, backend):
    case = Case(view, "gaussian", backend)
    loss = reconstruction_loss(case.output, case.target, "gaussian", reduction=reduction)
    check(
        [loss], case.params, layout, backend.device
    )  # of a scalar: scaled in the first backward, recomputed in the second


def test_a_mean_loss_inside_a_larger_graph(backend):
    """A loss that is stacked with others gets a slice of their gradient: 0-d, at an offset."""
    case = Case("MNIST", "bernoulli", backend)
    loss = reconstruction_loss(case.output, case.target)
    stacked = torch.stack([loss.detach(), loss, loss.detach()])
    (grad,) = torch.autograd.grad(stacked, case.params, torch.tensor([7.0, 2.0, 9.0], device=backend.device))
    case.check_grads([grad], case.oracle(), 2 / len(case.target))


def test_an_upstream_op_that_saved_its_output_keeps_its_gradient(backend):
    x = drawer(backend.device, torch.float32)(4, 9).requires_grad_()
    target = torch.full((4, 9), 0.25, device=backend.device)
    probability = torch.sigmoid(x)
    reconstruction_loss(probability, target, "mse", reduction="sum").backward()
    p = torch.sigmoid(x.detach().double())
    torch.testing.assert_close(x.grad.double(), 2 * (p - 0.25) * p * (1 - p), atol=1e-6, rtol=1e-6)
