"""What the losses say of bad arguments: each argument, each kind of wrongness."""

import math

import numpy as np
import pytest
import torch

from tests.inputs.refusals import FLOATS, not_floats, not_tensors, refuses, zeros
from vae_fast import (
    DiagonalGaussian,
    ELBOLoss,
    GaussianKL,
    ReconstructionLoss,
    elbo_loss,
    likelihoods,
    reconstruction_loss,
)

LIKELIHOODS = ", ".join(map(repr, likelihoods.LIKELIHOODS)) + ", Huber(...), StudentT(...) or Categorical(...)"
REALS = "float32, bfloat16, float16, float64, bool, uint8 or a signed integer dtype"
REDUCTIONS = "'none', 'sample', 'sum', 'mean', 'batchmean'"


def _elbo(output, target, likelihood="bernoulli"):
    return elbo_loss(output, target, zeros(4), likelihood=likelihood)


def _module(output, target, likelihood="bernoulli"):
    return ReconstructionLoss(likelihood)(output, target)


def _elbo_module(output, target, likelihood="bernoulli"):
    return ELBOLoss(likelihood)(output, target, zeros(4))


losses = pytest.mark.parametrize("loss", [reconstruction_loss, _elbo, _module, _elbo_module])


def with_kl(kl=None, **options):
    return elbo_loss(zeros(4, 6), zeros(4, 6), zeros(4) if kl is None else kl, **options)


@losses
def test_output(loss):
    target = zeros(4, 6)
    for value, name in (*not_tensors()[:2], ("logits", "str"), ({}, "dict")):
        refuses(TypeError, f"output is {name}: expected a tensor", loss, value, target)
    for dtype, name in not_floats():
        message = f"output is {name}: expected {FLOATS} logits"
        refuses(TypeError, message, loss, zeros(4, 6, dtype=dtype), target)
        message = f"output is {name}: expected {FLOATS} output"
        refuses(TypeError, message, loss, zeros(4, 6, dtype=dtype), target, "mse")
    message = "output has shape []: expected [B, ...] with the batch in dimension 0"
    refuses(ValueError, message, loss, zeros(), zeros())
    message = "output has layout torch.sparse_coo: expected a dense (strided) tensor"
    refuses(TypeError, message, loss, zeros(4, 6).to_sparse(), target)


@losses
def test_the_number_of_outputs(loss):
    good = zeros(4, 6)
    wanted = "expected one tensor (logits) for likelihood 'bernoulli'"
    for value, name in (((good, good), "a tuple of 2"), ([], "a list of 0"), ([good] * 3, "a list of 3")):
        refuses(TypeError, f"output is {name}: {wanted}", loss, value, good)
    message = "output is a tuple of 2: expected one tensor (output) for likelihood 'mse'"
    refuses(TypeError, message, loss, (good, good), good, "mse")
    wanted = "expected the tuple (mean, logvar) for likelihood 'gaussian'"
    for value, name in ((good, "one tensor"), (None, "NoneType"), (zeros(2, 4, 6), "one tensor"),
                        ((good,), "a tuple of 1"), ([good] * 3, "a list of 3")):  # fmt: skip
        refuses(TypeError, f"output is {name}: {wanted}", loss, value, good, "gaussian")


@losses
def test_the_gaussians_mean_and_logvar(loss):
    good = zeros(4, 6)
    for index, name in enumerate(("output's mean", "output's logvar")):

        def output(bad, index=index):
            return (bad, good) if index == 0 else (good, bad)

        refuses(TypeError, f"{name} is float: expected a tensor", loss, output(0.0), good, "gaussian")
        message = f"{name} is int64: expected {FLOATS} values"
        refuses(TypeError, message, loss, output(zeros(4, 6, dtype=torch.int64)), good, "gaussian")
    for shape in ((4, 5), (3, 6), (4,), (1, 4, 6), (0,)):
        message = f"output's logvar has shape {list(shape)}: expected one that expands to [4, 6], that of output's mean"
        refuses(ValueError, message, loss, (good, zeros(*shape)), good, "gaussian")
    message = "output's logvar is float64, output's mean is float16: expected float64 for both or for neither"
    refuses(TypeError, message, loss, (good.half(), good.double()), good, "gaussian")
    message = "output's logvar is on meta, output's mean is on cpu: they must be on one device"
    refuses(ValueError, message, loss, (good, zeros(4, 6, device="meta")), good, "gaussian")


