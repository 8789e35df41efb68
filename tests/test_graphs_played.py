"""Capturing a training step on a CUDA that is played: what is kept, and what a replay does."""

import contextlib
import gc
import math
import weakref
from unittest.mock import MagicMock

import pytest
import torch

from tests.support import played_graph
from tests.test_graphs import adam, batch, check_beta_may_be_written_to, check_same_steps, on_the_cpu, small
from vae_fast import ELBO, capture_step, graphs
from vae_fast.benchmarks import cases, steps
from vae_fast.benchmarks.contenders import CONTENDERS

pytestmark = on_the_cpu


@pytest.mark.usefixtures("played_cuda")
class TestWhatAGraphWritesTo:
    """A graph does not keep the memory that its kernels write to: freed, it would be another tensor's by the replay."""

    def check(self, make):
        model = small()
        optimizer = torch.optim.Adam(model.parameters())
        step = make(model, optimizer)
        step(batch(1))
        kept = [weakref.ref(model), weakref.ref(optimizer), weakref.ref(model.encoder)]
        kept += [weakref.ref(value) for value in optimizer.state[next(model.parameters())].values()]
        del model, optimizer
        gc.collect()
        assert all(reference() is not None for reference in kept)
        del step
        gc.collect()
        assert not any(reference() is not None for reference in kept)

    def test_is_kept_by_the_step(self):
        self.check(lambda model, optimizer: capture_step(model, optimizer, batch(0)))

    @pytest.mark.parametrize("name", ["eager graph", "vae_fast graph"])
    def test_is_kept_by_a_contender(self, name, monkeypatch):
        def make(model, optimizer):
            monkeypatch.setattr(steps, "adam", lambda model, captured, held=[optimizer]: held.pop())
            return CONTENDERS[name].step(cases.CASES["step_mlp/128x784/float32"].op, model, batch(0))

        self.check(make)


@pytest.mark.usefixtures("played_cuda")
def test_a_capture_has_a_stream_of_its_own_and_forbids_other_threads_nothing(monkeypatch):
    """PyTorch's own stream for captures may be another device's, and that of the warm-up holds memory of cuBLAS."""
    captures, entered = [], []

    def graph(graph, pool=None, stream=None, capture_error_mode="global"):
        captures.append((stream, capture_error_mode))
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "Stream", lambda: MagicMock())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: entered.append(stream) or contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", graph)
    model = small()
    capture_step(model, adam(model), batch(0))
    ((stream, mode),) = captures
    assert stream is not None
    assert stream not in entered
    assert mode == "thread_local"


@pytest.mark.usefixtures("played_cuda")
def test_the_warm_up_waits_for_what_came_before_and_the_capture_for_the_warm_up(monkeypatch):
    """On a GPU a stream that does not wait is a race, which a test would lose now and then.

    All of it is on the example's device, which need not be the current one.
    """
    events = []

    class Stream:
        def wait_stream(self, other):
            events.append("current waits" if self is current else "side waits")
            assert (self is current) != (other is current)

    @contextlib.contextmanager
    def on(device):
        events.append(f"on {device}")
        yield
        events.append("no longer")

    current, model, example = Stream(), small(), batch(0)
    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    loss = model.loss
    model.loss = lambda x: events.append("a step") or loss(x)
    step = capture_step(model, adam(model), example)
    assert events == ["on cpu", "side waits", *["a step"] * 3, "current waits", "a step", "no longer"]
    step(batch(1))
    assert events[-2:] == ["on cpu", "no longer"]
    assert torch.equal(example, batch(0))  # the batches are copied to another tensor


@pytest.mark.usefixtures("played_cuda")
def test_the_gradients_of_the_warm_up_are_let_go_before_the_capture():
    """Else they would stay beside the graph's own."""
    weight, found = torch.ones(3, requires_grad=True), []

    def step(x):
        found.append(weight.grad is None)
        (weight * x).sum().backward()

    graphs.CapturedStep(step, torch.optim.SGD([weight], lr=0.0), torch.ones(3))
    assert found == [True, False, False, True]


@pytest.mark.usefixtures("played_cuda")
def test_gradients_that_the_optimizer_or_the_model_has_not_are_the_graphs_own_too():
    """Else replays would add to those of the warm-up, also where model.zero_grad() has freed them since."""
    model, factor, found = small(), torch.ones((), requires_grad=True), []
    loss = model.loss

    def scaled_loss(x):
        found.extend(weight.grad is None for weight in (factor, *model.parameters()))
        return ELBO(*(factor * part for part in loss(x)))

    model.loss = scaled_loss
    capture_step(model, torch.optim.SGD([factor, *model.decoder.parameters()], lr=0.0), batch(0))
    assert found
    assert all(found)


