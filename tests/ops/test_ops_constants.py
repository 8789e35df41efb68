"""The numbers of a likelihood as tensors that outlive the call which makes them: whose they may be."""

import pytest
import torch

from tests.ops.cases import values
from tests.ops.test_ops_dispatch import Calls
from vae_fast import StudentT, likelihoods
from vae_fast.ops import plain


def test_constants_of_a_likelihood_are_filled_once(backend):
    """On a GPU each would be a launch more in every call."""
    row = likelihoods.lookup(StudentT(df=4.5))
    params = [values(4, 6, dtype=torch.float32, device=backend.device, seed=seed) for seed in (1, 2)]

    def constants(dtype=torch.float32):
        return row.with_constants([p.to(dtype) for p in params])[2:]

    made = constants()
    assert [constant.item() for constant in made] == pytest.approx(row.constants)
    assert all(again is constant for again, constant in zip(constants(), made, strict=True))
    assert [c.dtype for c in constants(torch.bfloat16)] == [torch.float32] * 2
    assert [c.dtype for c in constants(torch.float64)] == [torch.float64] * 2
    with Calls() as calls:  # who listens is to see all that a call depends on
        listened = constants()
    assert calls.counts["aten.new_full.default"] == 2
    assert torch.equal(torch.stack(listened), torch.stack(made))
    with torch.inference_mode():
        fresh = likelihoods.lookup(StudentT(df=4.75)).with_constants(params)[2]
    assert not fresh.is_inference()  # or a later call could not save it for backward


@pytest.mark.parametrize(("transform", "df"), [("grad", 6.5), ("vmap", 7.5), ("functionalize", 8.5)])
def test_constants_that_a_transform_was_the_first_to_ask_for_are_of_use_outside(transform, df, backend):
    """A kernel's launcher asks for their address, and what belongs to a transform has none."""
    row = likelihoods.lookup(StudentT(df))
    params = values(4, 6, dtype=torch.float32, device=backend.device), torch.zeros((), device=backend.device)
    getattr(torch.func, transform)(lambda p: sum(row.with_constants((p, p))).sum())(params[0])
    assert all(constant.data_ptr() for constant in row.with_constants(params)[2:])


def test_on_a_gpu_each_stream_has_its_own_and_so_has_what_a_graph_captures(monkeypatch):
    """Another stream might read one before it is filled, and a graph what has been freed."""
    stream, capturing, like = [1], [False], torch.zeros(3)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: stream[0], raising=False)

    def constant():
        return plain.constant(0.7, torch.float32, like)

    first = constant()
    assert constant() is first
    stream[0] = 2
    second = constant()
    assert constant() is second is not first
    capturing[0] = True
    assert len({id(first), id(second), *map(id, (captured := [constant(), constant()]))}) == 4
    assert [c.item() for c in captured] == [first.item()] * 2
