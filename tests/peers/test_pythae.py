"""pythae's losses, patched against its own: what is returned, gradients, 100 steps of training."""

import pytest
import torch

pytest.importorskip("pythae", reason="pythae is not installed: make test-peers", exc_type=ModuleNotFoundError)

from pythae import models

from tests.peers.curves import assert_same_curves
from vae_fast.integrations import pythae as fast

CLASSES = [models.VAE, models.BetaVAE, models.DisentangledBetaVAE]
OPTIONS = {
    models.VAE: {},
    models.BetaVAE: {"beta": 3.0},
    models.DisentangledBetaVAE: {"beta": 3.0, "C": 2.0, "warmup_epoch": 9},
}


def make(cls, reconstruction_loss="mse", **options):
    config = getattr(models, f"{cls.__name__}Config")
    options = {"input_dim": (1, 2, 3), **OPTIONS[cls], **options}
    return cls(config(latent_dim=2, reconstruction_loss=reconstruction_loss, **options))


def problem(device):
    """recon_x (probabilities), x, mu, log_var and z, of 5 samples."""
    generator = torch.Generator().manual_seed(3)
    recon_x, x = torch.rand(2, 5, 1, 2, 3, generator=generator).to(device)
    mu, log_var, z = torch.randn(3, 5, 2, generator=generator).to(device)
    return [t.clone().requires_grad_() for t in (recon_x, mu, log_var)], x, z


def call(model, tensors, x, z, *epoch):
    recon_x, mu, log_var = tensors
    return model.loss_function(recon_x, x, mu, log_var, z, *epoch)


def values_and_gradients(model, device, *epoch):
    tensors, x, z = problem(device)
    values = call(model, tensors, x, z, *epoch)
    assert [value.shape for value in values] == [()] * 3
    gradients = [torch.autograd.grad(v, tensors, retain_graph=True, allow_unused=True) for v in values]
    return values, gradients


def epochs(cls):
    return [(0,), (4,), (40,)] if cls is models.DisentangledBetaVAE else [()]


@pytest.mark.parametrize("kind", ["mse", "bce"])
@pytest.mark.parametrize("cls", CLASSES)
def test_values_and_gradients(cls, kind, backend):
    model = make(cls, kind)
    for epoch in epochs(cls):
        theirs = values_and_gradients(model, backend.device, *epoch)
        with fast.patch():
            ours = values_and_gradients(model, backend.device, *epoch)
        torch.testing.assert_close(ours, theirs)


def test_the_reconstruction_is_half_the_squared_error(backend):
    tensors, x, z = problem(backend.device)
    with fast.patch():
        _, reconstruction, _ = call(make(models.VAE), tensors, x, z)
    torch.testing.assert_close(reconstruction, (tensors[0] - x).square().sum() / 10)


def test_the_capacity_is_compared_with_each_sample(backend):
    """The mean of abs(KL - C), not abs of the mean: here the two differ."""
    tensors, x, z = problem(backend.device)
    _, mu, log_var = tensors
    kl = (mu.square() + log_var.exp() - 1 - log_var).sum(1) / 2
    capacity = kl.median().item()
    model = make(models.DisentangledBetaVAE, C=capacity, warmup_epoch=0, beta=2.0)
    with fast.patch():
        loss, reconstruction, returned = call(model, tensors, x, z, 1)
    torch.testing.assert_close(loss - reconstruction, 2 * (kl - capacity).abs().mean())
    torch.testing.assert_close(returned, kl.mean())
    assert (kl - capacity).abs().mean() > (kl.mean() - capacity).abs() + 0.1


OTHERS = {
    "bytes": lambda recon_x, x, mu, log_var: (recon_x, (255 * x).to(torch.uint8), mu, log_var),
    "an x with a gradient": lambda recon_x, x, mu, log_var: (recon_x, x.clone().requires_grad_(), mu, log_var),
    "a shared variance": lambda recon_x, x, mu, log_var: (recon_x, x, mu, log_var[:1, :1]),
    "a variance of each latent": lambda recon_x, x, mu, log_var: (recon_x, x, mu, log_var[0]),
    "one number for each image": lambda recon_x, x, mu, log_var: (recon_x[:, 0, 0, :1], x, mu, log_var),
    "a double variance": lambda recon_x, x, mu, log_var: (recon_x, x, mu, log_var.double()),
    "a double x": lambda recon_x, x, mu, log_var: (recon_x, x.double(), mu, log_var),
    "latents of two dimensions": lambda recon_x, x, mu, log_var: (recon_x, x, mu[:, None], log_var[:, None]),
    "two draws of each latent": lambda recon_x, x, mu, log_var: (
        recon_x,
        x,
        torch.cat([mu] * 2),
        torch.cat([log_var] * 2),
    ),
    "latents without a batch": lambda recon_x, x, mu, log_var: (recon_x, x, mu[0], log_var[0]),
}


