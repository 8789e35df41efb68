"""What is timed of a contender: inputs that rotate, and calls that are warm where their launches are counted."""

import os

import pytest
import torch

from vae_fast.benchmarks import cases, counting, entrants, memory, timing
from vae_fast.benchmarks.contenders import CONTENDERS, Contender

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="speed is that of compiled code")

CPU = torch.device("cpu")
CASE = cases.CASES["mse/1x32/float32"]


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
