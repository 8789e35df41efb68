"""The thin VAE: what it computes, and what it says of bad arguments."""

import os
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.models import VAE

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="covered on the CPU path; test_vae_interpreted.py runs here"
)

SHAPE = (3, 4, 5)


def images(batch=6):
    return torch.rand(batch, *SHAPE, generator=torch.Generator().manual_seed(0))


def mlp(**options):
    torch.manual_seed(0)
    return VAE(input_shape=SHAPE, latent_dim=2, hidden_dims=(16, 7), **options)


def convolutional(**options):
    """Latents of shape [4, 2, 2] from images [1, 8, 8]."""
    torch.manual_seed(0)
    encoder = nn.Conv2d(1, 8, kernel_size=4, stride=4)
    decoder = nn.ConvTranspose2d(4, 1, kernel_size=4, stride=4)
    return VAE(encoder=encoder, decoder=decoder, **options)


def plain_loss(model, x, eps, reconstruction):
    mu, logvar = model.encoder(x).chunk(2, dim=1)
    output = model.decoder(mu + torch.exp(logvar / 2) * eps)
    kl = -0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp())
    return reconstruction(output, x) / len(x), kl / len(x)


FORMULAS = {
    "bernoulli": lambda output, x: F.binary_cross_entropy_with_logits(output, x, reduction="sum"),
    "mse": lambda output, x: F.mse_loss(output, x, reduction="sum"),
    "gaussian": lambda output, x: F.gaussian_nll_loss(output[0], x, output[1].exp(), full=True, reduction="sum"),
}


@pytest.mark.parametrize("beta", [1.0, 0.25, 0])
@pytest.mark.parametrize("likelihood", FORMULAS)
def test_loss_and_its_gradients_are_those_of_the_plain_formula(likelihood, beta):
    model, x, eps = mlp(likelihood=likelihood, beta=beta), images(), torch.randn(6, 2)
    reconstruction, kl = plain_loss(model, x, eps, FORMULAS[likelihood])
    wanted = torch.autograd.grad(reconstruction + beta * kl, model.parameters())

    loss = model.loss(x, eps=eps)
    torch.testing.assert_close(tuple(loss), (reconstruction + beta * kl, reconstruction, kl))
    torch.testing.assert_close(torch.autograd.grad(loss.total, model.parameters()), wanted)


def test_own_modules_with_spatial_latents():
    model, x, eps = convolutional(), torch.rand(3, 1, 8, 8), torch.randn(3, 4, 2, 2)
    reconstruction, kl = plain_loss(model, x, eps, FORMULAS["bernoulli"])
    torch.testing.assert_close(model.loss(x, eps=eps).total, reconstruction + kl)
    assert model.encode(x).mode().shape == (3, 4, 2, 2)
    assert model.reconstruct(x).shape == x.shape


def test_forward_returns_every_part():
    model, x = mlp(), images()
    out = model(x, seed=1)
    assert out.output.shape == x.shape
    assert out.z.shape == out.mu.shape == out.logvar.shape == (6, 2)
    assert out.kl.shape == (6,)
    torch.testing.assert_close(out.output, model.decode(out.z))
    torch.testing.assert_close(out.mu, model.encode(x).mode())
    torch.testing.assert_close(out.kl, model.encode(x).kl(reduction="sample"))


def test_gaussian_forward_returns_mean_and_logvar():
    mean, logvar = mlp(likelihood="gaussian")(images()).output
    assert mean.shape == logvar.shape == (6, *SHAPE)


def test_seed_fixes_the_noise_and_no_seed_draws_it_anew():
    model, x = mlp(), images()
    as_tensor = torch.tensor([7])
    torch.testing.assert_close(model(x, seed=7).z, model(x, seed=as_tensor).z, rtol=0, atol=0)
    assert not torch.equal(model(x, seed=7).z, model(x, seed=8).z)
    assert not torch.equal(model(x).z, model(x).z)
    torch.manual_seed(3)
    first = model(x).z
    torch.manual_seed(3)
    torch.testing.assert_close(model(x).z, first, rtol=0, atol=0)


@pytest.mark.parametrize("likelihood", FORMULAS)
def test_generate_gives_means_of_the_likelihood(likelihood):
    model = mlp(likelihood=likelihood)
    drawn = model.generate(5, generator=torch.Generator().manual_seed(1))
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    output = model.decode(z)
    wanted = {"bernoulli": torch.sigmoid, "mse": lambda out: out, "gaussian": lambda out: out[0]}[likelihood](output)
    torch.testing.assert_close(drawn, wanted)
    assert drawn.shape == (5, *SHAPE)
    assert not drawn.requires_grad


def test_generate_with_own_modules_wants_the_shape_of_z():
    assert convolutional(latent_dim=(4, 2, 2)).generate(3).shape == (3, 1, 8, 8)
    with pytest.raises(ValueError, match=r"latent_dim is missing: to generate, .* wants the shape of a sample's z"):
        convolutional().generate(3)


