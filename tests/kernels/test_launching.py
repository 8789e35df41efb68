"""Launches that are played give what their launcher gives, and what is of another kind is planned anew."""

import itertools
import threading
from enum import Enum

import numpy as np
import pytest
import torch
from torch.utils import _python_dispatch

from tests.kernels.plays import CALLS, draw
from vae_fast import Categorical, elbo_loss, gaussian_kl, reconstruction_loss, sample_kl, sample_kl_packed, use_backend
from vae_fast.app import doctor
from vae_fast.benchmarks import correctness
from vae_fast.kernels import categorical, elbo, gaussian, launching, reconstruction


def gradients(outputs, leaves):
    upstream = [torch.full_like(output, 0.5 + k) for k, output in enumerate(outputs)]
    return [*outputs, *torch.autograd.grad(outputs, leaves, upstream)]


def latents(seed, device):
    mu, logvar, a, b = (draw(4 * seed + k, 3, 10, device=device).requires_grad_() for k in range(4))
    drawn = torch.full((1,), seed, device=device)
    outputs = *sample_kl(mu, logvar, seed=drawn, prior=(a, b)), gaussian_kl(mu, logvar, reduction="latent")
    return gradients(outputs, (mu, logvar, a, b))


def several_samples(seed, device):
    mu, logvar = (draw(2 * seed + k, 3, 10, device=device).requires_grad_() for k in range(2))
    drawn = torch.full((1,), seed, device=device)
    outputs = sample_kl(mu, logvar, seed=drawn, kl="monte_carlo", num_samples=3, reduction="latent")
    return gradients(outputs, (mu, logvar))


def packed(seed, device):
    moments = draw(seed, 3, 32, device=device).requires_grad_()
    return gradients(sample_kl_packed(moments, seed=torch.full((1,), seed, device=device)), (moments,))


def shared_scale(seed, device):
    mean, x = draw(seed, 3, 8, device=device).requires_grad_(), draw(seed + 9, 3, 8, device=device)
    logvar = draw(seed, 1, device=device).requires_grad_()
    mask = draw(seed + 5, 3, 8, device=device) > 0.5
    loss = reconstruction_loss((mean, logvar.expand(3, 8)), x, "gaussian", reduction="sample", weight=mask)
    return gradients([loss], (mean, logvar))


def classes(seed, device):
    logits = draw(seed, 3, 20, device=device).requires_grad_()
    target = (19 * draw(seed + 7, 3, device=device)).long()
    return gradients([reconstruction_loss(logits, target, Categorical(ignore_index=2))], (logits,))


def whole_loss(seed, device, dtype=torch.float32):
    """beta is another in each call, and still played."""
    logits, kl = (draw(seed + k, 3, 8, device=device) for k in (0, 1))
    logits, kl = logits.to(dtype).requires_grad_(), kl.requires_grad_()
    losses = elbo_loss(logits, draw(seed + 2, 3, 8, device=device), kl.sum(1), beta=0.25 * seed)
    return gradients(losses, (logits, kl))


def recomputed_loss(seed, device):
    """In float16 backward makes the gradients."""
    return whole_loss(seed, device, torch.float16)


@pytest.mark.parametrize(
    ("call", "launchers"),
    [
        (latents, (gaussian.forward, gaussian.backward)),
        (several_samples, (gaussian.forward, gaussian.backward)),
        (packed, (gaussian.forward_packed, gaussian.backward_packed)),
        (shared_scale, (reconstruction.forward, reconstruction.backward)),
        (classes, (categorical.forward,)),
        (whole_loss, (elbo.forward, elbo.scale_)),
        (recomputed_loss, (elbo.forward, elbo.backward)),
    ],
)
@pytest.mark.parametrize(
    "poison", ["poison", pytest.param("none", marks=pytest.mark.no_poison("compiled kernels then allocate otherwise"))]
)
def test_what_is_played_has_the_bits_of_what_is_planned(call, launchers, poison, kernels_device, played):
    with launching.planning_anew():
        planned = [call(seed, kernels_device) for seed in range(CALLS)]
    assert not played
    for seed, expected in enumerate(planned):
        actual = call(seed, kernels_device)
        assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(actual, expected, strict=True))
    assert all(map(is_played, launchers))
    assert len(played) >= (CALLS - 2) * len(launchers)