@pytest.mark.usefixtures("played_cuda")
def test_what_a_step_takes_and_gives_is_of_no_other_graph():
    model, example = small(), batch(0).requires_grad_()
    step = capture_step(model, adam(model), example)
    assert example.grad is None
    assert not any(loss.requires_grad for loss in step(batch(1)))


@pytest.mark.usefixtures("played_cuda")
def test_a_batch_that_requires_a_gradient_is_not_kept():
    """The tensor that it is copied to would, with what each batch was made of, and one before that, and so on."""
    model = small()
    step = capture_step(model, adam(model), batch(0))
    x = batch(1).requires_grad_()
    kept = weakref.ref(x)
    step(x)
    del x
    assert kept() is None


@pytest.mark.usefixtures("played_cuda")
class TestWhatIsReplaced:
    """The graph writes to the tensors of the capture: freed, they would be another's, and kept, nobody's."""

    @pytest.mark.parametrize(
        "replace",
        [
            lambda model, optimizer: optimizer.load_state_dict(optimizer.state_dict()),
            lambda model, optimizer: model.double(),
            lambda model, optimizer: model.decoder.double(),
        ],
        ids=["state", "weights", "some weights"],
    )
    def test_ends_the_step(self, replace):
        model = small()
        optimizer = adam(model)
        step = capture_step(model, optimizer, batch(0))
        replace(model, optimizer)
        with pytest.raises(RuntimeError, match="replaced since its capture.*: capture the step again"):
            step(batch(1))

    def test_is_not_what_is_loaded_into_the_model(self):
        model = small()
        step = capture_step(model, adam(model), batch(0))
        model.load_state_dict(small().state_dict())
        step(batch(1))


@pytest.mark.usefixtures("played_cuda")
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (batch(0, size=5), ValueError, r"x is float32 \[5, 8, 8\], the captured example was float32 \[32, 8, 8\]"),
        (batch(0).double(), ValueError, r"x is float64 \[32, 8, 8\], the captured"),
        ([1.0], TypeError, "x is list: expected a tensor"),
    ],
    ids=["shape", "dtype", "list"],
)
def test_batches_that_the_graph_cannot_take(x, error, message):
    """A copy would stretch the one and convert the other."""
    model = small()
    step = capture_step(model, adam(model), batch(0))
    with pytest.raises(error, match=message):
        step(x)


class TestPlayedGraph:
    @pytest.fixture(autouse=True)
    def _graph(self, played_cuda, monkeypatch):
        monkeypatch.setattr(torch.cuda, "CUDAGraph", played_graph.PlayedGraph)
        monkeypatch.setattr(torch.cuda, "graph", played_graph.capture)

    def test_the_same_steps_as_without_a_graph(self):
        check_same_steps("cpu", torch.optim.SGD, lr=1e-2, momentum=0.9)

    def test_a_beta_that_is_a_tensor_may_be_written_to(self):
        check_beta_may_be_written_to("cpu")

    def test_within_autocast_each_replay_casts_the_weights(self):
        """And not the capture, once for all: training would go on, and the loss would stay as it was."""
        model = small()
        with torch.autocast("cpu", torch.bfloat16):
            step = capture_step(model, torch.optim.SGD(model.parameters(), lr=0.0), batch(0))
        with torch.no_grad():
            for weight in model.parameters():
                weight.zero_()
        losses = step(batch(1))
        assert losses.kl == 0
        assert losses.reconstruction.item() == pytest.approx(64 * math.log(2))

    def test_autocast_holds_in_the_graph(self):
        """Without it PyTorch's settings stay as they are: compiled code would be compiled again for others."""
        model, seen = small(), []
        model.decoder.register_forward_hook(
            lambda module, given, output: seen.append((output.dtype, torch.is_autocast_cache_enabled()))
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with torch.autocast("cpu", torch.bfloat16):
            capture_step(model, optimizer, batch(0))
        capture_step(model, optimizer, batch(0))
        steps = graphs.WARM_UP + 1
        assert seen == [(torch.bfloat16, False)] * steps + [(torch.float32, True)] * steps

    def test_a_step_that_waits_for_the_device_is_not_captured(self):
        model = small()
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing: _local_scalar_dense"):
            capture_step(model, adam(model), batch(0))  # which reads its number of steps