def test_generate_follows_dtype():
    assert mlp().double().generate(2).dtype == torch.float64


def test_reconstruct_is_the_mean_at_the_posterior_mean():
    model, x = mlp(), images()
    mu, _ = model.encoder(x).chunk(2, dim=1)
    torch.testing.assert_close(model.reconstruct(x), torch.sigmoid(model.decoder(mu)))
    assert not model.reconstruct(x).requires_grad


def test_another_likelihood_is_seen_by_every_method():
    model, x = mlp(), images()
    model.likelihood = "mse"
    torch.testing.assert_close(model.loss(x, seed=1).reconstruction, ((model(x, seed=1).output - x) ** 2).sum() / 6)
    torch.testing.assert_close(model.reconstruct(x), model.decode(model.encode(x).mu))


def test_what_compiles_the_loss():
    """As its docstring says."""
    compiled = {}
    for way in ("the model's", "in place", "the method"):
        torch._dynamo.reset()
        model, counter = mlp(), CompileCounterWithBackend("eager")
        if way == "in place":
            model.compile(backend=counter)
        loss = torch.compile(model, backend=counter).loss if way == "the model's" else model.loss
        loss = torch.compile(loss, backend=counter) if way == "the method" else loss
        torch.testing.assert_close(loss(images(), seed=1), mlp().loss(images(), seed=1))
        compiled[way] = counter.frame_count
    assert compiled == {"the model's": 0, "in place": 1, "the method": 1}


def test_a_latent_dim_of_numpy():
    drawn = VAE(encoder=nn.Linear(4, 4), decoder=nn.Linear(2, 4), latent_dim=np.int64(2)).generate(3)
    assert drawn.shape == (3, 4)


def test_no_hidden_layers():
    model = VAE((2, 2), 1, ())
    assert len(model.encoder.layers) == len(model.decoder.layers) == 1
    assert model.loss(torch.rand(3, 2, 2)).total.isfinite()


def test_training_reduces_the_loss():
    model, x = mlp(), images()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        loss = model.loss(x, seed=step).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1


LINEAR = nn.Linear(1, 1)
BAD_ARGUMENTS = [
    ({}, ValueError, "input_shape is missing: give input_shape and latent_dim, or encoder and decoder"),
    ({"input_shape": (8,)}, ValueError, "latent_dim is missing: give input_shape and latent_dim"),
    ({"input_shape": 8, "latent_dim": 2}, TypeError, "input_shape is int: expected a sequence of ints"),
    ({"input_shape": "8", "latent_dim": 2}, TypeError, "input_shape is str: expected a sequence of ints"),
    ({"input_shape": (), "latent_dim": 2}, ValueError, "input_shape is empty: expected one size or more"),
    ({"input_shape": (8, 0), "latent_dim": 2}, ValueError, r"input_shape\[1\] is 0: expected 1 or more"),
    ({"input_shape": (8.0,), "latent_dim": 2}, TypeError, r"input_shape\[0\] is float: expected an int"),
    ({"input_shape": (8,), "latent_dim": 0}, ValueError, "latent_dim is 0: expected 1 or more"),
    ({"input_shape": (8,), "latent_dim": True}, TypeError, "latent_dim is bool: expected an int"),
    ({"input_shape": (8,), "latent_dim": (2,)}, TypeError, "latent_dim is tuple: expected an int"),
    ({"input_shape": (8,), "latent_dim": 2, "hidden_dims": 256}, TypeError, "hidden_dims is int: expected a sequence"),
    ({"input_shape": (8,), "latent_dim": 2, "hidden_dims": (4, -1)}, ValueError, r"hidden_dims\[1\] is -1: expected 1"),
    (
        {"input_shape": (8,), "latent_dim": 2, "likelihood": "poison"},
        ValueError,
        "likelihood is 'poison': .*'bernoulli'",
    ),
    ({"input_shape": (8,), "latent_dim": 2, "beta": -1}, ValueError, "beta is -1: expected a finite number >= 0"),
    ({"input_shape": (8,), "latent_dim": 2, "beta": float("nan")}, ValueError, "beta is nan: expected a finite number"),
    ({"input_shape": (8,), "latent_dim": 2, "beta": "1"}, TypeError, "beta is str: expected a number"),
    ({"encoder": LINEAR}, ValueError, "decoder is missing: give encoder and decoder together, or neither"),
    ({"decoder": LINEAR}, ValueError, "encoder is missing: give encoder and decoder together, or neither"),
    (
        {"encoder": LINEAR, "decoder": torch.relu},
        TypeError,
        "decoder is builtin_function_or_method: expected a torch.nn",
    ),
    (
        {"encoder": LINEAR, "decoder": LINEAR, "hidden_dims": (4,)},
        ValueError,
        r"hidden_dims is \(4,\): it describes the",
    ),
    (
        {"encoder": LINEAR, "decoder": LINEAR, "input_shape": (4,)},
        ValueError,
        r"input_shape is \(4,\): it describes the",
    ),
    ({"encoder": LINEAR, "decoder": LINEAR, "latent_dim": "4"}, TypeError, "latent_dim is str: expected a sequence"),
    ({"encoder": LINEAR, "decoder": LINEAR, "latent_dim": 0}, ValueError, r"latent_dim\[0\] is 0: expected 1 or more"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_ARGUMENTS)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        VAE(**arguments)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1.0]], TypeError, "x is list: expected a tensor"),
        (torch.rand(6, 3, 4), ValueError, r"x has shape \[6, 3, 4\]: expected \[B, 3, 4, 5\]"),
        (torch.rand(SHAPE), ValueError, r"x has shape \[3, 4, 5\]: expected \[B, 3, 4, 5\]"),
        (torch.rand(()), ValueError, r"x has shape \[\]: expected \[B, 3, 4, 5\]"),
        (torch.zeros(6, *SHAPE, dtype=torch.uint8), TypeError, "x is uint8: expected a floating point tensor"),
        (torch.rand(6, *SHAPE).double(), TypeError, "x is float64, the model is float32: expected float64 for both"),
    ],
)
@pytest.mark.parametrize("method", ["forward", "loss", "encode", "reconstruct"])
def test_bad_x(method, x, error, message):
    with pytest.raises(error, match=f"^{message}"):
        getattr(mlp(), method)(x)


