"""Gradients against finite differences, in float64."""

import pytest
import torch

from tests.ops.cases import CASES, MAIN, case_id, scalar
from vae_fast import sample_kl


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_gradients_are_those_of_finite_differences(case, backend):
    torch.autograd.gradcheck(case.call, case.leaves(backend.device), fast_mode=backend.name == "triton")


@pytest.mark.parametrize("case", MAIN, ids=case_id)
def test_batched_backward_raises_or_is_right(case, backend):
    """`is_grads_batched` uses PyTorch's old vmap, which our rules are not for; torch.func.vmap is tested elsewhere."""
    leaves = case.leaves(backend.device)
    loss = scalar(case.call(*leaves))
    wanted = torch.autograd.grad(loss, leaves, retain_graph=True)
    upstream = torch.tensor([1.0, -3.0], dtype=loss.dtype, device=loss.device)
    try:
        actual = torch.autograd.grad(loss, leaves, upstream, is_grads_batched=True)
    except RuntimeError as error:
        assert "Batching rule not implemented" in str(error)  # noqa: PT017 (either is right)
    else:
        torch.testing.assert_close(actual, tuple(torch.stack([g, -3 * g]) for g in wanted))


@pytest.mark.parametrize("case", MAIN, ids=case_id)
def test_an_input_that_needs_no_gradient_gets_none(case, backend):
    leaves = case.leaves(backend.device)
    wanted = torch.autograd.grad(scalar(case.call(*leaves)), leaves)
    for kept in range(len(leaves)):
        leaves = [leaf.detach().requires_grad_(i == kept) for i, leaf in enumerate(leaves)]
        scalar(case.call(*leaves)).backward()
        assert [leaf.grad is not None for leaf in leaves] == [i == kept for i in range(len(leaves))]
        torch.testing.assert_close(leaves[kept].grad, wanted[kept])


@pytest.mark.parametrize("at", [-0.5, 0.5])
def test_the_clamp_passes_the_gradient_at_its_bounds(at, backend):
    mu = torch.zeros(1, 4, device=backend.device)
    logvar = torch.full_like(mu, at).requires_grad_()
    _, kl = sample_kl(mu, logvar, seed=0, logvar_clamp=(-0.5, 0.5))
    kl.sum().backward()
    torch.testing.assert_close(logvar.grad, torch.expm1(logvar.detach()) / 2)
    outside = (logvar.detach() * 1.01).requires_grad_()
    z, kl = sample_kl(mu, outside, seed=0, logvar_clamp=(-0.5, 0.5))
    (z.sum() + kl.sum()).backward()
    assert (outside.grad == 0).all()
