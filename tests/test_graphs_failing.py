"""A capture of a training step that fails, on a CUDA that is played."""

import contextlib
from unittest.mock import MagicMock

import pytest
import torch

from tests.test_graphs import adam, batch, on_the_cpu, small
from vae_fast import capture_step, graphs

pytestmark = [on_the_cpu, pytest.mark.usefixtures("played_cuda")]


def test_a_capture_that_fails_leaves_pytorch_as_it_was(monkeypatch):
    """PyTorch does not: the end of `torch.cuda.graph` raises before it has gone back to the stream before, before its
    allocator and, in torch 2.11, before its generator know that the capture is over."""
    capturing, allocating, held, streams, handles = [], [], [], ["the user's"], iter(range(9))

    @contextlib.contextmanager
    def graph(graph, *, pool, **options):
        capturing[:] = [True]
        allocating.append(pool)
        held.append(pool)
        streams.append("the capture's")
        yield
        capturing.clear()
        allocating.remove(pool)
        held.remove(pool)
        streams.pop()

    def end_allocate(device, pool):
        if pool not in allocating:
            raise RuntimeError("not currently recording")
        allocating.remove(pool)

    @contextlib.contextmanager
    def stream(entered):
        before = list(streams)
        try:
            yield
        finally:
            streams[:] = before

    def fail():
        if capturing:
            raise RuntimeError("operation not permitted")
        update()

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda.memory, "_cuda_endAllocateToPool", end_allocate)
    monkeypatch.setattr(torch.cuda.memory, "_cuda_releasePool", lambda device, pool: held.remove(pool))
    model = small()
    optimizer = torch.optim.SGD(list(model.parameters())[:-2])
    update, optimizer.step = optimizer.step, fail
    with pytest.raises(RuntimeError, match="operation not permitted"):
        capture_step(model, optimizer, batch(0))
    assert (capturing, allocating, held, streams) == ([], [], [], ["the user's"])
    assert all(weight.grad is None for weight in model.parameters())  # what backward made was never computed


def test_what_comes_after_a_warm_up_that_fails_waits_for_it(monkeypatch):
    """Its first step may still write to the weights."""
    side, current, steps = MagicMock(), MagicMock(), []

    def fail_at_the_second(x):
        steps.append(x)
        if len(steps) > 1:
            raise RuntimeError("out of memory")
        return loss(x)

    monkeypatch.setattr(torch.cuda, "Stream", lambda: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    model = small()
    loss, model.loss = model.loss, fail_at_the_second
    with pytest.raises(RuntimeError, match="out of memory"):
        capture_step(model, adam(model), batch(0))
    assert len(steps) == 2
    current.wait_stream.assert_called_once_with(side)


def test_a_capture_that_fails_says_why_even_if_no_other_is_possible(monkeypatch):
    def capture(graph, step, x, pool):
        raise RuntimeError("out of memory" if step is not torch.Tensor.clone else "CUDA has been lost")

    monkeypatch.setattr(graphs, "_captured", capture)
    model = small()
    with pytest.raises(RuntimeError, match="out of memory"):
        capture_step(model, adam(model), batch(0))
