"""scvi-tools' VAE, patched against its own: what its loss returns, both KL terms, and 100 steps of training."""

import copy
import inspect
import pickle

import pytest
import torch
from torch.distributions import Normal, kl_divergence

pytest.importorskip("scvi", reason="scvi-tools is not installed: make test-peers", exc_type=ModuleNotFoundError)

import numpy as np
from scvi.data import synthetic_iid
from scvi.module import VAE

from tests.peers.curves import assert_same_curves
from vae_fast.integrations import counts
from vae_fast.integrations import scvi as fast

CELLS, GENES = 16, 12
LIKELIHOODS = ["nb", "zinb", "poisson"]


def cells(device):
    """scvi-tools' synthetic data as its loader gives them: two batches, counts of a zero-inflated negative binomial."""
    np.random.seed(1)  # noqa: NPY002 - the generator that it draws from
    data = synthetic_iid(batch_size=CELLS // 2, n_genes=GENES, n_proteins=0, n_regions=0)
    batch = torch.arange(CELLS).div(CELLS // 2, rounding_mode="floor").view(CELLS, 1)
    tensors = {"X": torch.from_numpy(data.X).float(), "batch": batch, "labels": torch.zeros_like(batch)}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def make(device, **options):
    return VAE(GENES, n_batch=2, n_hidden=8, n_latent=3, dropout_rate=0.0, **options).to(device)


def with_library():
    """Then the library size is a latent too, with a KL of its own."""
    statistics = {"library_log_means": np.full((1, 2), 3.5), "library_log_vars": np.full((1, 2), 0.5)}
    return {"use_observed_lib_size": False, **statistics}


OPTIONS = {
    **{kind: {"gene_likelihood": kind} for kind in (*LIKELIHOODS, "normal")},
    "a dispersion for each cell": {"gene_likelihood": "nb", "dispersion": "gene-cell"},
    "library latent": with_library(),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
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


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_the_reconstruction_is_summed_in_one_pass(kind, backend, monkeypatch):
    """And the distribution that forward() returns is theirs, whose log_prob is elementwise."""
    reductions, original = [], counts.reconstruction_loss

    def recorded(*args, reduction):
        reductions.append(reduction)
        return original(*args, reduction=reduction)

    monkeypatch.setattr(counts, "reconstruction_loss", recorded)
    model, tensors = make(backend.device, gene_likelihood=kind), cells(backend.device)
    with fast.patch():
        _, generative, output = model(tensors)
        assert reductions == ["sample"]
        assert type(generative["px"]).__module__.startswith("scvi.")
        elementwise = generative["px"].log_prob(tensors["X"])
    assert reductions == ["sample", "none"]
    torch.testing.assert_close(-elementwise.sum(-1), output.reconstruction_loss["reconstruction_loss"])


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_several_samples_of_each_cell(kind, backend):
    """The importance-weighted likelihood: x is [cells, genes], the parameters have a dimension more."""
    model, tensors = make(backend.device, gene_likelihood=kind), cells(backend.device)

    def marginal():
        torch.manual_seed(0)
        return model.marginal_ll(tensors, n_mc_samples=4, n_mc_samples_per_pass=2)

    expected = marginal()
    with fast.patch():
        torch.testing.assert_close(marginal(), expected)


@pytest.mark.parametrize("kind", LIKELIHOODS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_and_pickles_of_modules(copied, kind):
    """Made under the patch, of use without it."""
    tensors, original = cells("cpu"), make("cpu", gene_likelihood=kind)

    def loss(model):
        torch.manual_seed(0)
        return model(tensors)[2].loss

    expected = loss(original)
    with fast.patch():
        loss(original).backward()
        copy_ = copied(original)
        torch.testing.assert_close(loss(copy_), expected)
        assert b"vae_fast" not in pickle.dumps(original)
    assert torch.equal(loss(copy_), expected)


def test_the_signature_of_loss_stays():
    """Training plans look for kl_weight in it."""
    before = inspect.signature(VAE.loss)
    with fast.patch():
        assert inspect.signature(VAE.loss) == before
        assert "kl_weight" in inspect.signature(VAE.loss).parameters


def test_the_original_comes_back():
    before = vars(VAE)["loss"]
    with fast.patch() as patch:
        assert patch.patched[0] == "scvi.module._vae.VAE.loss"  # the rest: test_scvi_counts.py
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


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_the_loss_curve_is_the_same(kind, backend):
    tensors = cells(backend.device)

    def step(model, i):
        return model(tensors)[2].loss

    assert_same_curves(lambda: make(backend.device, gene_likelihood=kind), step, fast.patch, learning_rate=1e-2)


def test_a_subclass_of_normal_is_left_alone():
    class Own(Normal):
        pass

    value = Own(torch.zeros(2), torch.ones(2))
    assert fast._fused(value) is value