@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("cls", CLASSES)
def test_what_the_fused_losses_do_not_take_is_theirs(cls, name, backend):
    """Bytes they would take as pixels, and divide by 255."""
    (recon_x, mu, log_var), x, z = problem(backend.device)
    recon_x, x, mu, log_var = OTHERS[name](recon_x, x, mu, log_var)
    model, epoch = make(cls), epochs(cls)[-1]

    def outcome():
        try:
            return model.loss_function(recon_x, x, mu, log_var, z, *epoch)
        except Exception as error:
            return [torch.tensor(0.0), repr(error)]

    theirs = outcome()
    with fast.patch():
        ours = outcome()
    torch.testing.assert_close(ours[0], theirs[0])
    assert [str(o) for o in ours[1:]] == [str(t) for t in theirs[1:]]


def test_arguments_by_name(backend):
    (recon_x, mu, log_var), x, z = problem(backend.device)
    model = make(models.VAE)
    expected = call(model, (recon_x, mu, log_var), x, z)
    with fast.patch():
        torch.testing.assert_close(model.loss_function(recon_x=recon_x, x=x, mu=mu, log_var=log_var, z=z), expected)


def test_bce_takes_probabilities_also_where_they_saturate(backend):
    """Of sigmoid(-200), whose log PyTorch stops at -100; with logits the loss would be 200."""
    tensors, x, z = problem(backend.device)
    tensors[0] = torch.sigmoid(torch.tensor([-200.0, -30.0, -20.0, 20.0, 200.0, 0.0], device=backend.device))
    tensors[0] = tensors[0].expand(5, 6).reshape(5, 1, 2, 3).clone().requires_grad_()
    for target in (torch.zeros_like(x), torch.ones_like(x)):
        results = []
        for patch in (False, True):
            if patch:
                fast.patch()
            reconstruction = call(make(models.VAE, "bce"), tensors, target, z)[1]
            results.append((reconstruction, torch.autograd.grad(reconstruction, tensors[0])))
        fast.unpatch()
        torch.testing.assert_close(*results)


def test_an_unknown_reconstruction_loss_is_named(backend):
    tensors, x, z = problem(backend.device)
    model = make(models.VAE)
    model.model_config.reconstruction_loss = "l1"
    with fast.patch(), pytest.raises(ValueError, match="reconstruction_loss is 'l1'"):
        call(model, tensors, x, z)


def test_the_output_keeps_its_structure(backend):
    """ModelOutput with the same keys, and the same numbers: pythae draws the noise."""

    def output(cls):
        torch.manual_seed(0)
        model = make(cls).to(backend.device)
        return model({"data": problem(backend.device)[1]})

    for cls in CLASSES:
        theirs = output(cls)
        with fast.patch():
            ours = output(cls)
        assert type(ours) is type(theirs)
        torch.testing.assert_close(dict(ours), dict(theirs))
        assert torch.equal(ours.z, theirs.z)


def test_the_originals_come_back():
    before = {cls: vars(cls)["loss_function"] for cls in CLASSES}
    with fast.patch() as patch:
        assert len(patch.patched) == 3
        assert "pythae.models.vae.vae_model.VAE.loss_function" in patch.patched
        assert all(vars(cls)["loss_function"] is not before[cls] for cls in CLASSES)
    assert all(vars(cls)["loss_function"] is before[cls] for cls in CLASSES)


@pytest.mark.parametrize("kind", ["mse", "bce"])
@pytest.mark.parametrize("cls", CLASSES)
def test_the_loss_curve_is_the_same(cls, kind, backend):
    """The data keep the losses away from 0, and the capacity stays above the KL: at abs()'s kink rounding decides."""
    pattern, noise = torch.rand(16, 24, generator=torch.Generator().manual_seed(1)).split([1, 15])
    x = (0.6 * pattern.round() + 0.4 * noise).view(15, 1, 4, 6).to(backend.device)
    options = {"beta": 0.1, "C": 30.0, "warmup_epoch": 1} if cls is models.DisentangledBetaVAE else {}

    def step(model, i):
        return model({"data": x}, epoch=i).loss

    def model():
        return make(cls, kind, input_dim=(1, 4, 6), **options).to(backend.device)

    assert_same_curves(model, step, fast.patch)