def test_bad_z():
    with pytest.raises(ValueError, match=r"^z has shape \[6, 3\]: expected \[B, 2\]"):
        mlp().decode(torch.rand(6, 3))


@pytest.mark.parametrize(("number", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_bad_num_samples(number, error):
    with pytest.raises(error, match="^num_samples is "):
        mlp().generate(number)


def test_a_decoder_without_the_second_parameter():
    with pytest.raises(TypeError, match=r"output is one tensor: expected the tuple \(mean, logvar\)"):
        convolutional(likelihood="gaussian").loss(torch.rand(3, 1, 8, 8))


def test_an_encoder_with_an_odd_number_of_moments():
    model = VAE(encoder=nn.Linear(4, 3), decoder=nn.Linear(1, 4))
    with pytest.raises(ValueError, match="moments has size 3 along dim 1: expected an even size"):
        model.loss(torch.rand(2, 4))


def test_the_decoder_has_the_hidden_layers_in_reverse():
    decoder = VAE((4, 5), 2, (7, 6)).decoder
    assert [layer.out_features for layer in decoder.layers[::2]] == [6, 7, 20]


def test_a_decoder_without_weights_generates():
    model = VAE(encoder=nn.Linear(4, 6), decoder=nn.Identity(), latent_dim=3)
    assert model.generate(2).shape == (2, 3)


@pytest.mark.parametrize("beta", [0.5, torch.tensor(0.25), "high"])
def test_repr_names_likelihood_and_beta(beta):
    """Whatever was set since, an error is for `loss` to raise."""
    model = mlp(likelihood="mse")
    model.beta = beta
    assert f"likelihood='mse', beta={beta}" in repr(model)


@pytest.mark.parametrize("likelihood", [name for name, row in LIKELIHOODS.items() if row.domain != "classes"])
def test_a_model_can_be_pickled(likelihood):
    model = VAE((2, 3), 2, likelihood=likelihood)
    again = pickle.loads(pickle.dumps(model))
    x = torch.ones(4, 2, 3)
    assert torch.equal(again.loss(x, seed=1).total, model.loss(x, seed=1).total)


A = torch.tensor([-80.0, -3.0, -1e-4, 0.0, 1e-7, 0.02, 2.0, 80.0])
C = torch.tensor([0.5, 3.0, 20.0, 0.1, 1.0, 2.0, 4.0, 7.0])
MEANS = {
    "bernoulli": ((A,), torch.sigmoid(A)),
    "continuous_bernoulli": ((A,), torch.where(A.abs() < 0.01, 0.5 + A / 12, 0.5 / torch.tanh(A / 2) - 1 / A + 0.5)),
    "poisson": ((C.log(),), C),
    "negative_binomial": ((C, C.flip(0)), C),
    "zero_inflated_negative_binomial": ((C, C.flip(0), A), C * (1 - torch.sigmoid(A.double())).float()),
    "categorical": ((A,), torch.softmax(A, 0)),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_means(name):
    row = LIKELIHOODS[name]
    params, wanted = MEANS.get(name, ((A, C)[: len(row.parameters)], A))  # of the others it is the first parameter
    torch.testing.assert_close(row.mean(*params), wanted, rtol=1e-5, atol=1e-6)
