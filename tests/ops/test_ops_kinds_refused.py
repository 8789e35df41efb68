"""What is not plain, or not good, is not played, though its kind is known: it takes the long way, to its error."""

import math
import re

import pytest
import torch

from tests.ops.played import CALLS, generator, kinds_forgotten, likelihood, node, tensor
from vae_fast import (
    elbo_loss,
    gaussian_kl,
    reconstruction_loss,
    reparameterize,
    sample_kl,
    sample_kl_packed,
    use_backend,
)
from vae_fast.ops import kinds


class Wrapped(torch.Tensor):
    """A subclass, whose memory could hold anything."""


def left_behind(value):
    """What torch.func.grad leaves behind of an argument."""
    kept = []
    torch.func.grad(lambda t: (kept.append(t), t.sum())[1])(value)
    return kept[0]


ODD = {
    "negated": torch._neg_view,
    "a subclass": lambda t: t.as_subclass(Wrapped),
    "left behind": left_behind,
}


@pytest.mark.parametrize("odd", ODD)
def test_tensors_that_are_not_plain_take_the_long_way(odd, device):
    logits, target = likelihood(device, "bernoulli")
    kl = tensor(device, 5)
    make = ODD[odd]
    for made in (
        reconstruction_loss(make(logits), target),
        elbo_loss(logits, target, make(kl)).total,
        gaussian_kl(make(logits), logits),
        gaussian_kl(logits, make(logits)),
        sample_kl_packed(make(logits[:, :6]))[0],
        reconstruction_loss(make(logits), torch.arange(5, device=device), "categorical"),
    ):
        assert "Ordinary" in node(made), node(made)


@pytest.mark.parametrize("odd", ["negated", "a subclass"])  # what torch.func.grad leaves behind requires a gradient
def test_targets_that_are_not_plain_take_the_long_way(odd, device):
    logits, target = likelihood(device, "bernoulli")
    made = ODD[odd](target)
    loss = reconstruction_loss(logits, made)
    assert "Ordinary" in node(loss)
    assert torch.equal(loss, reconstruction_loss(logits, made.resolve_neg().as_subclass(torch.Tensor)))
    indices = torch.arange(5, device=device)
    made = ODD[odd](-indices if odd == "negated" else indices)
    loss = reconstruction_loss(logits, made, "categorical")
    assert "Ordinary" in node(loss)
    assert torch.equal(loss, reconstruction_loss(logits, indices, "categorical"))


@pytest.mark.parametrize("odd", ["negated", "a subclass"])
def test_seeds_that_are_not_plain_take_the_long_way(odd, device):
    logits, target = likelihood(device, "bernoulli")
    seed = torch.tensor([-3], device=device)
    made = ODD[odd](-seed if odd == "negated" else seed)
    for call in (
        lambda seed: reparameterize(logits, logits * 2, seed=seed),
        lambda seed: reconstruction_loss(logits, target, binarize=True, seed=seed),
    ):
        for _ in range(CALLS):
            wanted = call(seed)
        assert "_Played" in node(wanted)
        assert torch.equal(call(made), wanted)
        assert "Ordinary" in node(call(made))


def test_a_gradient_that_is_not_plain_is_not_played(device):
    """Each is an op of its own to what listens, whatever forward was."""
    logits, target = likelihood(device, "bernoulli")
    for call in (
        lambda: reconstruction_loss(logits, target),
        lambda: reconstruction_loss(logits, target, reduction="sample"),
        lambda: elbo_loss(logits, target, logits.sum(1)).total,
        lambda: sample_kl(logits, logits * 2, seed=1)[0],
    ):
        for _ in range(CALLS):
            output = call()
        upstream, negated = torch.full_like(output, 2.0), torch._neg_view(torch.full_like(output, -2.0))
        (wanted,) = torch.autograd.grad(output, logits, upstream)
        output, listened_to = call(), call()
        for retained in (True, False):  # scaled where forward has made it, and made again
            (made,) = torch.autograd.grad(output, logits, negated, retain_graph=retained)
            assert torch.equal(made, wanted)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
                torch.autograd.grad(listened_to, logits, upstream, retain_graph=retained)
            assert any("vae_fast::" in event.key for event in profiled.key_averages())