@losses
def test_target(loss):
    output = zeros(4, 6)
    for value, name in not_tensors():
        refuses(TypeError, f"target is {name}: expected a tensor", loss, output, value)
    for dtype in (torch.complex64, torch.float8_e4m3fn, torch.uint16):
        name = str(dtype).removeprefix("torch.")
        message = f"target is {name}: expected {REALS}"
        refuses(TypeError, message, loss, output, zeros(4, 6, dtype=dtype))
    for shape in ((4, 1), (1, 6), (6,), (4, 5), (6, 4), (4, 6, 1), (4,)):  # most of them would broadcast
        message = f"target has shape {list(shape)}, output has [4, 6]: they must be equal"
        refuses(ValueError, message, loss, output, zeros(*shape))
    message = "target has shape [4], output's mean has [4, 6]: they must be equal"
    refuses(ValueError, message, loss, (output, output), zeros(4), "gaussian")
    message = "target is on meta, output is on cpu: they must be on one device"
    refuses(ValueError, message, loss, output, zeros(4, 6, device="meta"))
    message = "target requires a gradient, which is not made: expected one that does not, detached if none is needed"
    refuses(ValueError, message, loss, output, zeros(4, 6).requires_grad_())
    message = "target has layout torch.sparse_coo: expected a dense (strided) tensor"
    refuses(TypeError, message, loss, output, zeros(4, 6).to_sparse())


def test_a_target_that_is_differentiated_under_torch_func_is_refused():
    with pytest.raises(ValueError, match="target requires a gradient"):
        torch.func.grad(lambda x: reconstruction_loss(zeros(4, 6), x))(zeros(4, 6))


@losses
def test_likelihood(loss):
    for value in ("poison", "Bernoulli", "", None, 0, ["mse"], ("mse",), {}, "sum", torch.sigmoid):
        message = f"likelihood is {value!r}: expected one of {LIKELIHOODS}"
        refuses(ValueError, message, loss, zeros(4, 6), zeros(4, 6), value)


def test_reduction():
    for value in ("average", "latent", "", None, 0, ["sum"], np.array("sum"), np.array(["sum", "mean"]), zeros()):
        message = f"reduction is {value!r}: expected one of {REDUCTIONS}"
        refuses(ValueError, message, reconstruction_loss, zeros(4, 6), zeros(4, 6), reduction=value)
        refuses(ValueError, message, ReconstructionLoss, reduction=value)
    choices = "'none', 'sample', 'latent', 'sum', 'mean', 'batchmean'"
    refuses(ValueError, f"reduction is 'average': expected one of {choices}", GaussianKL, reduction="average")


def test_kl():
    for value, name in not_tensors()[1:]:
        refuses(TypeError, f"kl is {name}: expected a tensor", with_kl, value)
    refuses(TypeError, "kl is NoneType: expected a tensor", elbo_loss, zeros(4, 6), zeros(4, 6), None)
    for dtype in (torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64):
        name = str(dtype).removeprefix("torch.")
        refuses(TypeError, f"kl is {name}: expected float32 or float64 nats", with_kl, zeros(4, dtype=dtype))
    wanted = 'expected [4] (reduction="sample") or [] (reduction="batchmean")'
    for shape in ((1,), (5,), (4, 1), (1, 4), (4, 6), (0,)):
        refuses(ValueError, f"kl has shape {list(shape)}: {wanted}", with_kl, zeros(*shape))
    message = "kl is on meta, target is on cpu: they must be on one device"
    refuses(ValueError, message, with_kl, zeros(4, device="meta"))
    message = "kl has layout torch.sparse_coo: expected a dense (strided) tensor"
    refuses(TypeError, message, with_kl, zeros(4).to_sparse())


