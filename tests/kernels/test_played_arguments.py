"""A played launch hands a compiled kernel what Triton's own launch does, with addresses in place of tensors."""

import contextlib
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

import torch
import triton
from torch._C._dynamo.guards import _empty_strided_cpu
from triton.backends.amd.driver import HIPLauncher
from triton.backends.nvidia.driver import CudaLauncher
from triton.runtime import _allocation, driver

from tests.kernels.plays import CALLS, count_plays
from vae_fast.benchmarks.launches import TARGETS
from vae_fast.benchmarks.workloads import workloads
from vae_fast.kernels import launching, plans, tiling

pytestmark = pytest.mark.compiled_only

STREAM = 7
HEAP = 2**20  # no tensor lies below it, even where Python is loaded at a fixed address; no size of these calls is above
# Besides the main ones, those whose sums of each latent are parts of one workspace. What is unaligned is never played.
PARTS = "latent, learned prior, std, monte_carlo"
WORKLOADS = [w for w in workloads() if w.main or (w.options.startswith(PARTS) and w.layout != "unaligned")]
ALLOCATORS = [(torch, name) for name in ("empty", "empty_like", "empty_strided", "full")]
ALLOCATORS += [(torch.Tensor, name) for name in ("new_empty", "new_zeros")]
ALLOCATORS += [(plans, "_empty_strided_cuda")]


class Kernel:
    """In place of a compiled one: Triton's own launcher runs it, and what that hands on to the driver is noted."""

    def __init__(self, source, launcher, runs):
        self.function, self.packed_metadata = object(), object()
        self.run = object.__new__(launcher)  # its __init__ wants a driver
        vars(self.run).update(
            launch=lambda *given: runs.append(given), num_ctas=1, warp_size=64,
            global_scratch_size=0, global_scratch_align=1, profile_scratch_size=0, profile_scratch_align=1,
            launch_cooperative_grid=False, launch_pdl=False, arg_annotations=[], kernel_signature=source.fn.arg_names,
            gsan_enabled=False,
        )  # fmt: skip

    def launch_metadata(self, grid, stream, *arguments):
        return None


@pytest.fixture
def runs(monkeypatch, request):
    """What kernels were launched with, on a GPU that is played: they are not compiled, and tensors lie on the CPU."""
    made, launcher = [], getattr(request, "param", CudaLauncher)
    device = object()  # of its own, or Triton would take a kernel that it has compiled before
    played = SimpleNamespace(
        get_current_device=lambda: device,
        get_current_stream=lambda index: STREAM,
        get_current_target=lambda: TARGETS["sm_90"],
    )
    monkeypatch.setattr(driver, "_active", played)
    monkeypatch.setattr(triton.compiler, "compile", lambda source, **options: Kernel(source, launcher, made))
    monkeypatch.setattr(launching, "_can_be_written_down", lambda tensors: True)
    monkeypatch.setattr(plans, "_empty_strided_cuda", _empty_strided_cpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
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
    """With addresses, and the tensors that lie there, replaced by numbers in the order of their first appearance.

    And hooks that do nothing by None, which a played launch hands on.
    """
    if value is triton.knobs.runtime.launch_enter_hook or value is triton.knobs.runtime.launch_exit_hook:
        return None
    if isinstance(value, tuple):
        return tuple(numbered(item, addresses) for item in value)
    if isinstance(value, torch.Tensor):
        value = value.data_ptr()
    if isinstance(value, int) and value >= HEAP:
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
    assert all(STREAM in given for given in runs)


@pytest.mark.no_poison("tensors that are never read")
@pytest.mark.parametrize("runs", [HIPLauncher], indirect=True)
def test_each_vendors_launcher_hands_on_its_own(runs, kept, monkeypatch):
    test_a_played_launch_has_the_arguments_of_a_planned_one(WORKLOADS[0], runs, kept, monkeypatch)


@pytest.mark.no_poison("tensors that are never read")
@pytest.mark.usefixtures("kept")
def test_a_launcher_that_allocates_in_each_call_is_not_played(runs, monkeypatch):
    plays, compile = count_plays(monkeypatch), triton.compiler.compile

    def compiled(source, **options):
        kernel = compile(source, **options)
        kernel.run.profile_scratch_size = 8
        return kernel

    monkeypatch.setattr(triton.compiler, "compile", compiled)
    monkeypatch.setattr(_allocation, "_profile_allocator", SimpleNamespace(get=lambda: lambda *asked: object()))
    for _ in range(CALLS):
        WORKLOADS[0].run()
    assert runs
    assert not plays


@pytest.mark.parametrize("name", plans.IN_EACH_CALL)
def test_a_launcher_that_does_more_in_each_call_is_not_written_down(name):
    launcher = SimpleNamespace(launch=None, **{name: 1})
    with pytest.raises(LookupError, match="does more in each call"):
        plans._handed_on(SimpleNamespace(run=launcher), 1, [])


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
