"""The negative ELBO, values and gradients, against the reference."""

import numpy as np
import pytest
import torch

from tests.kernels.latents import DTYPES, drawer
from tests.kernels.outputs import LAYOUTS, LIKELIHOODS, Case
from tests.support.environment import INTERPRETED
from tests.support.tolerance import assert_close, assert_loss_close
from tests.support.ulp import to_numpy
from vae_fast import elbo_loss
from vae_fast.reference import likelihoods, reconstruction

WEIGHTS = {  # upstream gradients of (total, reconstruction, kl)
    "total": (1.0, None, None),
    "twice the total": (2.0, None, None),
    "reconstruction": (None, -1.5, None),
    "kl": (None, None, 0.75),
    "all": (0.5, 0.25, 3.0),
    "reconstruction and kl": (None, 1.0, 1.0),
}


def make_kl(case, kind, dtype=torch.float32):
    batch = len(case.target)
    draw = drawer(case.target.device, dtype, seed=5)
    kl = {
        "a vector": lambda: draw(batch),
        "a mean": lambda: draw(),
        "every other": lambda: draw(2 * batch)[::2],
        "one for all": lambda: draw(1).expand(batch),
    }[kind]()
    return kl.abs().detach().requires_grad_() if kind != "one for all" else kl.detach().requires_grad_()


def check(case, kl, beta, losses, weights=WEIGHTS["all"]):
    values = [to_numpy(p) for p in case.params]
    double = case.params[0].dtype == torch.float64
    target = to_numpy(case.target.to(torch.float64 if double else torch.float32))
    function = getattr(likelihoods, case.likelihood)
    expected = reconstruction.elbo_forward(values, target, to_numpy(kl), beta, function)
    oracle = case.oracle()
    nll_terms, kl_terms = oracle.terms.sum() / len(oracle.terms), np.abs(to_numpy(kl)).mean()
    for loss, value, terms in zip(losses, expected, (nll_terms + beta * kl_terms, nll_terms, kl_terms)):
        assert loss.dtype == (torch.float64 if double else torch.float32)
        assert loss.shape == ()
        assert_loss_close(loss, value, terms)
    used = [(loss, weight) for loss, weight in zip(losses, weights) if weight is not None]
    objective = sum(loss if weight == 1 else weight * loss for loss, weight in used)
    *grads, kl_grad = torch.autograd.grad(objective, [*case.params, kl], allow_unused=True)
    total, nll, divergence = (weight or 0.0 for weight in weights)
    _, expected_kl = reconstruction.elbo_backward(total, nll, divergence, values, target, to_numpy(kl), beta, function)
    if weights[0] is None and weights[1] is None:
        assert all(grad is None for grad in grads)
    else:
        case.check_grads(grads, oracle, (total + nll) / len(target), scaled=total + nll != 1)
    if kl_grad is None:
        assert not expected_kl.any()
        return
    assert kl_grad.dtype == kl.dtype
    # the gradient is a float32 product wherever the losses are float32
    scale = (abs(total * beta) + abs(divergence)) / max(kl.numel(), 1)
    assert_close(kl_grad, expected_kl, terms=scale, atol=0 if double else 2e-7 * scale)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout, likelihood, backend):
    case = Case(layout, likelihood, backend)
    kl = make_kl(case, "a vector")
    check(case, kl, 1.0, elbo_loss(case.output, case.target, kl, likelihood=likelihood), WEIGHTS["total"])


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_each_loss_may_be_used(likelihood, dtype, weights, backend):
    case = Case("chunks of images", likelihood, backend, dtype)
    kl = make_kl(case, "a vector", torch.float64 if dtype == torch.float64 else torch.float32)
    losses = elbo_loss(case.output, case.target, kl, likelihood=likelihood, beta=0.3125)
    check(case, kl, 0.3125, losses, WEIGHTS[weights])


@pytest.mark.parametrize("kind", ["a vector", "a mean", "every other", "one for all"])
@pytest.mark.parametrize(
    ("dtype", "kl_dtype"),
    [*((dtype, torch.float32) for dtype in DTYPES[:3]), *((dtype, torch.float64) for dtype in DTYPES)],
    ids=str,
)
def test_kl_per_sample_or_averaged(dtype, kl_dtype, kind, backend):
    case = Case("MNIST", "bernoulli", backend, dtype)
    kl = make_kl(case, kind, kl_dtype)
    check(case, kl, 4.0, elbo_loss(case.output, case.target, kl, beta=4.0))


@pytest.mark.parametrize("beta_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("beta", [0.0, 1.0, 0.375])
def test_beta_may_be_a_tensor(beta, weights, beta_dtype, backend):
    case = Case("MNIST", "bernoulli", backend)
    kl = make_kl(case, "a vector")
    tensor = torch.tensor(beta, dtype=beta_dtype, device=backend.device)
    check(case, kl, beta, elbo_loss(case.output, case.target, kl, beta=tensor), WEIGHTS[weights])


@pytest.mark.parametrize("beta", [0, 0.1, 1e-3, 7])
def test_beta_is_exact_in_float64(beta, backend):
    if INTERPRETED and backend.name == "triton" and beta not in (0, 7):
        pytest.skip("the interpreter makes every float argument of a kernel float32")
    case = Case("MNIST", "mse", backend, torch.float64)
    kl = make_kl(case, "a vector", torch.float64)
    check(case, kl, beta, elbo_loss(case.output, case.target, kl, likelihood="mse", beta=beta))


@pytest.mark.parametrize("wanted", ["output", "kl", "nothing"])
def test_without_some_gradients_the_losses_are_the_same(wanted, backend):
    everything, case = (Case("MNIST", "gaussian", backend) for _ in range(2))
    kl, same_kl = make_kl(case, "a vector"), make_kl(case, "a vector")
    for param in case.params:
        param.requires_grad_(wanted == "output")
    kl.requires_grad_(wanted == "kl")
    losses = elbo_loss(case.output, case.target, kl, likelihood="gaussian")
    same = elbo_loss(everything.output, everything.target, same_kl, likelihood="gaussian")
    torch.testing.assert_close(tuple(losses), tuple(same), rtol=2e-6, atol=1e-7)
    assert losses.total.requires_grad == (wanted != "nothing")
    if wanted == "nothing":
        return
    (2 * losses.total).backward()
    (2 * same.total).backward()
    for input, other in zip([*case.params, kl], [*everything.params, same_kl]):
        assert (input.grad is None) == (not input.requires_grad)
        if input.requires_grad:
            torch.testing.assert_close(input.grad, other.grad, rtol=2e-6, atol=1e-7)