def is_played(launcher):
    return bool(launcher.plans) and all(map(callable, launcher.plans.values()))


@pytest.mark.parametrize("call", [latents, packed, classes, whole_loss])
def test_what_the_gate_of_bench_checks_is_played(call, kernels_device, played):
    for seed in range(correctness.WARM_UP):
        call(seed, kernels_device)
    before = len(played)
    call(correctness.WARM_UP, kernels_device)
    assert len(played) >= before + 2  # each way


@pytest.mark.parametrize("op", ["sample_kl", "sample_kl_packed", "gaussian_kl", "elbo_loss bernoulli"])
def test_what_doctor_compares_is_played(op, kernels_device, played, monkeypatch):
    check, before = doctor._checks()[op], []

    def noted(*arguments):
        before.append(len(played))
        return check(*arguments)

    monkeypatch.setattr(doctor, "_checks", lambda: {op: noted})
    assert all(found.passed for found in doctor.run_checks(torch.device(kernels_device)))
    assert len(played) == before[-1] + 2  # each way


def losses(params, target, wanted=(True,)):
    return reconstruction.forward(params, target, "mse", "sum", list(wanted))[0].item()


def test_other_shapes_strides_dtypes_and_options_are_of_another_kind(kernels_device, played):
    def kinds():
        for shape, dtype in itertools.product([(2, 6), (6, 2), (3, 4)], (torch.float32, torch.bfloat16)):
            yield torch.ones(shape, dtype=dtype, device=kernels_device)
        yield torch.ones(6, 2, device=kernels_device).t()

    for _ in range(CALLS):
        assert [losses((a,), 0 * a) for a in kinds()] == [12.0] * 7
        assert (
            losses((torch.ones(2, 6, device=kernels_device),), torch.zeros(2, 6, device=kernels_device), [False]) == 12
        )
    assert len(played) == 8 * (CALLS - 2)


class Reduction(str, Enum):
    SUM = "sum"
    MEAN = "mean"


def test_names_may_be_of_an_enumeration(kernels_device, played):
    a = torch.full((2, 8), 2.0, device=kernels_device, requires_grad=True)
    with use_backend("triton"):
        for reduction in (Reduction.SUM, Reduction.MEAN, "sum", np.str_("sum"), np.str_("mean")) * CALLS:
            count = 16 if reduction == "mean" else 1
            assert gaussian_kl(a, torch.zeros_like(a), reduction=reduction).item() == 32 / count
            assert reconstruction_loss(a, torch.zeros_like(a), "mse", reduction=reduction).item() == 64 / count
    assert played


def test_what_is_written_down_in_another_thread_meanwhile_is_planned(kernels_device, played):
    """Two of PyTorch's dispatch modes that end in the order they began leave the flags of both behind."""

    inside, outside, results = threading.Event(), threading.Event(), []

    @launching.replayed
    def slow(values):
        if threading.current_thread() is other:
            inside.set()
            outside.wait(60)
        elif inside.is_set():  # the other began before, and ends before
            outside.set()
            other.join()
        return losses((values,), 0 * values)

    def call():
        results.append(slow(torch.ones(2, 8, device=kernels_device)))

    other = threading.Thread(target=call)
    call()
    other.start()
    assert inside.wait(60)
    call()
    call()
    assert results == [16] * 4
    assert not _python_dispatch.is_in_torch_dispatch_mode()


def test_an_unaligned_tensor_is_planned_anew(kernels_device, played):
    """Triton compiles another kernel for it."""
    memory = torch.arange(17.0, device=kernels_device)
    for _ in range(CALLS):
        aligned, other = memory[:16].view(2, 8), memory[1:].view(2, 8)
        assert losses((aligned,), torch.zeros_like(aligned)) == sum(k**2 for k in range(16))
        assert losses((other,), torch.zeros_like(other)) == sum(k**2 for k in range(1, 17))
    assert len(played) == CALLS - 2


