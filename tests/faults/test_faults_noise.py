"""Faults that users of other projects reported: noise."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch.utils.checkpoint import checkpoint

from tests.support.tolerance import assert_noise_close
from vae_fast import elbo_loss, reparameterize, sample_kl
from vae_fast.reference import noise as reference


def eps_of(backend, shape=(16, 64), dtype=torch.float32, **source):
    mu = torch.zeros(shape, dtype=dtype, device=backend.device)
    return reparameterize(mu, torch.zeros_like(mu), **source)


def test_one_seed_is_one_sample_whatever_the_allocation(backend):
    first = eps_of(backend, seed=3)
    _held = [torch.empty(n, device=backend.device) for n in (1, 77, 4096)]
    assert torch.equal(eps_of(backend, seed=3), first)
    chunk = torch.zeros(16, 128, device=backend.device).chunk(2, 1)[1]
    assert torch.equal(reparameterize(chunk, chunk, seed=3), first)
    assert_noise_close(first.flatten(), reference.normal(3, first.numel()))


@pytest.mark.usefixtures("planning_anew")
@pytest.mark.parametrize("constants", [{"FLAT_TILE": 64}, {"FLAT_TILE": 1024, "ROW_TILE": 128, "MAX_COLUMNS": 32}])
def test_one_seed_is_one_sample_whatever_the_block_size(constants, backend, monkeypatch):
    tiling = pytest.importorskip("vae_fast.kernels.tiling", exc_type=ImportError)
    mu = torch.zeros(6, 60, device=backend.device)
    first = [sample_kl(mu, mu, seed=3, reduction=r)[0] for r in ("sample", "latent")]
    for name, value in constants.items():
        monkeypatch.setattr(tiling, name, value)
    assert all(torch.equal(sample_kl(mu, mu, seed=3, reduction=r)[0], first[0]) for r in ("sample", "latent", "sum"))
    assert torch.equal(*first)


@pytest.mark.parametrize("seed", [0, -1, 2**64 - 2])
def test_backward_has_the_noise_of_forward(seed, backend):
    logvar = torch.zeros(16, 63, device=backend.device, requires_grad=True)
    z = reparameterize(torch.zeros_like(logvar), logvar, seed=seed)
    (gradient,) = torch.autograd.grad(z.sum(), logvar)
    torch.testing.assert_close(gradient, z / 2, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(64, 64), (61, 67)], ids=["whole quads", "an odd end"])
def test_no_value_is_drawn_twice(shape, backend):
    """A single float32 repeats by chance; two neighbours do not."""
    flat = eps_of(backend, shape, seed=3).flatten().cpu().numpy()
    pairs = np.stack([flat[:-1], flat[1:]], axis=1)
    assert len(np.unique(pairs, axis=0)) == len(pairs)


def test_every_draw_differs_and_manual_seed_is_honoured(backend):
    draws = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        draws.append([eps_of(backend), eps_of(backend)])
    torch.testing.assert_close(draws[0], draws[1], rtol=0, atol=0)
    for a, b in ((draws[0][0], draws[0][1]), (draws[0][0], draws[2][0])):
        assert (a != b).float().mean() > 0.99


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("source", [{"seed": 5}, {}], ids=["seed", "drawn"])
def test_checkpointing_replays_the_noise(use_reentrant, source, backend):
    logvar = torch.zeros(16, 64, device=backend.device, requires_grad=True)
    z = checkpoint(lambda v: reparameterize(torch.zeros_like(v), v, **source), logvar, use_reentrant=use_reentrant)
    z.sum().backward()
    torch.testing.assert_close(logvar.grad, z / 2)


@pytest.mark.cuda_only
def test_every_replay_of_a_graph_has_fresh_noise(backend):
    if backend.name != "triton":
        pytest.skip("only the kernels take their seed from the device")
    mu = torch.zeros(16, 64, device=backend.device, requires_grad=True)
    target = torch.zeros_like(mu)

    def step():
        z, kl = sample_kl(mu, torch.zeros_like(mu))
        return z, torch.autograd.grad(elbo_loss(z, target, kl).total, mu)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    replays = []
    for _ in range(2):
        graph.replay()
        replays.append([t.clone() for t in captured])
    assert (replays[0][0] != replays[1][0]).float().mean() > 0.99
    for z, gradient_of_mu in replays:
        torch.testing.assert_close(gradient_of_mu, torch.sigmoid(z) / 16)


@pytest.mark.parametrize("source", [{"seed": 2**63 + 11}, {}], ids=["seed", "drawn"])
def test_moments_tails_and_distribution(source, backend):
    z = eps_of(backend, (64, 2048), **source).flatten().cpu().double().numpy()
    n = z.size
    for power, (moment, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        assert abs(np.mean(z**power) - moment) < 4.5 * math.sqrt(variance / n), f"moment {power}"
    for threshold in (2.0, 3.0, 4.0):
        expected = n * scipy.stats.norm.sf(threshold)
        for tail in (z > threshold, z < -threshold):
            assert abs(tail.sum() - expected) < 4.5 * math.sqrt(expected), f"beyond {threshold}"
    assert scipy.stats.kstest(z, "norm").pvalue > 1e-3
    for lag in (1, 2, 3, 4, 2048):
        assert abs(np.mean(z[lag:] * z[:-lag])) < 4.5 / math.sqrt(n), f"correlation at lag {lag}"
