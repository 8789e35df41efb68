"""What the losses say of bad scales, weights and seeds of a target."""

import math

import pytest
import torch

from tests.inputs.refusals import FLOATS, not_tensors, refuses, zeros
from vae_fast import ELBOLoss, ReconstructionLoss, elbo_loss, reconstruction_loss


def _reconstruction(likelihood="bernoulli", **options):
    return reconstruction_loss(zeros(4, 6), zeros(4, 6), likelihood, **options)


def _elbo(likelihood="bernoulli", **options):
    return elbo_loss(zeros(4, 6), zeros(4, 6), zeros(4), likelihood=likelihood, **options)


losses = pytest.mark.parametrize("loss", [_reconstruction, _elbo])
modules = pytest.mark.parametrize("module", [ReconstructionLoss, ELBOLoss])


@pytest.mark.parametrize("loss", [_reconstruction, _elbo, ReconstructionLoss, ELBOLoss])
def test_target_scale(loss):
    for value, name in (("1", "str"), (True, "bool"), ([1.0], "list"), (1j, "complex"), (torch.tensor(1.0), "Tensor")):
        refuses(TypeError, f"target_scale is {name}: expected a number", loss, target_scale=value)
    for value in (-1, math.nan, math.inf):
        refuses(ValueError, f"target_scale is {value}: expected a finite number >= 0", loss, target_scale=value)


@losses
def test_weight(loss):
    for value, name in not_tensors()[1:]:
        refuses(TypeError, f"weight is {name}: expected a tensor", loss, weight=value)
    for dtype in (torch.int64, torch.uint8, torch.complex64):
        name = str(dtype).removeprefix("torch.")
        refuses(TypeError, f"weight is {name}: expected bool, {FLOATS}", loss, weight=zeros(4, dtype=dtype))
    wanted = "target has [4, 6]: expected [4], one a sample, or 2 dimensions, each 1 or the target's"
    for shape in ((), (6,), (1,), (5,), (4, 5), (2, 6), (1, 4, 6), (4, 6, 1), (0,)):
        refuses(ValueError, f"weight has shape {list(shape)}, {wanted}", loss, weight=zeros(*shape))
    message = "weight is on meta, target is on cpu: they must be on one device"
    refuses(ValueError, message, loss, weight=zeros(4, device="meta"))
    message = "weight requires a gradient, which is not made: expected one that does not, detached if none is needed"
    refuses(ValueError, message, loss, weight=zeros(4).requires_grad_())
    message = "weight has layout torch.sparse_coo: expected a dense (strided) tensor"
    refuses(TypeError, message, loss, weight=zeros(4, 6).to_sparse())


def test_one_weight_for_each_of_a_square_batch_is_one_a_sample():
    """[4] with a target of [4, 4]: the only shape that could be read in two ways."""
    output, weight = torch.ones(4, 4), torch.tensor([1.0, 0.0, 0.0, 0.0])
    loss = reconstruction_loss(output, zeros(4, 4), "mse", reduction="sample", weight=weight)
    assert loss.tolist() == [4.0, 0.0, 0.0, 0.0]
    loss = reconstruction_loss(output, zeros(4, 4), "mse", reduction="sample", weight=weight[None])
    assert loss.tolist() == [1.0] * 4


@pytest.mark.parametrize("loss", [_reconstruction, _elbo, ReconstructionLoss, ELBOLoss])
def test_binarize(loss):
    for value, name in ((None, "NoneType"), (1, "int"), ("yes", "str")):
        refuses(TypeError, f"binarize is {name}: expected a bool", loss, binarize=value)
    for likelihood in ("mse", "gaussian"):
        output = (zeros(4, 6),) * 2 if likelihood == "gaussian" else zeros(4, 6)
        message = f"binarize is True: expected likelihood 'bernoulli', it is {likelihood!r}"
        if loss in (ReconstructionLoss, ELBOLoss):
            refuses(ValueError, message, loss, likelihood, binarize=True)
        else:
            refuses(ValueError, message, reconstruction_loss, output, zeros(4, 6), likelihood, binarize=True)


@losses
def test_seed_and_generator(loss):
    generator = torch.Generator()
    for name, value in (("seed", 0), ("generator", generator)):
        message = f"{name} was given without binarize=True: nothing is drawn"
        refuses(ValueError, message, loss, **{name: value})
    message = "seed and generator were given: expected at most one of seed and generator"
    refuses(ValueError, message, loss, binarize=True, seed=0, generator=generator)
    message = "seed is float: expected an int or an int64 tensor of one element"
    refuses(TypeError, message, loss, binarize=True, seed=0.5)
    refuses(ValueError, "seed has shape [2]: expected one element", loss, binarize=True, seed=torch.zeros(2).long())
    message = "seed is on meta, target is on cpu: they must be on one device"
    refuses(ValueError, message, loss, binarize=True, seed=torch.zeros(1, device="meta").long())
    refuses(TypeError, "generator is int: expected torch.Generator", loss, binarize=True, generator=3)


def test_modules_hand_their_options_on():
    output, target, weight = zeros(4, 6), torch.full((4, 6), 100, dtype=torch.uint8), torch.arange(4.0)
    options = {"target_scale": 1 / 200, "binarize": True}
    wanted = reconstruction_loss(output, target, weight=weight, seed=3, **options)
    loss = ReconstructionLoss(**options)
    assert torch.equal(loss(output, target, weight=weight, seed=3), wanted)
    assert repr(loss) == "ReconstructionLoss('bernoulli', reduction='batchmean', target_scale=0.005, binarize=True)"
    for bounds in ({}, {"free_bits": 0.0}):
        loss = ELBOLoss(**options, **bounds)
        assert torch.equal(loss(output, target, zeros(4), weight=weight, seed=3).reconstruction, wanted)
        assert repr(loss).endswith("target_scale=0.005, binarize=True)")
    assert "target_scale" not in repr(ReconstructionLoss())