def test_who_asks_for_what_is_not_played(device):
    logits, target = likelihood(device, "bernoulli")
    shared = torch.zeros(7, device=device, requires_grad=True)
    calls = (
        lambda: gaussian_kl(logits, logits * 2),
        lambda: reconstruction_loss(logits, target, weight=torch.ones(5, device=device)),
        lambda: reconstruction_loss((logits, shared), target, "gaussian"),
    )
    for call in calls:
        for _ in range(CALLS):
            made = call()
        assert "_Played" in node(made)
        with use_backend("eager"):
            assert "_Played" not in node(call())
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(kinds.Replay, "play", lambda *_: pytest.fail("a gradient is made that nobody asks for"))
            assert not call().requires_grad
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
            call()
        assert any("_forward" in event.key for event in profiled.key_averages())
    assert "_Played" not in node(reconstruction_loss(logits, target, validate=True))


def test_an_empty_batch_is_never_played(device):
    empty = torch.zeros(0, 3, device=device, requires_grad=True)
    for _ in range(CALLS):
        made = (
            gaussian_kl(empty, empty, reduction="sum"),
            sample_kl_packed(torch.zeros(0, 4, device=device, requires_grad=True))[1].sum(),
            reconstruction_loss(empty, empty.detach(), reduction="sum"),
            reconstruction_loss(empty, torch.zeros(0, device=device).long(), "categorical", reduction="sum"),
            elbo_loss(empty, empty.detach(), empty.sum(1)).total.nan_to_num(),
        )
        assert not any(t.item() for t in made)


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b, target: gaussian_kl(a, b[:2]),
        lambda a, b, target: gaussian_kl(a, b.double()),
        lambda a, b, target: gaussian_kl(a, b, reduction="total"),
        lambda a, b, target: gaussian_kl(a, None),
        lambda a, b, target: sample_kl(a.to(torch.int64), b),
        lambda a, b, target: sample_kl_packed(a[:4], dim=0),  # an even number of samples
        lambda a, b, target: sample_kl_packed(a, dim=1),  # 7 columns
        lambda a, b, target: reconstruction_loss((a, b), target),
        lambda a, b, target: reconstruction_loss(a, target[:2]),
        lambda a, b, target: reconstruction_loss(a, b),  # a target that requires a gradient
        lambda a, b, target: reconstruction_loss(a, target, reduction=["sum"]),
        lambda a, b, target: reconstruction_loss(a, target, "categorical"),
        lambda a, b, target: elbo_loss(a, target, a),
        lambda a, b, target: elbo_loss(a, target, torch.zeros(4, device=a.device)),
        lambda a, b, target: elbo_loss(a, target, torch.zeros(5, dtype=torch.int64, device=a.device)),
        lambda a, b, target: elbo_loss(a, target, target[:, 0], beta=-1.0),
        lambda a, b, target: elbo_loss(a, target, 1.0),
        lambda a, b, target: elbo_loss(a, target, a.sum(1), beta="1"),
        lambda a, b, target: elbo_loss(a, target, a.sum(1), beta=math.nan),
        lambda a, b, target: elbo_loss(a, target, a.sum(1), beta=b[0, 0]),  # which requires a gradient
        lambda a, b, target: sample_kl(a, a, seed=2**64),
        lambda a, b, target: sample_kl(a, a, seed=1, eps=target),
        lambda a, b, target: sample_kl(a, a, seed=1, generator=generator(a)),
        lambda a, b, target: sample_kl(a, a, eps=b),
        lambda a, b, target: sample_kl(a, a, generator=3),
        lambda a, b, target: sample_kl(a, a, num_samples=True),
        lambda a, b, target: sample_kl(a, a, num_samples=1.0),
        lambda a, b, target: sample_kl(a, a, prior=target[:2]),  # of which each row could be one
        lambda a, b, target: sample_kl(a, a, prior=[target]),
        lambda a, b, target: sample_kl(a, a, logvar_clamp=[1, 0]),
        lambda a, b, target: sample_kl(a, a, logvar_clamp=(False, 1)),
        lambda a, b, target: sample_kl(a, a, scale=target),
        lambda a, b, target: sample_kl_packed(a[:4, :6], dim=None),
        lambda a, b, target: sample_kl_packed(a[:4, :6], dim=True),
        lambda a, b, target: sample_kl_packed(a[:4, :6], dim=1.0),
        lambda a, b, target: reconstruction_loss(a, target, target_scale=True),
        lambda a, b, target: reconstruction_loss(a, target, binarize=1, seed=1),
        lambda a, b, target: reconstruction_loss(a, target, seed=1),
        lambda a, b, target: reconstruction_loss(a, target, binarize=True, seed=1.5),
        lambda a, b, target: reconstruction_loss(a, target, binarize=True, seed=1, generator=torch.default_generator),
        lambda a, b, target: reconstruction_loss(a, target, weight=b),  # which requires a gradient
        lambda a, b, target: reconstruction_loss(a, target, weight=target[:2]),
        lambda a, b, target: reconstruction_loss(a, target, validate=1),
    ],
)
def test_bad_arguments_take_the_long_way_to_their_error(call, device):
    logits, target = likelihood(device, "bernoulli")
    given = logits, tensor(device, 5, 7, seed=4), target
    with kinds_forgotten(), pytest.raises((TypeError, ValueError)) as first:
        call(*given)
    for _ in range(CALLS):
        warm(logits, target)
        with pytest.raises(first.type, match=re.escape(str(first.value))):
            call(*given)


