"""The training step as one CUDA graph, and the compiled model: what they compute, and bad arguments."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vae_fast import VAE, capture_step, graphs
from vae_fast.ops.backend import interpreting

SHAPE = (8, 8)
on_the_cpu = pytest.mark.skipif(interpreting(), reason="the same on any backend")


def small(device="cpu"):
    torch.manual_seed(0)
    return VAE(SHAPE, latent_dim=4, hidden_dims=(16,)).to(device)


def batch(seed, device="cpu", size=32):
    return torch.rand(size, *SHAPE, generator=torch.Generator().manual_seed(seed)).to(device)


def adam(model, **options):
    return torch.optim.Adam(model.parameters(), lr=1e-3, **options)


class Seeded(nn.Module):
    """A VAE whose noise depends on the number of the step alone, so that two runs can be compared."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae
        self.register_buffer("step", torch.zeros(1, dtype=torch.int64))

    def loss(self, x):
        self.step.add_(1)
        return self.vae.loss(x, seed=self.step)


class Fetching(nn.Module):
    """A VAE whose loss takes two batches from a loader, which prepares the second only when the first is taken."""

    def __init__(self, vae, batches):
        super().__init__()
        self.vae, self.batches = vae, batches
        self.taken = []  # kept, or their page-locked memory would be used again

    def loss(self, x):
        self.taken += [next(self.batches), next(self.batches)]
        return self.vae.loss(x)


def check_same_steps(device, optimizer, **options):
    """Replays against steps without a graph, after as many as warm up."""
    eager, captured = (Seeded(small()).to(device) for _ in range(2))
    step = capture_step(captured, optimizer(captured.parameters(), **options), batch(0, device))
    reference = optimizer(eager.parameters(), **options)
    warm_up = [batch(0, device)] * graphs.WARM_UP
    for number, x in enumerate([*warm_up, *(batch(seed, device) for seed in range(5))]):
        reference.zero_grad()
        wanted = eager.loss(x)
        wanted.total.backward()
        reference.step()
        if number >= len(warm_up):
            torch.testing.assert_close(step(x), wanted)
    torch.testing.assert_close(captured.state_dict(), eager.state_dict())


def check_beta_may_be_written_to(device):
    model = small(device)
    model.beta = torch.ones((), device=device)
    step = capture_step(model, torch.optim.SGD(model.parameters(), lr=0.0), batch(0, device))
    for beta in (1.0, 0.0, 4.0):
        model.beta.fill_(beta)
        losses = step(batch(1, device))
        torch.testing.assert_close(losses.total, losses.reconstruction + beta * losses.kl)


class TestCapture:
    pytestmark = pytest.mark.cuda_only

    @pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
    def test_the_same_steps_as_without_a_graph(self, optimizer):
        options = {"lr": 1e-2} if optimizer is torch.optim.SGD else {"lr": 1e-3, "capturable": True}
        check_same_steps("cuda", optimizer, **options)

    def test_a_beta_that_is_a_tensor_may_be_written_to(self):
        check_beta_may_be_written_to("cuda")

    def test_each_replay_draws_fresh_noise_that_manual_seed_decides(self):
        model, x = small("cuda"), batch(0, "cuda")
        step = capture_step(model, torch.optim.SGD(model.parameters(), lr=0.0), x)
        losses = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            losses.append([step(x).reconstruction.item() for _ in range(3)])
        assert len(set(losses[0])) == 3
        assert losses[0] == losses[1]
        assert not set(losses[0]) & set(losses[2])
        assert step(x).kl.item() == step(x).kl.item()

    def test_batches_from_the_host_and_of_another_shape(self):
        model = small("cuda")
        step = capture_step(model, adam(model, capturable=True), batch(0, "cuda"))
        assert step(batch(1)).total.isfinite()
        with pytest.raises(
            ValueError, match=r"x is float32 \[5, 8, 8\], the captured example was float32 \[32, 8, 8\]"
        ):
            step(batch(0, "cuda", size=5))
        with pytest.raises(ValueError, match=r"x is float64 \[32, 8, 8\]"):
            step(batch(0, "cuda").double())
        with pytest.raises(TypeError, match="x is list: expected a tensor"):
            step([1.0])

    def test_a_model_on_another_device(self):
        model = small()
        with pytest.raises(ValueError, match="example is on cuda:0, the model's .* on cpu: they must be on one device"):
            capture_step(model, adam(model, capturable=True), batch(0, "cuda"))

    def test_a_loader_may_pin_its_batches_meanwhile(self):
        """A thread of the loader page-locks memory, which must not end the capture that another is in."""
        images = torch.rand(32 * batch(0).shape[0], *SHAPE)
        options = {"num_workers": 1, "prefetch_factor": 1, "pin_memory": True}
        loader = torch.utils.data.DataLoader(images, batch_size=batch(0).shape[0], **options)
        model = Fetching(small("cuda"), iter(loader))
        step = capture_step(model, adam(model, capturable=True), batch(0, "cuda"))
        assert len(model.taken) == 2 * (graphs.WARM_UP + 1)
        assert all(x.is_pinned() for x in model.taken)
        for x in model.taken:
            assert step(x).total.isfinite()

    def test_training_by_replays_learns(self):
        model, x = small("cuda"), batch(0, "cuda")
        step = capture_step(model, adam(model, capturable=True), x)
        first = step(x).total.item()
        for _ in range(300):
            loss = step(x)
        assert loss.total.item() < first


