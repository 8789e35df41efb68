"""Launches that are played give what their launcher gives, and what is of another kind is planned anew."""

import gc
import itertools
import subprocess
import sys
import threading
import weakref
from enum import Enum

import numpy as np
import pytest
import torch
from torch.utils import _python_dispatch

from tests.kernels.plays import count_plays
from vae_fast import Categorical, elbo_loss, gaussian_kl, reconstruction_loss, sample_kl, sample_kl_packed, use_backend
from vae_fast.benchmarks import correctness
from vae_fast.kernels import categorical, elbo, gaussian, launching, reconstruction, reductions

CALLS = 4  # the first is planned, the second written down, the others are played


@pytest.fixture
def played(monkeypatch):
    """How many calls have been played, of launchers that have no plans yet."""
    return count_plays(monkeypatch)


def draw(seed, *shape, device):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(device)


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
def test_what_is_played_has_the_bits_of_what_is_planned(call, launchers, kernels_device, played):
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


def test_a_launcher_that_computes_on_its_way_is_never_played(kernels_device, played):
    @launching.replayed
    def doubled_sum(values):
        out = values.new_empty(())
        reductions.sum_partials(reductions.Sum(values * 2, out, 1, values.numel(), (0, 1)))
        return out

    assert [doubled_sum(torch.full((8,), 1.0 + k, device=kernels_device)).item() for k in range(CALLS)] == [
        16.0, 32.0, 48.0, 64.0
    ]  # fmt: skip
    assert not played


def test_a_launcher_that_computes_after_its_launch_is_never_played(kernels_device, played):
    """In place: each tensor is one that the launcher was given, or has allocated."""

    @launching.replayed
    def doubled_sum(values):
        out = values.new_empty(())
        reductions.sum_partials(reductions.Sum(values, out, 1, values.numel(), (0, 1)))
        return out.mul_(2)

    assert [doubled_sum(torch.ones(8, device=kernels_device)).item() for _ in range(CALLS)] == [16.0] * CALLS
    assert not played


@pytest.mark.parametrize("others", [1, 0])
def test_a_part_of_an_input_is_played_unless_two_share_a_memory(others, kernels_device, played):
    """Where both are known by one memory, the part may be of either: they may lie elsewhere in the next call."""

    @launching.replayed
    def sum_of_rest(values, *others):
        out = values.new_empty(())
        rest = values[4:]
        reductions.sum_partials(reductions.Sum(rest, out, 1, rest.numel(), (0, 1)))
        return out

    memory = torch.arange(64.0, device=kernels_device)
    for start in range(16, 48, 8):
        values = memory[start : start + 8]
        assert sum_of_rest(values, *(memory[:8] for _ in range(others))).item() == memory[start + 4 : start + 8].sum()
    assert len(played) == (0 if others else CALLS - 2)


def test_a_part_of_an_input_is_not_taken_for_another_input(kernels_device, played):
    """The half of moments that begins where the prior does: the next prior lies elsewhere."""
    moments, seed = draw(1, 3, 16, device=kernels_device), torch.full((1,), 7, device=kernels_device)
    mean = torch.zeros(3, 8, device=kernels_device)
    elsewhere = torch.ones(3, 16, device=kernels_device)
    for memory in (moments, moments, moments, elsewhere, elsewhere, elsewhere):
        options = {"prior": (mean, memory[:, 8:]), "seed": seed, "reduction": "sample"}
        actual = gaussian.forward_packed(moments, 1, **options)
        with launching.planning_anew():
            expected = gaussian.forward_packed(moments, 1, **options)
        assert all(map(torch.equal, actual, expected))
    assert not played


def test_a_launcher_that_reads_a_value_is_never_played(kernels_device, played):
    @launching.replayed
    def read(values):
        return torch.empty_like(values), values[0].item()

    assert [read(torch.full((8,), 1.0 + k, device=kernels_device))[1] for k in range(CALLS)] == [1, 2, 3, 4]
    assert not played


def test_a_launcher_inside_another_has_no_plans_of_its_own(kernels_device, played):
    """Or each step of an annealed beta would leave one, where the tensors are not aligned."""
    grads, one = (torch.ones(3, 8, device=kernels_device),), torch.ones((), device=kernels_device)
    kl = torch.ones(5, device=kernels_device)[1:4]
    for step in range(CALLS):
        assert elbo.scale_(grads, one, None, None, kl, None, 0.5 * step).item() == pytest.approx(0.5 * step / 3)
    assert not played
    assert not reconstruction.scale_.plans


def test_a_call_that_is_written_down_keeps_no_tensor(kernels_device, played):
    def call():
        output = torch.ones(2, 8, device=kernels_device)
        loss, (gradient,) = reconstruction.forward((output,), 0 * output, "mse", "sum", [True])
        return [weakref.ref(t) for t in (output, loss, gradient)]

    gc.disable()
    try:
        assert not any(kept() is not None for _ in range(CALLS) for kept in call())
    finally:
        gc.enable()
    assert played


def test_what_is_written_down_does_not_import_the_compiler(kernels_device):
    """It would in the second call of a loss, for seconds."""
    code = (
        "import sys, torch, vae_fast.kernels.reconstruction as room\n"
        f"a = torch.ones(2, 8, device={str(kernels_device)!r})\n"
        "for _ in range(3): room.forward((a,), 0 * a, 'mse', 'sum', [False])\n"
        "print(*map(callable, room.forward.plans.values()), 'torch._dynamo' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "True False\n", result.stderr


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
