"""The CPU path takes large tensors a block of samples at a time: it gives what it gives in one block."""

import os

import pytest
import torch

from tests.kernels import domains
from tests.ops.cases import CASES, REDUCTIONS, case_id, scalar, tupled, values
from vae_fast import gaussian_kl, reconstruction_loss, reparameterize, sample_kl, use_backend
from vae_fast.benchmarks.memory import peak_memory
from vae_fast.eager import blocks
from vae_fast.likelihoods import LIKELIHOODS

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="no kernels take part")

HALVES = [case for case in CASES if not case.name.startswith("elbo")]  # a kl is never in 16 bits


def check(call, leaves, monkeypatch, sizes=(1,)):
    """Values, with and without gradients, and gradients. sizes: of blocks; of 1 element: one for each sample."""
    results = []
    for size in (blocks.BLOCK, *sizes):
        monkeypatch.setattr(blocks, "BLOCK", size)
        with use_backend("eager"):
            outputs = call(*leaves)
            with torch.no_grad():
                alone = call(*leaves)
        results.append((tupled(outputs), tupled(alone), torch.autograd.grad(scalar(outputs), leaves)))
    whole, *others = results
    for parts in others:
        torch.testing.assert_close(parts, whole)
        torch.testing.assert_close(*parts[:2])


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_blocks_give_what_one_block_gives(case, monkeypatch):
    check(case.call, case.leaves(), monkeypatch)


@pytest.mark.parametrize("case", HALVES, ids=case_id)
def test_blocks_in_16_bits(case, monkeypatch):
    check(case.call, case.leaves(dtype=torch.bfloat16), monkeypatch)


@pytest.mark.parametrize("layout", ["rows", "transposed"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("likelihood", [name for name, row in LIKELIHOODS.items() if row.domain != "classes"])
def test_blocks_of_each_likelihood(likelihood, reduction, layout, monkeypatch):
    params, target = domains.draw(likelihood, (5, 7), torch.float64)
    if layout == "transposed":
        *params, target = (t.t().contiguous().t() for t in (*params, target))

    def call(*output):
        return reconstruction_loss(output if len(output) > 1 else output[0], target, likelihood, reduction=reduction)

    sizes = (1, 14 // torch.get_num_threads())  # with the second, blocks of two samples, and of one that is left
    check(call, [p.requires_grad_() for p in params], monkeypatch, sizes)


@pytest.mark.parametrize("call", [gaussian_kl, sample_kl, reparameterize])
def test_a_forward_pass_alone_has_room_for_one_block_beside_what_it_returns(call, monkeypatch):
    """And for the noise, which is drawn at once."""
    monkeypatch.setattr(blocks, "BLOCK", 1024)
    mu, logvar = (values(256 * torch.get_num_threads(), 64, seed=i) for i in (1, 2))
    with use_backend("eager"), torch.no_grad():
        peak = peak_memory(lambda: call(mu, logvar), mu.device)
    returned = 0 if call is gaussian_kl else 2  # z, and the noise
    assert returned * mu.nbytes <= peak < (returned + 0.75) * mu.nbytes


def test_a_block_of_many_samples_has_the_room_of_one_of_a_single_one(monkeypatch):
    """Beside z and its noise, or beside the two gradients."""
    monkeypatch.setattr(blocks, "BLOCK", 1024)
    mu, logvar = (values(256 * torch.get_num_threads(), 64, seed=i).requires_grad_() for i in (1, 2))

    def call():
        return sample_kl(mu, logvar, kl="monte_carlo", num_samples=8)

    with use_backend("eager"):
        with torch.no_grad():
            forward = peak_memory(call, mu.device)
        made = call()
        upstream = [torch.ones_like(t) for t in made]
        backward = peak_memory(lambda: torch.autograd.grad(made, (mu, logvar), upstream, retain_graph=True), mu.device)
    assert 2 * 8 * mu.nbytes <= forward < (2 * 8 + 0.5) * mu.nbytes
    assert 2 * mu.nbytes <= backward < (2 + 0.5) * mu.nbytes
