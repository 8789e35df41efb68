"""The comparison: both contenders compute the same loss, and both are timed."""

import os
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vae_fast import VAE
from vae_fast.app import compare
from vae_fast.benchmarks.steps import fused_loss, usual_loss
from vae_fast.benchmarks.usual import FORMULAS

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is timed in the interpreter")


def model(likelihood):
    torch.manual_seed(0)
    if likelihood == "categorical":
        encoder = nn.Sequential(nn.Embedding(2, 2), nn.Flatten(), nn.Linear(40, 6))
        decoder = nn.Sequential(nn.Linear(3, 40), nn.Unflatten(1, (4, 5, 2)))
        return VAE(encoder=encoder, decoder=decoder, latent_dim=3, likelihood=likelihood, beta=0.5)
    return VAE((4, 5), 3, (8,), likelihood=likelihood, beta=0.5)


@pytest.mark.parametrize("likelihood", FORMULAS)
def test_both_losses_and_gradients_are_equal(likelihood):
    # in float64: some of these formulas lose digits in float32
    vae, x, eps = model(likelihood).double(), torch.rand(7, 4, 5).double(), torch.randn(7, 3).double()
    x = (x > 0.5).long() if likelihood == "categorical" else x
    results = []
    for loss in (fused_loss, usual_loss):
        value = loss(vae, x, eps)
        results.append((value, *torch.autograd.grad(value, vae.parameters())))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


def test_timings(monkeypatch):
    vae = model("bernoulli")
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    fused, eager = compare.compare(vae, torch.rand(10, 4, 5), batch_size=4, learning_rate=1e-3, rounds=5)
    assert (fused.name, eager.name) == ("fused", "eager PyTorch")
    assert 0 < fused.milliseconds < 1000
    assert 0 < eager.milliseconds < 1000
    assert fused.loss == pytest.approx(eager.loss, rel=1e-4)
    torch.testing.assert_close(vae.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(("seconds", "rounds"), [(0, compare.FEWEST), (1000, compare.ROUNDS)])
def test_a_slow_machine_alone_does_few_rounds(seconds, rounds, monkeypatch):
    monkeypatch.setattr(compare, "SECONDS", seconds)
    timed = []
    monkeypatch.setattr(compare, "_time", lambda *arguments: timed.append(1) or (1.0, torch.tensor(2.0)))
    compare.compare(model("mse"), torch.rand(10, 4, 5), batch_size=4, learning_rate=1e-3)
    assert len(timed) == 2 * (compare.WARM_UP + rounds)


def test_a_likelihood_without_an_eager_formula_is_not_compared(monkeypatch):
    monkeypatch.delitem(FORMULAS, "mse")
    assert compare.compare(model("mse"), torch.rand(10, 4, 5), batch_size=4, learning_rate=1e-3) == []


def test_contenders_take_turns_on_the_same_batches(monkeypatch):
    calls = []

    def time(step, batch, eps):
        calls.append((step, batch, eps))
        return 1e6 if len(calls) <= 2 * compare.WARM_UP else 1.0, torch.tensor(float(len(calls)))

    monkeypatch.setattr(compare, "_time", time)
    data = torch.arange(10.0).view(10, 1, 1).expand(10, 4, 5)
    timings = compare.compare(model("mse"), data, batch_size=4, learning_rate=1e-3, rounds=3)
    assert [timing.milliseconds for timing in timings] == [1.0, 1.0]
    assert {timing.name: timing.loss for timing in timings} == {"eager PyTorch": 1.0, "fused": 2.0}  # the first ones
    pairs = list(zip(calls[::2], calls[1::2], strict=True))
    for number, ((one, batch, eps), (other, same, noise)) in enumerate(pairs):
        assert batch[:, 0, 0].tolist() == [(4 * number + k) % 10 for k in range(4)]
        assert (batch is same, eps is noise, one is other) == (True, True, False)
        assert one is pairs[number % 2][0][0]
    assert pairs[0][0][0] is pairs[1][1][0]


def test_batches_are_moved_to_the_model_and_the_data_stay(monkeypatch):
    """A GPU that trained on data larger than its memory has no room for all of them here either."""
    devices = set()
    monkeypatch.setattr(
        compare, "_time", lambda step, batch, eps: devices.update((batch.device, eps.device)) or (1.0, torch.zeros(()))
    )
    compare.compare(model("mse").to("meta"), torch.rand(10, 4, 5), batch_size=4, learning_rate=1e-3, rounds=1)
    assert devices == {torch.device("meta")}


def test_the_learning_rate_is_the_users(monkeypatch):
    rates, adam = [], torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda weights, lr=1e-3: rates.append(lr) or adam(weights, lr=lr))
    compare.compare(model("mse"), torch.rand(10, 4, 5), batch_size=4, learning_rate=0.25, rounds=1)
    assert rates == [0.25, 0.25]


def test_a_step_ends_when_its_own_gpu_is_done(monkeypatch):
    """Which need not be the current one."""
    events, device, clock = [], torch.device("cuda", 1), iter((5.0, 5.25))
    monkeypatch.setattr(torch.cuda, "synchronize", events.append)
    monkeypatch.setattr(compare.time, "perf_counter", lambda: events.append("clock") or next(clock))
    x = SimpleNamespace(device=device)
    timed = compare._time(lambda x, eps: events.append("step") or "loss", x, None)
    assert (events, timed) == ([device, "clock", "step", device, "clock"], (250.0, "loss"))