class TestBadArguments:
    pytestmark = on_the_cpu

    def test_no_cuda_device(self):
        model = small()
        with pytest.raises(RuntimeError, match="example is on cpu: capture_step needs a CUDA device"):
            capture_step(model, adam(model, capturable=True), batch(0))

    def test_a_model_on_another_device(self, monkeypatch):
        monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
        model = small("meta")
        with pytest.raises(ValueError, match="example is on cpu, the model's .* on meta: they must be on one device"):
            capture_step(model, adam(model, capturable=True), batch(0))

    @pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.Adagrad, torch.optim.LBFGS])
    def test_an_optimizer_that_cannot_be_captured(self, optimizer):
        model = small()
        with pytest.raises(
            ValueError, match=f"optimizer is {optimizer.__name__} without capturable=True: expected one"
        ):
            capture_step(model, optimizer(model.parameters()), batch(0))

    def test_a_learning_rate_that_is_read_on_the_host(self):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1))
        with pytest.raises(ValueError, match="SGD, which reads a tensor lr on the host: expected one with fused=True"):
            capture_step(model, optimizer, batch(0))
        optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1), fused=True)
        with pytest.raises(RuntimeError, match="example is on cpu"):  # the check after that of the optimizer
            capture_step(model, optimizer, batch(0))

    def test_one_group_that_is_not_capturable(self):
        model = small()
        groups = [
            {"params": model.encoder.parameters(), "capturable": True},
            {"params": model.decoder.parameters(), "capturable": False},
        ]
        with pytest.raises(ValueError, match="without capturable=True"):
            capture_step(model, torch.optim.Adam(groups), batch(0))

    def test_arguments_of_other_types(self):
        model = small()
        optimizer = adam(model, capturable=True)
        with pytest.raises(TypeError, match=r"model is Linear: expected a module with a method loss\(x\)"):
            capture_step(nn.Linear(2, 2), optimizer, batch(0))
        with pytest.raises(TypeError, match="model is SimpleNamespace: expected a module"):
            capture_step(SimpleNamespace(loss=model.loss), optimizer, batch(0))  # whose parameters are not known
        with pytest.raises(TypeError, match=r"optimizer is str: expected a torch.optim.Optimizer"):
            capture_step(model, "adam", batch(0))
        with pytest.raises(TypeError, match="example is list: expected a tensor"):
            capture_step(model, optimizer, [1.0])


@pytest.fixture
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def train(model, loss, steps=4):
    """Losses and weights after a few steps, each with the noise of its number."""
    optimizer = adam(model)
    device = next(model.parameters()).device
    losses = []
    for number in range(steps):
        optimizer.zero_grad()
        total = loss(batch(number, device), seed=torch.full((1,), number, device=device)).total
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return losses, model.state_dict()


def check_compiled(device, **options):
    eager = small(device)
    compiled = copy.deepcopy(eager)
    actual = train(compiled, torch.compile(compiled.loss, **options))
    wanted = train(eager, eager.loss)
    torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


@on_the_cpu
@pytest.mark.usefixtures("_fresh_dynamo")
def test_the_whole_loss_compiles_as_one_graph():
    check_compiled("cpu", fullgraph=True, backend="aot_eager")


@pytest.mark.cuda_only
@pytest.mark.usefixtures("_fresh_dynamo")
def test_compiled_with_cuda_graphs_by_inductor():
    check_compiled("cuda", mode="reduce-overhead")


@pytest.mark.cuda_only
@pytest.mark.usefixtures("_fresh_dynamo")
def test_inductors_cuda_graphs_draw_fresh_noise():
    model, x = small("cuda"), batch(0, "cuda")
    loss = torch.compile(model.loss, mode="reduce-overhead")
    losses = []
    for _ in range(6):
        torch.compiler.cudagraph_mark_step_begin()
        losses.append(loss(x).reconstruction.item())
    assert len(set(losses)) == 6
