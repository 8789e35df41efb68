"""A played launch hands a compiled kernel what Triton's own launch does, with addresses in place of tensors."""

import contextlib
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

import torch
import triton
from triton.runtime import driver

from tests.kernels.plays import CALLS, count_plays
from vae_fast.benchmarks.launches import TARGETS
from vae_fast.benchmarks.workloads import workloads
from vae_fast.kernels import launching, tiling

pytestmark = pytest.mark.compiled_only

STREAM = 7
# Besides the main ones, those whose sums of each latent are parts of one workspace. What is unaligned is never played.
PARTS = "latent, learned prior, std, monte_carlo"
WORKLOADS = [w for w in workloads() if w.main or (w.options.startswith(PARTS) and w.layout != "unaligned")]
ALLOCATORS = [(torch, name) for name in ("empty", "empty_like", "empty_strided", "full")]
ALLOCATORS += [(torch.Tensor, name) for name in ("new_empty", "new_zeros")]


class Kernel:
    """In place of a compiled one: it is run as Triton 3.6 and 3.7 run theirs, and notes the arguments."""

    def __init__(self, source, runs):
        self.names, self.runs = source.fn.arg_names, runs
        self.function, self.packed_metadata = object(), object()

    def launch_metadata(self, grid, stream, *arguments):
        return None

    def run(self, x, y, z, stream, function, packed_metadata, launch_metadata, enter_hook, exit_hook, *arguments):
        assert (stream, function, packed_metadata) == (STREAM, self.function, self.packed_metadata)
        assert len(arguments) == len(self.names)
        self.runs.append((function, (x, y, z), arguments))


@pytest.fixture
def runs(monkeypatch):
    """What kernels were run with, on a GPU that is played: they are not compiled, and tensors lie on the CPU."""
    made = []
    device = object()  # of its own, or Triton would take a kernel that it has compiled before
    played = SimpleNamespace(
        get_current_device=lambda: device,
        get_current_stream=lambda index: STREAM,
        get_current_target=lambda: TARGETS["sm_90"],
    )
    monkeypatch.setattr(driver, "_active", played)
    monkeypatch.setattr(triton.compiler, "compile", lambda source, **options: Kernel(source, made))
    monkeypatch.setattr(launching, "_can_be_written_down", lambda tensors: True)
    return made


@pytest.fixture
def kept(monkeypatch):
    """Every tensor that is allocated, so that no two have one address."""
    tensors = []

    def keeping(allocate):
        def call(*arguments, **options):
            tensors.append(allocate(*arguments, **options))
            return tensors[-1]

        return call

    for owner, name in ALLOCATORS:
        monkeypatch.setattr(owner, name, keeping(getattr(owner, name)))
    return tensors


def numbered(value, addresses):
    """With addresses, and the tensors that lie there, replaced by numbers in the order of their first appearance."""
    if isinstance(value, tuple):
        return tuple(numbered(item, addresses) for item in value)
    if isinstance(value, torch.Tensor):
        value = value.data_ptr()
    if isinstance(value, int) and value >= 2**32:  # no shape or stride of these calls
        return "address", addresses.setdefault(value, len(addresses))
    return value


@pytest.mark.no_poison("tensors that are never read")
@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_a_played_launch_has_the_arguments_of_a_planned_one(workload, runs, kept, monkeypatch):
    plays, calls = count_plays(monkeypatch), []
    for _ in range(CALLS):
        runs.clear()
        workload.run()
        calls.append(numbered(tuple(runs), {}))
    assert plays
    assert calls == [calls[0]] * CALLS


@pytest.mark.no_poison("tensors that are never read")
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.usefixtures("runs", "kept")
def test_of_several_gpus_the_launch_is_on_that_of_its_tensors(devices, monkeypatch):
    """A single one is the current one: there is nothing to ask."""
    asked = []
    monkeypatch.setattr(tiling, "on_device", lambda tensor: asked.append(tensor) or contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    plays = count_plays(monkeypatch)
    for _ in range(CALLS):
        asked.clear()
        WORKLOADS[0].run()
    assert plays
    assert bool(asked) == (devices > 1)
