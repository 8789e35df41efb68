"""Targets of bytes, weights and samples: compiled, transformed, replayed, and without copies."""

import pytest
import torch
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

from tests.ops.cases import SEED, values
from tests.ops.test_ops_compile import counted
from tests.ops.test_ops_dispatch import Calls
from vae_fast import elbo_loss, reconstruction_loss


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


def numbers(*shape, backend, seed=0):
    return values(*shape, device=backend.device, dtype=torch.float32, seed=seed)


def as_bytes(target):
    return (target * 255).to(torch.uint8)


def test_the_bytes_and_the_weight_reach_the_op_without_a_copy(backend):
    logits, kl = numbers(4, 6, backend=backend).requires_grad_(), numbers(4, backend=backend)
    target = as_bytes(numbers(4, 6, backend=backend, seed=2))
    masks = [logits.detach() > 0.5, logits.detach()[:, :1] > 0.5]
    with Calls() as calls:
        for weight in (kl, kl[:, None], *masks):
            reconstruction_loss(logits, target, weight=weight).backward()
            elbo_loss(logits, target, kl, weight=weight, binarize=True, seed=SEED).total.backward()
    views = {f"aten.{name}.default" for name in ("detach", "alias", "view", "expand", "unsqueeze")}
    ours = {name for name in calls.counts if name.startswith("vae_fast")}
    made = {"aten.full.default", "aten.ones_like.default"}  # the seed, and backward's upstream gradient
    assert set(calls.counts) - views - ours <= {*made, "aten.add_.Tensor"}  # which adds up logits.grad


def test_weights_and_seeds_that_change_do_not_recompile(backend):
    def loss(logits, target, weight, seed):
        return reconstruction_loss(logits, target, weight=weight, binarize=True, seed=seed)

    compiled, counter = counted(loss)
    for i in range(3):
        logits = numbers(4, 6, backend=backend, seed=i).requires_grad_()
        tensors = (
            as_bytes(logits.detach()),
            numbers(4, backend=backend, seed=i),
            torch.full((1,), i).to(logits.device),
        )
        actual, wanted = compiled(logits, *tensors), loss(logits, *tensors)
        torch.testing.assert_close(actual, wanted)
        torch.testing.assert_close(torch.autograd.grad(actual, logits), torch.autograd.grad(wanted, logits))
    assert counter.frame_count == 1


def test_drawn_samples_compile_and_honour_manual_seed(backend):
    target = torch.full((16, 16), 0.5, device=backend.device)
    compiled, _ = counted(lambda a: reconstruction_loss(a, target, binarize=True, reduction="none"))
    logits = torch.ones(16, 16, device=backend.device, requires_grad=True)
    samples = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        samples.append(compiled(logits).detach())
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_samples_have_their_probability_whatever_the_default_dtype(dtype, backend):
    """Numbers of 8 bits are below 1/2000 far too often."""
    logits, grey = torch.ones(1, 200_000, device=backend.device), torch.full((1, 200_000), 5e-4, device=backend.device)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        nll = reconstruction_loss(logits, grey, binarize=True, reduction="none")
    finally:
        torch.set_default_dtype(before)
    ones = (nll < 1).sum().item()  # log(1 + exp(-1)) of 1, and 1 more of 0
    assert 50 <= ones <= 160  # 100 expected, with a standard deviation of 10


def test_vmap_over_weights_and_bytes(backend):
    logits, weight = numbers(3, 4, 6, backend=backend), numbers(3, 4, backend=backend, seed=3)
    target = as_bytes(numbers(3, 4, 6, backend=backend, seed=2))

    def gradient(a, x, w):
        return grad(lambda a: reconstruction_loss(a, x, weight=w))(a)

    wanted = torch.stack([gradient(*each) for each in zip(logits, target, weight)])
    torch.testing.assert_close(vmap(gradient)(logits, target, weight), wanted)
    wanted = torch.stack([gradient(logits[0], target[0], w) for w in weight])
    torch.testing.assert_close(vmap(gradient, in_dims=(None, None, 0))(logits[0], target[0], weight), wanted)


def test_vmap_over_seeds_is_a_sample_of_each_seed(backend):
    logits, target = numbers(4, 6, backend=backend), numbers(4, 6, backend=backend, seed=2)
    seeds = torch.tensor([[0], [7], [-1]], device=backend.device)

    def loss(seed):
        return reconstruction_loss(logits, target, binarize=True, seed=seed)

    torch.testing.assert_close(vmap(loss)(seeds), torch.stack([loss(int(seed)) for seed in seeds]))


@pytest.mark.parametrize("randomness", ["different", "same"])
def test_vmap_draws_samples_as_its_randomness_says(randomness, backend):
    logits, target = torch.ones(3, 2, 64, device=backend.device), torch.full((2, 64), 0.5, device=backend.device)

    def loss(a):
        return reconstruction_loss(a, target, binarize=True, reduction="none")

    losses = vmap(loss, randomness=randomness)(logits)
    assert torch.equal(losses[0], losses[1]) == (randomness == "same")


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("options", [{}, {"seed": 5}], ids=["drawn", "given"])
def test_checkpointing_replays_the_sample(options, use_reentrant, backend):
    logits = torch.zeros(4, 64, device=backend.device, requires_grad=True)
    target = torch.full_like(logits, 0.5)

    def loss(a):
        return reconstruction_loss(a, target, binarize=True, **options)

    torch.manual_seed(5)
    checkpoint(loss, logits, use_reentrant=use_reentrant).backward()
    torch.manual_seed(5)
    torch.testing.assert_close(logits.grad, torch.autograd.grad(loss(logits), logits)[0])


def test_an_addition_to_the_weight_in_place_is_noticed(backend):
    """As PyTorch notices it of any tensor that backward needs."""
    logits, weight = numbers(4, 6, backend=backend).requires_grad_(), numbers(4, backend=backend)
    loss = reconstruction_loss(logits, logits.detach(), reduction="sample", weight=weight)
    weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


def test_bytes_are_scaled_once_where_they_are_sampled(backend):
    image = torch.full((2, 3), 255, dtype=torch.uint8, device=backend.device)  # probability 1: the sample is certain
    logits = torch.full((2, 3), 20.0, device=backend.device)
    for options in ({"seed": 0}, {}):
        assert reconstruction_loss(logits, image, binarize=True, **options).item() < 1e-6
