"""What the categorical likelihood says of bad arguments, before anything runs."""

import numpy as np
import pytest
import torch

from tests.inputs.refusals import FLOATS, not_floats, not_tensors, refuses, zeros
from vae_fast import VAE, Categorical, ELBOLoss, ReconstructionLoss, elbo_loss, reconstruction_loss

KINDS = ("categorical", Categorical(), Categorical(ignore_index=-100))


def indices(*shape, **options):
    return torch.zeros(shape, **{"dtype": torch.int64, **options})


def _loss(output, target, likelihood="categorical"):
    return reconstruction_loss(output, target, likelihood)


def _elbo(output, target, likelihood="categorical"):
    return elbo_loss(output, target, zeros(4), likelihood=likelihood)


def _module(output, target, likelihood="categorical"):
    return ReconstructionLoss(likelihood)(output, target)


def _elbo_module(output, target, likelihood="categorical"):
    return ELBOLoss(likelihood, free_bits=1.0)(output, target, zeros(4))


losses = pytest.mark.parametrize("loss", [_loss, _elbo, _module, _elbo_module])


@losses
def test_target(loss):
    output = zeros(4, 3, 6)
    for value, name in not_tensors():
        refuses(TypeError, f"target is {name}: expected a tensor", loss, output, value)
    wanted = "expected int64, int32, int16, int8 or uint8 class indices"
    for dtype in (torch.float32, torch.bfloat16, torch.bool, torch.complex64, torch.uint16):
        name = str(dtype).removeprefix("torch.")
        refuses(TypeError, f"target is {name}: {wanted}", loss, output, zeros(4, 3, dtype=dtype))
    for shape in ((4,), (4, 1), (3, 4), (4, 3, 6), (4, 3, 1), ()):
        message = f"target has shape {list(shape)}, output has [4, 3, 6]: expected [4, 3], all but the classes"
        refuses(ValueError, message, loss, output, indices(*shape))
    message = "target is on meta, output is on cpu: they must be on one device"
    refuses(ValueError, message, loss, output, indices(4, 3, device="meta"))
    message = "target has layout torch.sparse_coo: expected a dense (strided) tensor"
    refuses(TypeError, message, loss, output, indices(4, 3).to_sparse())


@losses
def test_output(loss):
    target = indices(4)
    for dtype, name in not_floats():
        refuses(TypeError, f"output is {name}: expected {FLOATS} logits", loss, zeros(4, 6, dtype=dtype), target)
    for shape in ((4,), (4, 0)):
        message = f"output has shape {list(shape)}: expected [B, ..., K] with K of 1 or more classes"
        refuses(ValueError, message, loss, zeros(*shape), target)
    wanted = "expected one tensor (logits) for likelihood 'categorical'"
    refuses(TypeError, f"output is a tuple of 2: {wanted}", loss, (zeros(4, 6), zeros(4, 6)), target)


@pytest.mark.parametrize("likelihood", KINDS, ids=repr)
def test_weight(likelihood):
    """It is one of each element, not of each class."""

    def elbo(output, target, likelihood, **options):
        return elbo_loss(output, target, zeros(4), likelihood=likelihood, **options).total

    arguments = zeros(4, 3, 6), indices(4, 3), likelihood
    for call in (reconstruction_loss, elbo):
        wanted = "target has [4, 3]: expected [4], one a sample, or 2 dimensions, each 1 or the target's"
        for shape in ((), (3,), (4, 6), (4, 3, 6), (4, 3, 1)):
            refuses(ValueError, f"weight has shape {list(shape)}, {wanted}", call, *arguments, weight=zeros(*shape))
        message = "weight is int64: expected bool, float32, bfloat16, float16 or float64"
        refuses(TypeError, message, call, *arguments, weight=indices(4, 3))
        for shape in ((4,), (4, 3), (4, 1), (1, 3), (1, 1)):
            assert call(*arguments, weight=zeros(*shape)) == 0


def test_integer_targets_are_for_classes_alone():
    """A float target of the output's shape is what every other likelihood takes."""
    with pytest.raises(ValueError, match=r"target has shape \[4\], output has \[4, 6\]"):
        reconstruction_loss(zeros(4, 6), zeros(4))


def test_ignore_index():
    for value, name in ((1.0, "float"), ("1", "str"), (True, "bool"), (indices(1), "Tensor")):
        refuses(TypeError, f"ignore_index is {name}: expected an int or None", Categorical, value)
    for value in (2**63, -(2**63) - 1):
        refuses(ValueError, f"ignore_index is {value}: expected an int in [-2^63, 2^63)", Categorical, value)


def test_categoricals_are_values():
    assert Categorical(np.int64(3)) == Categorical(ignore_index=3)
    assert repr(Categorical(-100)) == "Categorical(ignore_index=-100)"
    assert len({Categorical(), Categorical(None), Categorical(0)}) == 2
    assert repr(ReconstructionLoss(Categorical(0))).startswith("ReconstructionLoss(Categorical(ignore_index=0)")
    with pytest.raises(AttributeError):
        Categorical().ignore_index = 3


@pytest.mark.parametrize("likelihood", KINDS, ids=repr)
def test_in_the_modules(likelihood):
    output, target = torch.randn(4, 3, 6), torch.randint(0, 6, (4, 3))
    loss = reconstruction_loss(output, target, likelihood)
    assert ReconstructionLoss(likelihood)(output, target) == loss
    assert ELBOLoss(likelihood, free_bits=1.0)(output, target, torch.zeros(4)).total == loss + 1


class TestVAE:
    @pytest.fixture
    def modules(self):
        nn = torch.nn
        encoder = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 8))
        decoder = nn.Sequential(nn.Linear(4, 15), nn.Unflatten(1, (3, 5)))
        return {"encoder": encoder, "decoder": decoder, "latent_dim": 4}

    def test_of_your_own_modules(self, modules):
        x = torch.randint(0, 5, (7, 3))
        model = VAE(**modules, likelihood=Categorical(ignore_index=0))
        loss = model.loss(x, seed=0)
        out = model(x, seed=0)
        expected = reconstruction_loss(out.output, x, Categorical(ignore_index=0)) + out.kl.mean()
        torch.testing.assert_close(loss.total, expected)
        probabilities = model.reconstruct(x)
        assert probabilities.shape == (7, 3, 5)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(7, 3))

    def test_the_built_in_mlp_is_refused(self):
        with pytest.raises(ValueError, match="likelihood is 'categorical', of class indices.*give encoder and decoder"):
            VAE((3,), 4, likelihood="categorical")

    def test_only_a_name_is_saved(self, modules, tmp_path):
        with pytest.raises(TypeError, match=r"likelihood is Categorical\(ignore_index=0\): expected a name"):
            VAE(**modules, likelihood=Categorical(0)).save(tmp_path)


@pytest.mark.parametrize("value", [torch.tensor([True, False]), {}, "no"], ids=repr)
def test_binarize_is_a_bool(value):
    with pytest.raises(TypeError, match=rf"^binarize is {type(value).__name__}: expected a bool$"):
        reconstruction_loss(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64), "categorical", binarize=value)
