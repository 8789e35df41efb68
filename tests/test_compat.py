"""vae_loss against the formula that it stands for, saturated probabilities included."""

import doctest

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.ops.cases import values
from vae_fast import compat
from vae_fast.compat import vae_loss


def theirs(recon_x, x, mu, logvar):
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return F.binary_cross_entropy(recon_x, x.view(-1, 6), reduction="sum") + kl


@pytest.fixture
def problem(backend):
    """Probabilities [4, 6], images [4, 1, 2, 3], mu and logvar [4, 3]."""
    shapes = ((4, 6), (4, 1, 2, 3), (4, 3), (4, 3))
    recon_x, x, mu, logvar = (values(*shape, device=backend.device, seed=i) for i, shape in enumerate(shapes))
    return [t.requires_grad_() for t in (recon_x, mu - 0.5, logvar - 0.5)], x


def test_values_and_gradients(problem):
    (recon_x, mu, logvar), x = problem
    ours, expected = (loss(recon_x, x, mu, logvar) for loss in (vae_loss, theirs))
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, (recon_x, mu, logvar)) for loss in (ours, expected)))


def test_saturated_probabilities(backend):
    """The log stops at -100, and the gradient is that of the probabilities: not what logits would give."""
    logits = torch.tensor([[-200.0, -30.0, -20.0, 20.0, 200.0, 0.0]], device=backend.device, requires_grad=True)
    x, zero = torch.ones_like(logits), torch.zeros(1, 1, device=backend.device)
    for target in (x, 1 - x):
        ours, expected = (loss(torch.sigmoid(logits), target, zero, zero) for loss in (vae_loss, theirs))
        torch.testing.assert_close(ours, expected)
        gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, expected)]
        torch.testing.assert_close(*gradients)
        assert ours.isfinite()
    gradient = torch.autograd.grad(vae_loss(torch.sigmoid(logits), x, zero, zero), logits)[0]
    torch.testing.assert_close(gradient[0, [1, 2, 3]].cpu(), torch.tensor([-0.094, -1.0, 0.0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")], ids=str)
def test_dtypes(problem, dtypes):
    """Of the probabilities and of the data. The loss is float32, where PyTorch refuses the data or returns bfloat16."""
    (recon_x, mu, logvar), x = problem
    recon_x = recon_x.detach().to(getattr(torch, dtypes[0])).requires_grad_()
    x, mu, logvar = x.round().to(getattr(torch, dtypes[1])), mu.detach().float(), logvar.detach().float()
    ours, expected = vae_loss(recon_x, x, mu, logvar), theirs(recon_x.float(), x.float(), mu, logvar)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, recon_x)[0] for loss in (ours, expected)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool], ids=str)
def test_data_that_are_not_floats_are_refused(problem, dtype):
    (recon_x, mu, logvar), x = problem
    with pytest.raises(TypeError, match=r"^x is (uint8|bool): expected float32, bfloat16, float16 or float64"):
        vae_loss(recon_x, x.to(dtype), mu, logvar)


@pytest.mark.filterwarnings("ignore:invalid value encountered in log:RuntimeWarning")  # numpy, in the interpreter
def test_outside_of_0_and_1_the_loss_is_not_a_number(problem):
    (recon_x, mu, logvar), x = problem
    for offset in (-1.5, 1.5):
        assert vae_loss(recon_x + offset, x, mu, logvar).isnan()


def test_another_number_of_elements_is_refused(problem):
    (recon_x, mu, logvar), x = problem
    with pytest.raises(ValueError, match=r"x has shape \[2, 1, 2, 3\], recon_x has \[4, 6\]"):
        vae_loss(recon_x, x[:2], mu, logvar)


def test_the_example_in_the_docstring():
    names = {"torch": torch}
    result = doctest.testmod(compat, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert (result.failed, result.attempted) == (0, 2)


@pytest.mark.parametrize("value", [[1.0], None, np.ones(3)], ids=repr)
def test_what_is_no_tensor_is_named(value):
    x, mu = torch.rand(2, 3), torch.zeros(2, 4)
    kind = type(value).__name__
    with pytest.raises(TypeError, match=rf"^recon_x is {kind}: expected a tensor$"):
        vae_loss(value, x, mu, mu)
    with pytest.raises(TypeError, match=rf"^x is {kind}: expected a tensor$"):
        vae_loss(x, value, mu, mu)


def test_only_the_number_of_elements_counts():
    mu = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"x has shape \[2, 5\], recon_x has \[2, 3\]"):
        vae_loss(torch.rand(2, 3), torch.rand(2, 5), mu, mu)
    vae_loss(torch.rand(2, 3), torch.rand(1, 6), mu, mu)
