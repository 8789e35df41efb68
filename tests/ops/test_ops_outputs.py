"""What the functions return is a tensor as any other: it may be written to, and what follows may be of a subclass."""

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

from tests.ops.cases import values
from vae_fast import (
    elbo_loss,
    gaussian_kl,
    reconstruction_loss,
    reparameterize,
    sample_kl,
    sample_kl_packed,
    use_backend,
)
from vae_fast.eager import general

CALLS = 3  # planned, recorded and played
CLASSES = 5
TWO = ("gaussian", "laplace")  # which have two parameters


def posterior(shape, device):
    return tuple(values(*shape, device=device, seed=k).requires_grad_() for k in (1, 2))


def kl(reduction, **options):
    return lambda shape, device: sample_kl(*posterior(shape, device), seed=1, reduction=reduction, **options)


def kl_alone(reduction):
    return lambda shape, device: gaussian_kl(*posterior(shape, device), reduction=reduction)


def packed(shape, device):
    moments = values(shape[0], 2, *shape[1:], device=device, seed=1).requires_grad_()
    return sample_kl_packed(moments, dim=1, seed=1, num_samples=2, kl="monte_carlo")


def nll(likelihood, reduction):
    def call(shape, device):
        output, target = posterior(shape, device), values(*shape, device=device, seed=3)
        return reconstruction_loss(
            output if likelihood == "gaussian" else output[0], target, likelihood, reduction=reduction
        )

    return call


def classes(reduction):
    def call(shape, device):
        logits = values(*shape, CLASSES, device=device).requires_grad_()
        target = torch.zeros(shape, dtype=torch.int64, device=device)
        return reconstruction_loss(logits, target, "categorical", reduction=reduction)

    return call


def whole(shape, device):
    mu, logvar = posterior(shape, device)
    return tuple(elbo_loss(mu, values(*shape, device=device, seed=3), gaussian_kl(mu, logvar)))


REDUCTIONS = ("none", "sample", "sum")
FUNCTIONS = {
    "whole loss": whole,
    "packed, Monte Carlo": packed,
    "reparameterize": lambda shape, device: reparameterize(*posterior(shape, device), seed=1),
    **{f"kl, {r}": kl_alone(r) for r in (*REDUCTIONS, "latent")},
    **{f"sample and kl, {r}": kl(r) for r in REDUCTIONS},
    **{f"sample and Monte Carlo kl, {r}": kl(r, kl="monte_carlo", num_samples=2) for r in (*REDUCTIONS, "latent")},
    **{f"{name}, {r}": nll(name, r) for name in ("bernoulli", "gaussian") for r in REDUCTIONS},
    **{f"categorical, {r}": classes(r) for r in REDUCTIONS},
}


@pytest.mark.parametrize("shape", [(4, 3), (4, 1), (4,)], ids=str)  # of one element a sample nothing is summed
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_an_output_may_be_written_to_in_place(function, shape, backend):
    for _ in range(CALLS):
        made = function(shape, backend.device)
        for output in made if isinstance(made, tuple) else (made,):
            before = output.detach().clone()
            output *= 2
            torch.testing.assert_close(output, 2 * before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "laplace", "categorical"])
def test_an_upstream_gradient_that_runs_each_op_twice(likelihood, dtype, backend):
    """The gradient that forward made must not be scaled in place by it."""
    factor, count = torch.tensor(1.5, dtype=dtype, device=backend.device), 2 if likelihood in TWO else 1
    leaves = tuple(values(4, 3, device=backend.device, dtype=dtype, seed=k).requires_grad_() for k in range(count))
    target, kls = (values(*s, device=backend.device, dtype=dtype, seed=7) for s in ((4, 3), (4,)))
    target = kls.long() if likelihood == "categorical" else target
    output = leaves if count > 1 else leaves[0]
    for call in (
        lambda: reconstruction_loss(output, target, likelihood),
        lambda: elbo_loss(output, target, kls, likelihood=likelihood).total,
    ):
        expected = torch.autograd.grad(call() * factor, leaves)
        made = torch.autograd.grad(call() * TwoTensor(factor, factor.clone()), leaves)
        for each, wanted in zip(made, expected, strict=True):
            torch.testing.assert_close(each.a if isinstance(each, TwoTensor) else each, wanted)


def test_clamps_that_vary_leave_no_trace():
    """One bound or more a step, where they are annealed."""
    mu, logvar = posterior((2, 2), "cpu")
    with use_backend("eager"):
        for step in range(300):
            gaussian_kl(mu, logvar, logvar_clamp=(-20.0 + step / 300, 10.0), reduction="sum").backward()
    info = general._next_below.cache_info()
    assert info.currsize <= info.maxsize <= 300
