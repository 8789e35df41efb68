"""What is timed of a contender: inputs that rotate, and calls that are warm where their launches are counted."""

import os
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from vae_fast.benchmarks import cases, counting, entrants, memory, timing
from vae_fast.benchmarks.contenders import CONTENDERS, Contender

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="speed is that of compiled code")

CPU = torch.device("cpu")
CASE = cases.CASES["mse/1x32/float32"]
TWO = {name: CONTENDERS[name] for name in ("eager", "vae_fast")}


def test_sets_of_inputs_rotate(monkeypatch):
    monkeypatch.setattr(entrants, "_count_of_sets", lambda size, device: 3)
    (entrant,) = entrants.enter(CASE, [CONTENDERS["eager"]], CPU)
    first, second, third, fourth = (entrant.works["forward"].prepare(number).leaves[0] for number in range(4))
    assert entrant.sets == 3
    assert fourth is first
    assert not any(map(torch.equal, (first, second, third), (second, third, first)))


@pytest.mark.parametrize(("size", "count"), [(1, entrants.MOST_SETS), (2**20, 150), (2**40, 1)])
def test_no_set_of_inputs_is_found_in_the_cache(size, count, monkeypatch):
    monkeypatch.setattr(memory, "cache_bytes", lambda device: 50 * 2**20)
    assert entrants._count_of_sets(size, torch.device("cuda")) == count
    assert entrants._count_of_sets(size, CPU) == 1


def test_a_call_whose_launches_are_counted_was_made_before(monkeypatch):
    made = []

    class Counted(Contender):
        def function(self, op):
            usual = super().function(op)
            return lambda *given: made.append(op) or usual(*given)

    monkeypatch.setattr(counting, "count_launches", lambda call: len(made))
    count, status = entrants.count_launches_here(CASE, Counted("eager"), CPU)
    assert (status, count > timing.WARM_UP) == ("ok", True)


@pytest.mark.parametrize("op", ["mse", "step_mlp"])
@pytest.mark.parametrize("name", TWO)
def test_launches_are_counted_of_a_whole_call_that_is_warm(op, name, monkeypatch):
    case = cases.Case(op, (16, 784), *cases.FLOAT32, "small")
    called = []
    monkeypatch.setattr(entrants.counting, "count_launches", lambda call: called.append(call()) or 7)
    assert entrants.count_launches_here(case, TWO[name], CPU) == (7, "ok")
    assert called != [None]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there they can be counted")
def test_launches_are_counted_in_another_process_which_says_why_it_cannot():
    """Here there is no CUDA. After profiling each launch costs its process more: none is profiled that times."""
    with pytest.raises(RuntimeError, match="^failed: "):
        entrants.count_launches(CASE, TWO["eager"], CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there they can be counted")
def test_a_process_for_counts_that_died_is_replaced():
    entrants._process_for_counts().submit(os._exit, 1)
    with pytest.raises(BrokenProcessPool):
        entrants.count_launches(CASE, TWO["eager"], CPU)
    with pytest.raises(RuntimeError, match="^failed: "):
        entrants.count_launches(CASE, TWO["eager"], CPU)


@pytest.mark.cuda_only
def test_launches_on_a_gpu():
    counts = [entrants.count_launches(CASE, contender, torch.device("cuda", 0)) for contender in TWO.values()]
    assert counts[0] > counts[1] > 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),  # as of the instantiation of a graph
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),  # as of the loading of a kernel
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("out of resource: shared memory, Required: 262144, Hardware limit: 232448"), False),
    ],
)
def test_what_is_out_of_memory(error, expected):
    assert entrants.is_out_of_memory(error) == expected