def warm(a, target):
    """Plain calls of every function, so that their kinds are known."""
    b = a * 2
    gaussian_kl(a, b)
    sample_kl(a, b)
    sample_kl(a, b, eps=target)
    sample_kl(a, b, seed=1)
    sample_kl(a, b, generator=generator(a))
    sample_kl(a, b, num_samples=1)
    sample_kl(a, b, logvar_clamp=(0, 1))
    sample_kl_packed(a[:4, :6], dim=1)
    reconstruction_loss(a, target)
    reconstruction_loss(a, target, target_scale=1)
    reconstruction_loss(a, target, binarize=True, seed=1)
    elbo_loss(a, target, a.sum(1))


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b, target: gaussian_kl(a, b.to("meta")),
        lambda a, b, target: sample_kl(a, b.to("meta")),
        lambda a, b, target: reconstruction_loss(a, target.to("meta")),
        lambda a, b, target: reconstruction_loss((a, b.to("meta")), target, "gaussian"),
        lambda a, b, target: reconstruction_loss(a, target[:, 0].long().to("meta"), "categorical"),
        lambda a, b, target: elbo_loss(a, target, target[:, 0].to("meta")),
    ],
)
def test_tensors_of_two_devices_take_the_long_way_to_their_error(call, device):
    logits, target = likelihood(device, "bernoulli")
    with pytest.raises(ValueError, match="they must be on one device"):
        call(logits, tensor(device, 5, 7, seed=4), target)


def test_a_second_derivative_raises(device):
    logits, target = likelihood(device, "bernoulli")
    for loss in (gaussian_kl(logits, logits * 2), reconstruction_loss(logits, target)):
        (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            gradient.sum().backward()


def test_batched_upstream_gradients(device):
    mu, logvar = (tensor(device, 4, 5, seed=seed) for seed in (1, 2))
    z, _ = sample_kl(mu, logvar)
    upstream = torch.stack([torch.ones_like(z), torch.full_like(z, 2.0)])
    (batched,) = torch.autograd.grad(z, logvar, upstream, is_grads_batched=True, retain_graph=True)
    for each, g in zip(batched, upstream, strict=True):
        assert torch.equal(each, torch.autograd.grad(z, logvar, g, retain_graph=True)[0])
