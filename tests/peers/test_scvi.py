"""scvi-tools' VAE, patched against its own: both KL terms, and 100 steps of training."""

import inspect

import pytest
import torch
from torch.distributions import Normal, kl_divergence

pytest.importorskip("scvi", reason="scvi-tools is not installed: make test-peers", exc_type=ModuleNotFoundError)

import numpy as np
from scvi.module import VAE

from tests.peers.curves import assert_same_curves
from vae_fast.integrations import scvi as fast

CELLS, GENES = 16, 12


def cells(device):
    """Counts as scvi-tools' loader gives them."""
    counts = torch.poisson(torch.full((CELLS, GENES), 3.0), generator=torch.Generator().manual_seed(1)).to(device)
    zeros = torch.zeros(CELLS, 1, dtype=torch.int64, device=device)
    return {"X": counts, "batch": zeros, "labels": zeros}


def make(device, **options):
    return VAE(GENES, n_hidden=8, n_latent=3, dropout_rate=0.0, **options).to(device)


def with_library():
    """Then the library size is a latent too, with a KL of its own."""
    statistics = {"library_log_means": np.full((1, 1), 3.5), "library_log_vars": np.full((1, 1), 0.5)}
    return {"use_observed_lib_size": False, **statistics}


@pytest.mark.parametrize("options", [{}, with_library()], ids=["library observed", "library latent"])
def test_the_loss_keeps_its_structure_values_and_gradients(options, backend):
    def output():
        torch.manual_seed(0)
        model = make(backend.device, **options)
        made = model(cells(backend.device), loss_kwargs={"kl_weight": 0.5})[2]
        made.loss.backward()
        return made, [p.grad for p in model.parameters() if p.grad is not None]

    theirs, gradients = output()
    with fast.patch():
        ours, our_gradients = output()
    assert type(ours) is type(theirs)
    for name in ("loss", "reconstruction_loss", "kl_local"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    assert ours.kl_local["kl_divergence_z"].shape == (CELLS,)
    torch.testing.assert_close(our_gradients, gradients)


def test_the_signature_of_loss_stays():
    """Training plans look for kl_weight in it."""
    before = inspect.signature(VAE.loss)
    with fast.patch():
        assert inspect.signature(VAE.loss) == before
        assert "kl_weight" in inspect.signature(VAE.loss).parameters


def test_the_original_comes_back():
    before = vars(VAE)["loss"]
    with fast.patch() as patch:
        assert patch.patched == ("scvi.module._vae.VAE.loss",)
        assert vars(VAE)["loss"] is not before
    assert vars(VAE)["loss"] is before


def normals(*shape, device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    loc, scale = torch.randn(2, *shape, generator=generator).to(device, dtype)
    return loc.requires_grad_(), (0.1 + scale.exp()).detach().requires_grad_()


@pytest.mark.parametrize("prior_shape", [(4, 3), (1, 3), (2, 4, 3)], ids=["same", "smaller", "larger"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kl_of_two_normals(prior_shape, dtype, backend):
    """In all four parameters; what does not fit the fused op is torch's."""
    posterior = normals(4, 3, device=backend.device, dtype=dtype)
    prior = normals(*prior_shape, device=backend.device, dtype=dtype)
    theirs = kl_divergence(Normal(*posterior), Normal(*prior))
    ours = kl_divergence(fast._fused(Normal(*posterior)), Normal(*prior))
    torch.testing.assert_close(ours, theirs)
    weights = torch.linspace(1, 2, ours.numel(), device=backend.device, dtype=dtype).view(ours.shape)
    gradients = [torch.autograd.grad((kl * weights).sum(), (*posterior, *prior)) for kl in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_other_users_of_torch_keep_their_kl(backend):
    posterior = normals(4, 3, device=backend.device)
    with fast.patch():
        kl = kl_divergence(Normal(*posterior), Normal(0.0, 1.0)).sum()
    torch.autograd.grad(torch.autograd.grad(kl, posterior[0], create_graph=True)[0].sum(), posterior[0])


def test_the_loss_curve_is_the_same(backend):
    tensors = cells(backend.device)

    def step(model, i):
        return model(tensors)[2].loss

    assert_same_curves(lambda: make(backend.device), step, fast.patch, learning_rate=1e-2)
