"""Faults that users of other projects reported: empty tensors, one element, primes, unaligned pointers."""

import itertools

import pytest
import torch

from tests.faults import plain
from tests.ops.cases import LATENT_REDUCTIONS, REDUCTIONS, values
from vae_fast import elbo_loss, gaussian_kl, reconstruction_loss, sample_kl
from vae_fast.reference import noise as reference

SIZES = [
    (0, 3),  # no samples
    (3, 0),  # samples of nothing
    (0,),
    (1,),  # one element
    (1, 1),
    (7,),  # one latent a sample, without a dimension for it
    (3, 5, 7),  # primes
    (13, 1009),  # primes: more than one tile
    (2, 4099),  # a sample that is longer than one tile, by a prime
]


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_kl_of_any_size(shape, backend):
    mu, logvar = ((values(*shape, device=backend.device, seed=i) - 0.5).requires_grad_() for i in (1, 2))
    for reduction in LATENT_REDUCTIONS:
        ours, theirs = gaussian_kl(mu, logvar, reduction=reduction), _reduced(plain.kl(mu, logvar), reduction)
        torch.testing.assert_close(ours, theirs, equal_nan=True)
        gradients = [torch.autograd.grad(loss.sum(), (mu, logvar)) for loss in (ours, theirs)]
        torch.testing.assert_close(*gradients, equal_nan=True)


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_reconstruction_of_any_size(likelihood, shape, backend):
    tensors = [(values(*shape, device=backend.device, seed=i) - 0.5).requires_grad_() for i in (1, 2)]
    tensors = tensors[: 1 + (likelihood == "gaussian")]
    output, target = tensors[0] if len(tensors) == 1 else tuple(tensors), values(*shape, device=backend.device)
    for reduction in REDUCTIONS:
        ours = reconstruction_loss(output, target, likelihood, reduction=reduction)
        theirs = _reduced(plain.nll(output, target, likelihood), reduction)
        torch.testing.assert_close(ours, theirs, equal_nan=True)
        gradients = [torch.autograd.grad(loss.sum(), tensors) for loss in (ours, theirs)]
        torch.testing.assert_close(*gradients, equal_nan=True)
    kl = values(*shape[:1], device=backend.device)
    torch.testing.assert_close(
        elbo_loss(output, target, kl, likelihood=likelihood).total,
        _reduced(plain.nll(output, target, likelihood), "batchmean") + kl.mean(),
        equal_nan=True,
    )


def _reduced(elementwise, reduction):
    if elementwise.dim() == 1 and reduction == "sample":
        return elementwise
    return plain.reduce(elementwise, reduction)


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_samples_of_any_size(shape, backend):
    mu, logvar = (values(*shape, device=backend.device, seed=i).requires_grad_() for i in (1, 2))
    z, kl = sample_kl(mu, logvar, seed=3, reduction="none")
    eps = torch.from_numpy(reference.normal(3, mu.numel())).view(shape).to(backend.device)
    torch.testing.assert_close(z, plain.sample(mu, logvar, eps), rtol=0, atol=4e-6)
    torch.testing.assert_close(kl, plain.kl(mu, logvar))
    torch.testing.assert_close(torch.autograd.grad(z.sum(), logvar)[0], (z - mu) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shift", [1, 3])
def test_pointers_that_are_not_aligned(shift, dtype, backend):
    size = 4 * 2048
    moved = [values(shift + size, device=backend.device, dtype=dtype, seed=i)[shift:].view(4, -1) for i in (1, 2, 3)]
    aligned = [t.clone() for t in moved]
    assert all(t.data_ptr() % 16 for t in moved)
    results = []
    for mu, logvar, target in (moved, aligned):
        mu, logvar = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
        z, kl = sample_kl(mu, logvar, seed=0)
        losses = elbo_loss(mu, target, kl)
        results.append((z, kl, *losses, *torch.autograd.grad(losses.total + z.sum(), (mu, logvar))))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_the_sizes_reach_every_kind_of_grid():
    """One program, several rows of programs, several columns, and both: or the cases above would prove less."""
    tiling = pytest.importorskip("vae_fast.kernels.tiling", exc_type=ImportError)
    kinds = set()
    for shape, by_sample in itertools.product(SIZES[3:], (True, False)):
        view, _ = tiling.view([torch.empty(shape, device="meta")], by_sample)
        kinds.add(tiling.tiles(view).axes)
    assert kinds == {"rows", "columns", "both"}