def test_another_default_device_changes_nothing(kernels_device, played):
    a = torch.ones(2, 8, device=kernels_device)
    with torch.device("meta"):
        assert [losses((a,), 0 * a) for _ in range(CALLS)] == [16.0] * CALLS
    assert played


def test_a_tensor_in_two_places_says_nothing_of_two_tensors(kernels_device, played):
    same, other = (torch.full((2, 8), value, device=kernels_device) for value in (1.0, 3.0))
    for _ in range(CALLS):
        assert losses((same,), same) == 0
    assert not played
    assert [losses((same,), other) for _ in range(CALLS)] == [64.0] * CALLS
    assert losses((same,), same) == 0
    assert played


def test_a_launcher_inside_another_has_no_plans_of_its_own(kernels_device, played):
    """Or each step of an annealed beta would leave one, where the tensors are not aligned."""
    grads, one = (torch.ones(3, 8, device=kernels_device),), torch.ones((), device=kernels_device)
    kl = torch.ones(5, device=kernels_device)[1:4]
    for step in range(CALLS):
        assert elbo.scale_(grads, one, None, None, kl, None, 0.5 * step).item() == pytest.approx(0.5 * step / 3)
    assert not played
    assert not reconstruction.scale_.plans


def test_plans_are_forgotten_before_they_fill_the_memory(kernels_device, played, monkeypatch):
    monkeypatch.setattr(launching, "MOST_PLANS", 2)
    for size in (1, 2, 3, 4, 4, 4, 4):
        assert (
            losses((torch.ones(1, size, device=kernels_device),), torch.zeros(1, size, device=kernels_device)) == size
        )
    assert len(played) == 2


def test_nothing_of_a_known_kind_is_played_where_all_is_planned_anew(kernels_device, played):
    """Nor, so, where a hook of Triton's is to see it."""
    for seed in range(CALLS):
        whole_loss(seed, kernels_device)
    before = len(played)
    with launching.planning_anew():
        whole_loss(CALLS, kernels_device)
    assert len(played) == before > 0


@pytest.mark.parametrize("chained", [True, False], ids=["chained", "alone"])
@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_of_triton_see_every_launch(name, chained, kernels_device, played, monkeypatch):
    """A profiler's, for instance: Triton does not see what is played."""
    from triton import knobs

    seen, a = [], torch.ones(2, 8, device=kernels_device)
    assert [losses((a,), 0 * a) for _ in range(CALLS)] == [16.0] * CALLS
    assert len(played) == CALLS - 2
    chain = type(getattr(knobs.runtime, name))()
    chain.add(seen.append)
    monkeypatch.setattr(knobs.runtime, name, chain if chained else seen.append)
    assert losses((a,), 0 * a) == 16
    assert len(played) == CALLS - 2
    assert len(seen) == (0 if knobs.runtime.interpret else 2)  # the interpreter calls none


def test_tensors_of_another_device_are_of_another_kind():
    kinds = {launching._kind([torch.empty(2, 8, device=device)], []) for device in ("cpu", "meta")}
    assert len(kinds) == 2


def test_the_same_tensors_for_another_option_are_of_another_kind(kernels_device, played):
    mu, logvar, one = (torch.full(s, v, device=kernels_device) for s, v in (((2, 8), 1.0), ((2, 8), 0.0), ((), 1.0)))
    for _ in range(CALLS):
        pair = torch.full((2, 8), 3.0, device=kernels_device), torch.zeros(2, 8, device=kernels_device)
        assert gaussian.backward(None, one, mu, logvar, reduction="sum", prior=pair)[0].unique().item() == -2
        assert gaussian.backward(None, one, mu, logvar, reduction="sum", out=pair)[0].unique().item() == 1
    assert len(played) == 2 * (CALLS - 2)
