"""The same inputs give the same bits through the kernels: sums run in a fixed order."""

import pytest
import torch

from tests.kernels.latents import drawer
from vae_fast import elbo_loss, gaussian_kl, reconstruction_loss, sample_kl


def run_twice(function, *inputs):
    """(outputs and gradients) of two runs, with other memory in use at the second."""
    results = []
    for _ in range(2):
        leaves = [t.clone().requires_grad_() for t in inputs]
        outputs = function(*leaves)
        weights = [drawer(o.device, o.dtype, seed=2)(*o.shape) for o in outputs]
        results.append([*outputs, *torch.autograd.grad(outputs, leaves, weights)])
        taken = torch.full((100_003,), 3.0, device=inputs[0].device)
    assert taken.sum() == 300_009
    return zip(*results)


@pytest.mark.parametrize(
    ("shape", "reduction"),
    [((67, 129), "latent"), ((67, 129), "sum"), ((2, 5001), "sample"), ((2, 5001), "sum")],
    ids=str,
)
def test_latents(shape, reduction, kernels_device):
    mu, logvar = (drawer(kernels_device, torch.float32, seed)(*shape) for seed in (0, 1))
    for first, second in run_twice(lambda m, v: sample_kl(m, v, seed=4, reduction=reduction), mu, logvar):
        assert torch.equal(first, second)
    for first, second in run_twice(lambda m, v: [gaussian_kl(m, v, reduction=reduction)], mu, logvar):
        assert torch.equal(first, second)


@pytest.mark.parametrize("likelihood", ["bernoulli", "mse"])
@pytest.mark.parametrize("reduction", ["sample", "sum", "mean"])
def test_reconstruction(reduction, likelihood, kernels_device):
    output, target = (drawer(kernels_device, torch.float32, seed)(2, 5001) for seed in (0, 1))

    def loss(output):
        return [reconstruction_loss(output, target, likelihood, reduction=reduction)]

    for first, second in run_twice(loss, output):
        assert torch.equal(first, second)


@pytest.mark.parametrize("shared", [(), (129,), (3, 1, 1)], ids=str)
@pytest.mark.parametrize("reduction", ["sample", "batchmean"])
def test_shared_parameters(reduction, shared, kernels_device):
    shape = (67, 3, 8, 8) if len(shared) == 3 else (67, 129)
    mean, target = (drawer(kernels_device, torch.float32, seed)(*shape) for seed in (0, 1))
    logvar = drawer(kernels_device, torch.float32, 2)(*shared)

    def loss(mean, logvar):
        return [reconstruction_loss((mean, logvar), target, "gaussian", reduction=reduction)]

    for first, second in run_twice(loss, mean, logvar):
        assert torch.equal(first, second)


def test_elbo(kernels_device):
    output, target = (drawer(kernels_device, torch.float32, seed)(301, 100) for seed in (0, 1))
    kl = drawer(kernels_device, torch.float32, 2)(301)
    for first, second in run_twice(lambda o, k: elbo_loss(o, target, k, likelihood="mse"), output, kl):
        assert torch.equal(first, second)
    logvar = drawer(kernels_device, torch.float32, 3)(100)
    gaussian = run_twice(lambda o, v, k: elbo_loss((o, v), target, k, likelihood="gaussian"), output, logvar, kl)
    for first, second in gaussian:
        assert torch.equal(first, second)
