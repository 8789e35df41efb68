"""Parameters with one number for many elements: one learned scale, one a feature, one a channel."""

import pytest
import torch

from tests.kernels.latents import DTYPES
from tests.kernels.outputs import REDUCTIONS
from tests.kernels.sharing import LAYOUTS, Case
from vae_fast import reconstruction_loss
from vae_fast.likelihoods import LIKELIHOODS

SEVERAL = [name for name, row in LIKELIHOODS.items() if len(row.parameters) > 1]
KINDS = ["one number", "features", "channels of 16 x 16", "channels of 7 x 7"]
WEIGHTS = {
    "per sample": lambda shape: torch.rand(shape[0], *(1 for _ in shape[1:])),
    "a mask": lambda shape: torch.rand(shape) > 0.4,
}


@pytest.mark.parametrize("reduction", ["batchmean", "sample"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout, reduction, backend):
    case = Case(layout, backend)
    case.check(case.loss(reduction), reduction)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("layout", KINDS)
def test_every_dtype_and_reduction(layout, reduction, dtype, backend):
    case = Case(layout, backend, dtype=dtype)
    case.check(case.loss(reduction), reduction)


@pytest.mark.parametrize("layout", ["one number", "features"])
@pytest.mark.parametrize("likelihood", SEVERAL)
def test_every_likelihood(likelihood, layout, backend):
    case = Case(layout, backend, likelihood)
    case.check(case.loss(), "batchmean")


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("reduction", ["mean", "sample"])
@pytest.mark.parametrize("layout", KINDS)
def test_weights(layout, reduction, weight, backend):
    case = Case(layout, backend, weight=WEIGHTS[weight])
    case.check(case.loss(reduction), reduction)


@pytest.mark.parametrize("upstream", [1.0, -2.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", KINDS)
def test_elbo_loss(layout, dtype, upstream, backend):
    case = Case(layout, backend, dtype=dtype)
    kl = torch.rand(len(case.target), device=backend.device, requires_grad=True)
    total = case.elbo(kl, 0.5).total
    *grads, kl_grad = torch.autograd.grad(total, [*case.params, kl], torch.full_like(total, upstream))
    case.check_grads(grads, upstream / len(case.target))
    torch.testing.assert_close(kl_grad, torch.full_like(kl, upstream * 0.5 / len(kl)))


def test_many_terms_lose_no_digits(backend):
    """A sum in float32 of a million numbers of one sign, added one by one, would be off by 1e-4 and more."""
    mean, x = torch.zeros(1000, 1000, device=backend.device), torch.full((1000, 1000), 0.1, device=backend.device)
    logvar = torch.zeros((), device=backend.device, requires_grad=True)
    loss = reconstruction_loss((mean, logvar), x, "gaussian", reduction="sum")
    (grad,) = torch.autograd.grad(loss, logvar)
    torch.testing.assert_close(grad.item(), 1e6 * (0.5 - 0.5 * x[0, 0].double().item() ** 2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bits_are_added_in_float32(dtype, backend):
    """8192 terms of 1/2: sums in 16 bits stop at 128 or 1024, where a term is less than half an ulp."""
    mean = torch.zeros(64, 128, dtype=dtype, device=backend.device)
    logvar = torch.zeros((), dtype=dtype, device=backend.device, requires_grad=True)
    loss = reconstruction_loss((mean, logvar), torch.zeros_like(mean), "gaussian", reduction="sum")
    assert torch.autograd.grad(loss, logvar)[0].item() == 4096


def test_a_parameter_without_a_gradient_beside_one_that_is_shared(backend):
    for kept in range(2):
        case = Case("features", backend)
        for k, param in enumerate(case.params):
            param.requires_grad_(k == kept)
        (grad,) = torch.autograd.grad(case.loss(), case.params[kept])
        whole = Case("features", backend)
        torch.testing.assert_close(grad, torch.autograd.grad(whole.loss(), whole.params)[kept])


@pytest.mark.parametrize("shape", [(0, 7), (3, 0)], ids=str)
@pytest.mark.parametrize("shared", [(), (1,), (-1,)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty(reduction, shared, shape, backend):
    shared = shape[-1:] if shared == (-1,) else shared
    mean, logvar = (torch.zeros(s, device=backend.device, requires_grad=True) for s in (shape, shared))
    loss = reconstruction_loss(
        (mean, logvar), torch.zeros(shape, device=backend.device), "gaussian", reduction=reduction
    )
    grads = torch.autograd.grad(loss.sum(), (mean, logvar))
    assert grads[0].shape == shape
    assert torch.equal(grads[1], torch.zeros_like(logvar))


def test_nan_reaches_the_numbers_that_are_shared_with_it_alone(backend):
    mean = torch.zeros(40, 5, device=backend.device)
    mean[33, 2] = float("nan")
    logvar = torch.zeros(5, device=backend.device, requires_grad=True)
    loss = reconstruction_loss((mean, logvar), torch.zeros_like(mean), "gaussian")
    (grad,) = torch.autograd.grad(loss, logvar)
    assert grad.isnan().tolist() == [False, False, True, False, False]


def test_a_gradient_before_a_larger_one(backend):
    """The launch that scales them reaches the end of each."""
    mean, pi = (torch.ones(67, 129, device=backend.device) for _ in range(2))
    theta = torch.ones(129, device=backend.device)
    leaves = theta.requires_grad_(), pi.requires_grad_()
    loss = reconstruction_loss((mean, *leaves), 0 * mean, "zero_inflated_negative_binomial")
    scaled = torch.autograd.grad(loss, leaves, torch.full_like(loss, 2), retain_graph=True)
    recomputed = torch.autograd.grad(loss, leaves)
    torch.testing.assert_close(scaled, tuple(2 * grad for grad in recomputed))
