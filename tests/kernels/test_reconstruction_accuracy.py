"""The reconstruction loss, value and gradient, against the reference: every likelihood, layout, dtype and reduction."""

import pytest
import torch

from tests.kernels.latents import DTYPES
from tests.kernels.outputs import LAYOUTS, LIKELIHOODS, REDUCTIONS, Case
from vae_fast import reconstruction_loss


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_reduction(layout, likelihood, backend):
    for reduction in REDUCTIONS:
        case = Case(layout, likelihood, backend)
        case.check(reconstruction_loss(case.output, case.target, likelihood, reduction=reduction), reduction)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("layout", ["MNIST", "chunks of images", "rows split over programs"])
def test_every_dtype(layout, likelihood, dtype, backend):
    for reduction in REDUCTIONS:
        case = Case(layout, likelihood, backend, dtype)
        case.check(reconstruction_loss(case.output, case.target, likelihood, reduction=reduction), reduction)


@pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_target_has_a_dtype_of_its_own(likelihood, dtype, target_dtype, backend):
    case = Case("MNIST", likelihood, backend, dtype, target_dtype)
    case.check(reconstruction_loss(case.output, case.target, likelihood), "batchmean")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_an_upstream_gradient_of_one_is_the_gradient_made_in_forward(likelihood, dtype, backend):
    for reduction in REDUCTIONS[2:]:
        case = Case("MNIST", likelihood, backend, dtype)
        reconstruction_loss(case.output, case.target, likelihood, reduction=reduction).backward()
        oracle = case.oracle()
        count = {"sum": 1, "mean": oracle.nll.size, "batchmean": len(oracle.nll)}[reduction]
        case.check_grads([p.grad for p in case.params], oracle, 1 / count, scaled=False)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("wanted", [0, 1])
def test_the_gradient_of_one_parameter_alone(wanted, reduction, backend):
    case, both = (Case("chunks of images", "gaussian", backend) for _ in range(2))
    case.params[1 - wanted].requires_grad_(False)
    for c in (case, both):
        loss = reconstruction_loss(c.output, c.target, "gaussian", reduction=reduction)
        (3 * loss).sum().backward()
    torch.testing.assert_close(case.params[wanted].grad, both.params[wanted].grad, rtol=2e-6, atol=1e-7)
    assert case.params[1 - wanted].grad is None


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_without_gradients_the_loss_is_the_same(likelihood, reduction, backend):
    case = Case("MNIST", likelihood, backend)
    loss = reconstruction_loss(case.output, case.target, likelihood, reduction=reduction)
    with torch.no_grad():
        silent = reconstruction_loss(case.output, case.target, likelihood, reduction=reduction)
    torch.testing.assert_close(loss.detach(), silent, rtol=2e-6, atol=1e-7)
    assert not silent.requires_grad


@pytest.mark.parametrize("layout", ["channels_last", "channels_last target", "chunks of images", "the batch innermost"])
def test_what_comes_back_lies_in_memory_as_the_output_does(layout, backend):
    case = Case(layout, "gaussian", backend)
    loss = reconstruction_loss(case.output, case.target, "gaussian", reduction="none")
    assert loss.stride() == torch.empty_like(case.params[0]).stride()
    for reduction in ("none", "sum"):
        loss = reconstruction_loss(case.output, case.target, "gaussian", reduction=reduction)
        for grad, param in zip(torch.autograd.grad(loss.sum(), case.params), case.params):
            assert grad.stride() == torch.empty_like(param).stride()