@pytest.mark.parametrize("call", [with_kl, lambda beta: ELBOLoss(beta=beta)(zeros(4, 6), zeros(4, 6), zeros(4))])
def test_beta(call):
    for value, name in ((None, "NoneType"), ("1", "str"), (True, "bool"), ([1.0], "list"), (1j, "complex")):
        refuses(TypeError, f"beta is {name}: expected a number or a 0-d tensor", call, beta=value)
    for value in (-1, -1e-9, math.nan, math.inf, -math.inf, np.float32(math.inf)):
        refuses(ValueError, f"beta is {value}: expected a finite number >= 0", call, beta=value)
    for dtype, name in not_floats():
        refuses(TypeError, f"beta is {name}: expected {FLOATS} values", call, beta=torch.tensor(1).to(dtype))
    for shape in ((1,), (4,), (1, 1)):
        message = f"beta has shape {list(shape)}: expected a number or a 0-d tensor"
        refuses(ValueError, message, call, beta=zeros(*shape))
    message = "beta is on meta, target is on cpu: they must be on one device"
    refuses(ValueError, message, call, beta=zeros(device="meta"))
    message = "beta requires a gradient, which is not made: expected one that does not, detached if none is needed"
    refuses(ValueError, message, call, beta=zeros().requires_grad_())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("beta", [0, 0.0, 2.5, np.float64(0.5), np.float32(0.5), np.int64(2)], ids=repr)
def test_betas_that_are_fine(beta):
    """Schedules are made with NumPy: its numbers are numbers."""
    loss = elbo_loss(zeros(4, 6), zeros(4, 6), torch.ones(4), beta=beta)
    torch.testing.assert_close(loss.total, loss.reconstruction + float(beta))


@pytest.mark.parametrize("seed", [np.int64(3), np.uint64(3), np.int32(3)], ids=repr)
def test_seeds_of_numpy_are_ints(seed):
    """As torch.manual_seed takes them."""
    wanted = DiagonalGaussian(zeros(4, 3), zeros(4, 3)).rsample(seed=3)
    assert torch.equal(DiagonalGaussian(zeros(4, 3), zeros(4, 3)).rsample(seed=seed), wanted)


@pytest.mark.parametrize("huge", [10**400, -(10**400)], ids=["huge", "minus huge"])
def test_an_int_that_no_float_holds_is_refused_by_name(huge):
    with pytest.raises(ValueError, match=r"^beta is"):
        with_kl(beta=huge)
    with pytest.raises(ValueError, match=r"^logvar_clamp is"):
        DiagonalGaussian(zeros(4, 3), zeros(4, 3), logvar_clamp=(min(huge, 0), max(huge, 0)))


def test_the_value_of_a_log_prob_is_called_value():
    gaussian = DiagonalGaussian(zeros(4, 3), zeros(4, 3))
    refuses(TypeError, "value is float: expected a tensor", gaussian.log_prob, 0.0)
    refuses(ValueError, "value has shape [4, 1], mu has [4, 3]: they must be equal", gaussian.log_prob, zeros(4, 1))
    refuses(TypeError, f"value is int64: expected {FLOATS} values", gaussian.log_prob, zeros(4, 3, dtype=torch.int64))


@pytest.mark.parametrize("make", [GaussianKL, ReconstructionLoss, ELBOLoss])
def test_modules_take_their_options_by_name(make):
    with pytest.raises(TypeError, match="positional argument"):
        make("mse", 1.0)


def test_modules_refuse_when_they_are_made():
    refuses(TypeError, "logvar_clamp is 5: expected a tuple (low, high) of numbers", GaussianKL, logvar_clamp=5)
    for make in (ReconstructionLoss, ELBOLoss):
        refuses(ValueError, f"likelihood is 'poison': expected one of {LIKELIHOODS}", make, "poison")
    refuses(ValueError, "beta is -1: expected a finite number >= 0", ELBOLoss, beta=-1)
