"""What a launcher does is written down as a function of its tensors, where that is all that it does."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch

from tests.kernels.plays import CALLS, draw
from tests.support.environment import INTERPRETED, PLUGINS
from vae_fast.kernels import gaussian, launching, reconstruction, reductions


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


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
def test_a_plan_keeps_what_it_launches(kernels_device, monkeypatch):
    """From triton 3.8 on a kernel that is dropped is unloaded, as one of two is that two threads compile."""
    launches, launch = [], launching.Launch

    def noting(kernel, compiled, *rest):
        launches.append((kernel, weakref.ref(compiled)))
        return launch(kernel, compiled, *rest)

    @launching.replayed
    def total(values):
        out = values.new_empty(())
        reductions.sum_partials(reductions.Sum(values, out, 1, values.numel(), (0, 1)))
        return out

    monkeypatch.setattr(launching, "Launch", noting)
    for _ in range(CALLS):
        assert total(torch.full((8,), 1.0, device=kernels_device)).item() == 8
        for kernel, _ in launches:
            kernel.device_caches.clear()
        gc.collect()
    assert len(launches) == 1
    assert launches[0][1]() is not None


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
        f"{''.join(f'import {plugin}; ' for plugin in PLUGINS)}import sys, torch\n"
        "import vae_fast.kernels.reconstruction as room\n"
        f"a = torch.ones(2, 8, device={str(kernels_device)!r})\n"
        "for _ in range(3): room.forward((a,), 0 * a, 'mse', 'sum', [False])\n"
        "print(*map(callable, room.forward.plans.values()), 'torch._dynamo' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "True False\n", result.stderr
