"""The kernels with the worst that their instructions may do: the interpreter computes each of these exactly.

PTX ISA 8.5, section 9.7.3 (div.full, rsqrt.approx, sqrt.approx, ex2.approx): the largest relative error of each; with
.ftz what is not normal, in or out, is 0. All of them at their worst, always, take up to 2.03 times the tolerance.
"""

import numpy as np
import pytest
import torch

from tests.kernels import domains, latents, outputs, scaled
from tests.kernels import test_count_likelihoods as counting
from tests.kernels import test_likelihoods as every
from tests.support import tolerance
from tests.support.environment import Backend
from vae_fast import Softplus, gaussian_kl, reconstruction_loss, sample_kl, use_backend

pytestmark = [
    pytest.mark.interpreter_only,
    pytest.mark.filterwarnings("ignore:(overflow|divide by zero|invalid value):RuntimeWarning"),
]

BACKEND = Backend("triton", "cpu")
TINY = np.finfo(np.float32).smallest_normal
LOG2_E = np.float32(1.44269504)
ERRORS = {"ex2": 2**-22, "rsqrt": 2**-22.9, "sqrt": 2**-23, "div": 2**-22}
DIRECTIONS = {
    "up": lambda x: 1.0,
    "down": lambda x: -1.0,
    "either way": lambda x: np.where(x.view(np.int32) & 1, 1.0, -1.0),
}


def _flushed(x):
    return np.where(np.abs(x) < TINY, np.copysign(np.float32(0), x), x)


@pytest.fixture(params=DIRECTIONS, autouse=True)
def _approximate(request, monkeypatch):
    """Triton's exp is ex2.approx of the rounded product, without .ftz; its exp2, rsqrt and sqrt have it."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def off(name, exact, x, *others):
        result = exact(*(a.astype(np.float64) for a in (x, *others)))
        return (result * (1 + DIRECTIONS[request.param](x) * ERRORS[name])).astype(np.float32)

    def patch(method, approximate):
        exact = getattr(InterpreterBuilder, method)

        def op(self, *args):
            arrays = [np.asarray(a.data) for a in args]
            if arrays[0].dtype != np.float32:
                return exact(self, *args)
            return TensorHandle(approximate(*arrays), args[0].dtype.scalar)

        monkeypatch.setattr(InterpreterBuilder, method, op)

    patch("create_exp", lambda x: off("ex2", np.exp2, x * LOG2_E))
    patch("create_exp2", lambda x: _flushed(off("ex2", np.exp2, _flushed(x))))
    patch("create_rsqrt", lambda x: _flushed(off("rsqrt", lambda a: 1 / np.sqrt(a), _flushed(x))))
    patch("create_sqrt", lambda x: _flushed(off("sqrt", np.sqrt, _flushed(x))))
    patch("create_fdiv", lambda x, y: off("div", np.divide, x, y))
    monkeypatch.setattr(tolerance, "SLACK", 2.1)
    with use_backend("triton"):
        yield


def test_the_instructions_are_off(request):
    a = torch.linspace(-3, 3, 64).view(1, 64)
    rough = reconstruction_loss(a, a, "continuous_bernoulli", reduction="none")
    request.getfixturevalue("monkeypatch").undo()
    assert not torch.equal(rough, reconstruction_loss(a, a, "continuous_bernoulli", reduction="none"))


@pytest.mark.parametrize("name", counting.NAMES)
def test_likelihoods_of_counts(name):
    counting.check("kernels", name, torch.float32, slack=1.2)


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("name", domains.REST)
def test_likelihoods(name, reduction):
    every.check(name, *every.leaves(name, (3, 784), BACKEND), reduction)


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("name", outputs.LIKELIHOODS)
def test_the_core_s_likelihoods(name, reduction):
    case = outputs.Case("MNIST", name, BACKEND)
    case.check(case.loss(reduction), reduction)


@pytest.mark.parametrize("reduction", ["none", "sample"])
@pytest.mark.parametrize("estimate", ["closed_form", "monte_carlo"])
@pytest.mark.parametrize("scale", scaled.SCALES)
def test_the_latent_op(scale, estimate, reduction):
    p = scaled.scaled("odd", BACKEND, scale, prior=(3, 7))
    z, kl = sample_kl(
        p.mu, p.logvar, prior=p.prior, scale=scaled.SCALES[scale], kl=estimate, seed=1, reduction=reduction
    )
    scaled.check(p, z, kl, scale=scaled.SCALES[scale], estimate=estimate, seed=1, reduction=reduction)


def test_the_kl():
    p = latents.posterior("primes", BACKEND)
    latents.check(p, None, gaussian_kl(p.mu, p.logvar, reduction="none"), reduction="none")


@pytest.mark.parametrize("value", [-88.0, -87.5, -87.0])
def test_a_softplus_that_is_hardly_normal_keeps_its_logarithm(value):
    """exp(-88) is not normal in float32: flushed to 0, the KL would be infinite."""
    mu, v = (torch.full((2, 64), a).requires_grad_() for a in (0.0, value))
    kl = gaussian_kl(mu, v, scale=Softplus(0.0), reduction="none")
    torch.testing.assert_close(kl, torch.full_like(kl, -value - 0.5), rtol=1e-3, atol=0)
    assert torch.autograd.grad(kl.sum(), v)[0].isfinite().all()


@pytest.mark.parametrize("log_scale", [-60.0, -20.0, 60.0, 88.0, 90.0, 104.0, 1e30])
def test_a_discretised_logistic_of_any_width_has_a_finite_nll(log_scale):
    mean, width = torch.full((1, 256), 0.5).requires_grad_(), torch.full((1, 256), log_scale).requires_grad_()
    target = torch.arange(256.0).view(1, 256) / 255
    exact = reconstruction_loss((mean.double(), width.double()), target, "discretized_logistic", reduction="none")
    nll = reconstruction_loss((mean, width), target, "discretized_logistic", reduction="none")
    assert (nll.isfinite() == (exact.abs() < 3e38)).all()
    if log_scale > 0:  # a bin's mass is its width's, and those of the ends are a half
        inner = slice(1, 255)
        torch.testing.assert_close(nll[:, inner].double(), exact[:, inner], rtol=1e-6, atol=0)
        (slope,) = torch.autograd.grad(nll[:, inner].sum(), width)
        torch.testing.assert_close(slope[:, inner], torch.ones(1, 254), rtol=1e-6, atol=0)
