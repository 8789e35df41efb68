"""Every likelihood beyond the core's: value and gradient, over its domain, in each dtype and on each backend."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.kernels import domains
from tests.kernels.latents import DTYPES, like_output
from tests.kernels.recording import bytes_moved
from tests.support.tolerance import FLOAT64, RELATIVE, assert_close, assert_loss_close
from tests.support.ulp import to_numpy
from vae_fast import Huber, StudentT, elbo_loss, reconstruction_loss, use_backend
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.reference import likelihoods as reference
from vae_fast.reference import reductions

# NumPy's, in the interpreter
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|divide by zero|invalid value):RuntimeWarning")

NAN = float("nan")


def test_the_terms_of_every_likelihood_are_stated():
    assert set(domains.TERMS) == {*domains.REST, "gaussian"}  # outputs.py has the others


def single(params):
    return params[0] if len(params) == 1 else tuple(params)


def leaves(name, shape, backend, dtype=torch.float32, target_dtype=None, **options):
    params, target = domains.draw(name, shape, dtype, target_dtype, **options)
    return [p.to(backend.device).requires_grad_() for p in params], target.to(backend.device)


def check(name, params, target, reduction):
    """The loss and its gradients for a random upstream gradient."""
    loss = reconstruction_loss(single(params), target, name, reduction=reduction)
    dtype = torch.float64 if params[0].dtype == torch.float64 else torch.float32
    scaled = target.dtype == torch.uint8
    x = to_numpy(target.to(dtype) * (1 / 255 if scaled else 1))
    nll, derivatives, terms, derivative_terms, exponent = domains.oracle(name, list(map(to_numpy, params)), x, scaled)
    expected, sizes = (reductions.reduce(value, reduction) for value in (nll, terms))
    # the gamma functions hold 1e-13 in float64
    relative = 1e-13 / FLOAT64 if dtype == torch.float64 and LIKELIHOODS[name].domain == "counts" else RELATIVE
    if reduction == "none":
        assert_close(loss, expected, terms=sizes, exponent=exponent, relative=relative)
    else:
        assert_loss_close(loss, expected, sizes, relative=relative)
    upstream = like_output(loss)
    grads = torch.autograd.grad(loss, params, upstream)
    g = reductions.expand(to_numpy(upstream), nll.shape, reduction)
    for grad, param, derivative, size in zip(grads, params, derivatives, derivative_terms, strict=True):
        assert grad.dtype == param.dtype
        # made in forward for an upstream gradient of 1, bfloat16 is rounded a second time
        atol = torch.finfo(grad.dtype).eps * np.abs(g * derivative) if grad.dtype == torch.bfloat16 else 0.0
        assert_close(grad, g * derivative, terms=np.abs(g) * size, exponent=exponent, atol=atol, relative=relative)


SHAPES = [
    (1, 1),  # the smallest
    (3, 784),  # MNIST: not a multiple of any tile
    (257, 31),  # primes: every tail is masked
    (2, 4096),  # whole tiles, and the longest row of one program
    (2, 3, 5, 4),  # images
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", domains.REST)
def test_values_and_gradients(name, shape, backend):
    for reduction in ("none", "sample", "batchmean"):
        check(name, *leaves(name, shape, backend), reduction)


@pytest.mark.parametrize("reduction", ["sum", "sample", "none"])
@pytest.mark.parametrize("name", [*domains.CORE[2:], *domains.REST])
def test_a_weight_multiplies_each_loss_and_gradient(name, reduction, backend):
    params, target = leaves(name, (6, 40), backend)
    weight = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0, 1.5], device=backend.device)
    each = reconstruction_loss(single(params), target, name, reduction="none")
    loss = reconstruction_loss(single(params), target, name, reduction=reduction, weight=weight)
    expected = each * weight.unsqueeze(1)
    expected = {"sum": expected.sum(), "sample": expected.sum(1), "none": expected}[reduction]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    made = torch.autograd.grad(loss.sum(), params), torch.autograd.grad(expected.sum(), params)
    torch.testing.assert_close(*made, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", domains.REST)
def test_every_dtype(name, dtype, backend):
    for reduction in ("none", "sample", "mean"):
        check(name, *leaves(name, (4, 99), backend, dtype), reduction)
    check(name, *leaves(name, (4, 99), backend, dtype, torch.float32), "sum")


@pytest.mark.parametrize("name", [name for name in domains.REST if LIKELIHOODS[name].domain != "counts"])
def test_bytes(name, backend):
    params, target = leaves(name, (4, 1024), backend)
    pixels = (255 * target.abs().clamp(max=1)).round().to(torch.uint8)
    for reduction in ("none", "sample", "mean"):
        check(name, params, pixels, reduction)


@pytest.mark.parametrize("spread", [0.01, 8.0], ids=["concentrated", "spread"])
@pytest.mark.parametrize("name", domains.REST)
def test_near_the_centre_and_far_out(name, spread, backend):
    for reduction in ("none", "sum"):
        check(name, *leaves(name, (5, 400), backend, spread=spread), reduction)


@pytest.mark.parametrize("name", domains.REST)
def test_in_the_whole_loss(name, backend):
    params, target = leaves(name, (6, 50), backend)
    kl = torch.rand(6, device=backend.device, requires_grad=True)
    total, nll, _ = elbo_loss(single(params), target, kl, likelihood=name, beta=2.0)
    torch.testing.assert_close(nll, reconstruction_loss(single(params), target, name))
    torch.testing.assert_close(total, nll + 2 * kl.mean())
    torch.testing.assert_close(torch.autograd.grad(total, kl)[0], torch.full_like(kl, 2 / 6))


@pytest.mark.parametrize("name", domains.REST)
def test_nan_in_gives_nan_out(name, backend):
    for place in range(len(LIKELIHOODS[name].parameters) + 1):
        tensors, target = leaves(name, (2, 8), backend)
        tensors = [t.detach().clone() for t in (*tensors, target)]
        tensors[place][0, 1] = NAN
        params = [t.requires_grad_() for t in tensors[:-1]]
        nll = reconstruction_loss(single(params), tensors[-1], name, reduction="none")
        assert nll[0, 1].isnan()
        assert nll.isnan().sum() == 1
        assert any(g[0, 1].isnan() for g in torch.autograd.grad(nll.sum(), params))


@pytest.mark.interpreter_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", domains.REST)
def test_each_tensor_is_read_once_and_each_gradient_written_once(name, dtype):
    with use_backend("triton"):
        params, target = domains.draw(name, (3, 784), dtype)
        params = [p.requires_grad_() for p in params]
        table, _ = bytes_moved(lambda: reconstruction_loss(single(params), target, name))
    moved = sum(
        count for (kernel, tensor, _), count in table.items() if kernel == "_reconstruct" and "partial" not in tensor
    )
    constants = 4 * len(LIKELIHOODS[name].constants)  # a number for each program
    programs = table["_reconstruct", "partials", "store"] // 4
    assert moved == (2 * len(params) + 1) * target.numel() * dtype.itemsize + constants * programs


class TestBernoulliProbs:
    """torch's own rules, which are not those of logits at saturation."""

    def test_the_bounds_of_the_logarithm_and_of_the_slope(self, backend):
        p = torch.tensor([[0.0, 1.0, -0.0, 0.0, 1.0, 1e-30, 1e-40, 1 - 6e-8, 0.9997, 0.5]], device=backend.device)
        x = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.25]], device=backend.device)
        ours, theirs = p.clone().requires_grad_(), p.clone().requires_grad_()
        loss = reconstruction_loss(ours, x, "bernoulli_probs", reduction="none")
        expected = F.binary_cross_entropy(theirs, x, reduction="none")
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        assert loss[0, :3].tolist() == [100.0] * 3
        gradients = torch.autograd.grad(loss.sum(), ours), torch.autograd.grad(expected.sum(), theirs)
        torch.testing.assert_close(*gradients, rtol=2e-6, atol=0)

    def test_what_is_no_probability_is_nan(self, backend):
        p = torch.tensor([[-1e-45, -0.1, 1 + 2e-7, 1.1, float("inf")]], device=backend.device)
        for target in (0.0, 0.5, 1.0):
            loss = reconstruction_loss(p, torch.full_like(p, target), "bernoulli_probs", reduction="none")
            assert loss.isnan().all()

    def test_saturated_sigmoids(self, backend):
        """Through a sigmoid the gradient is that of the code it replaces: not the logits' -1, -1, 0."""
        logits = torch.tensor([[-30.0, -20.0, 20.0]], device=backend.device, requires_grad=True)
        x = torch.tensor([[1.0, 1.0, 0.0]], device=backend.device)
        loss = reconstruction_loss(torch.sigmoid(logits), x, "bernoulli_probs", reduction="sum")
        (gradient,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(
            gradient, torch.tensor([[-0.0936, -1.0, 0.0]], device=backend.device), rtol=1e-2, atol=1e-6
        )


def test_continuous_bernoulli_is_uniform_at_0(backend):
    logits = torch.zeros(1, 4, device=backend.device, requires_grad=True)
    x = torch.tensor([[0.0, 0.3, 0.5, 1.0]], device=backend.device)
    nll = reconstruction_loss(logits, x, "continuous_bernoulli", reduction="none")
    assert nll.tolist() == [[0.0] * 4]
    torch.testing.assert_close(torch.autograd.grad(nll.sum(), logits)[0], 0.5 - x)


def test_l1_has_no_slope_at_0(backend):
    a = torch.tensor([[1.0, 2.0, 3.0]], device=backend.device, requires_grad=True)
    x = torch.tensor([[2.0, 2.0, 2.0]], device=backend.device)
    (gradient,) = torch.autograd.grad(reconstruction_loss(a, x, "l1", reduction="sum"), a)
    assert gradient.tolist() == [[-1.0, 0.0, 1.0]]


@pytest.mark.parametrize("reduction", ["sum", "sample", "none"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_the_l1_gradient_of_a_nan_is_nan(weighted, reduction, backend):
    """Where that of PyTorch's own op is 0."""
    a = torch.tensor([[1.0, NAN, -3.0]], device=backend.device, requires_grad=True)
    weight = torch.full_like(a.detach(), 2.0) if weighted else None
    loss = reconstruction_loss(a, torch.zeros_like(a), "l1", weight=weight, reduction=reduction).sum()
    (gradient,) = torch.autograd.grad(loss, a)
    assert loss.isnan()
    assert gradient.isnan().tolist() == [[False, True, False]]


def log_cosh(d):
    """Of d >= 0 in float64."""
    near = torch.log1p(2 * torch.sinh(d.clamp(max=1) / 2) ** 2)
    return torch.where(d < 1, near, d + torch.log1p(torch.exp(-2 * d)) - np.log(2))


@pytest.mark.parametrize("reduction", ["none", "sample"])
def test_the_log_cosh_of_each_error_keeps_its_digits_and_is_never_negative(reduction, backend):
    d = torch.logspace(-12, 3, 301, device=backend.device)[:, None].requires_grad_()
    loss = reconstruction_loss(d, torch.zeros_like(d), "log_cosh", reduction=reduction).view_as(d)
    wide = d.detach().double()
    torch.testing.assert_close(loss.double(), log_cosh(wide), rtol=1e-6, atol=0)
    assert (loss >= 0).all()
    (slope,) = torch.autograd.grad(loss.sum(), d)
    torch.testing.assert_close(slope.double(), torch.tanh(wide), rtol=1e-6, atol=0)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("equal", [False, True], ids=["drawn", "equal"])
@pytest.mark.parametrize("spread", [1e-4, 1e-2, 0.25, 0.69, 0.7, 0.75, 0.86, 0.88, 1.4, 50.0])
def test_the_sum_of_log_cosh_keeps_its_digits_however_large_the_errors(spread, equal, weighted, backend):
    """Eager takes another way where their mean is less than log 2, and most is lost just above."""
    drawn = torch.randn((128, 784), generator=torch.Generator().manual_seed(1))
    a = spread * (torch.ones_like(drawn) if equal else drawn).to(backend.device)
    weight = torch.linspace(0, 3, len(a), device=backend.device) if weighted else None
    loss = reconstruction_loss(a.requires_grad_(), torch.zeros_like(a), "log_cosh", weight=weight, reduction="sum")
    d = a.detach().double().cpu().abs()
    nll = log_cosh(d).sum(1)
    expected = (nll * weight.double().cpu() if weighted else nll).sum()
    torch.testing.assert_close(loss.double().cpu(), expected, rtol=1e-6, atol=0)
    slope = torch.tanh(a.detach().double()) * (weight.double().unsqueeze(1) if weighted else 1)
    (grad,) = torch.autograd.grad(loss, a)
    torch.testing.assert_close(grad.double(), slope, rtol=2e-6, atol=0)


class TestDiscretizedLogistic:
    def test_the_masses_of_the_256_levels_sum_to_1(self, backend):
        x = torch.arange(256, device=backend.device, dtype=torch.float32)[None] / 255
        for mean, log_scale in ((0.5, -3.0), (0.0, -1.0), (1.2, -5.0), (0.3, 2.0)):
            parameters = torch.full_like(x, mean), torch.full_like(x, log_scale)
            nll = reconstruction_loss(parameters, x, "discretized_logistic", reduction="none")
            torch.testing.assert_close(torch.exp(-nll.double()).sum().item(), 1.0, rtol=1e-5, atol=0)

    def test_far_tails_are_finite_with_a_slope(self, backend):
        """Where the difference of two sigmoids is 0 in float32, and other projects clamp it."""
        mean = torch.tensor([[-3.0, 4.0]], device=backend.device, requires_grad=True)
        log_scale = torch.full_like(mean, -4.0).detach().requires_grad_()
        x = torch.full_like(mean, 128 / 255)
        nll = reconstruction_loss((mean, log_scale), x, "discretized_logistic", reduction="none")
        assert nll.isfinite().all()
        assert (nll > 150).all()
        slope, _ = torch.autograd.grad(nll.sum(), (mean, log_scale))
        torch.testing.assert_close(slope.abs(), torch.full_like(slope, float(np.exp(4.0))), rtol=1e-5, atol=0)

    @pytest.mark.parametrize("shift", [0, 1e-13, -1e-13])
    def test_in_float64_the_outer_bins_begin_where_they_do(self, shift, backend):
        """1/510 and 1 - 1/510 rounded to float32 are 2e-11 away."""
        x = torch.tensor([[1 / 510 + shift, 1 - 1 / 510 + shift]], dtype=torch.float64, device=backend.device)
        zeros = torch.zeros_like(x)
        nll = reconstruction_loss((zeros, zeros), x, "discretized_logistic", reduction="none")
        expected, _ = reference.discretized_logistic(*(t.cpu().numpy() for t in (zeros, zeros, x)))
        np.testing.assert_allclose(nll.cpu().numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("delta", [0.1, 1.0, 7.5])
def test_huber_is_that_of_torch(delta, backend):
    a, x = (3 * torch.randn(4, 99, device=backend.device) for _ in range(2))
    ours, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    loss = reconstruction_loss(ours, x, Huber(delta), reduction="none")
    expected = F.huber_loss(theirs, x, reduction="none", delta=delta)
    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(loss.sum(), ours), torch.autograd.grad(expected.sum(), theirs)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 7), (4, 1), (4, 7)], ids=str)
@pytest.mark.parametrize("reduction", ["sample", "batchmean"])
def test_a_second_parameter_that_expands(shape, reduction, backend):
    """One learned scale, one a feature, one a sample: its gradient is the sum over what it is shared by."""
    mean, x = (torch.randn(4, 7, device=backend.device) for _ in range(2))
    ours, theirs = (torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(backend.device) for _ in range(2))
    ours.requires_grad_()
    theirs.requires_grad_()
    loss = reconstruction_loss((mean, ours), x, "gaussian", reduction=reduction)
    whole = theirs.expand(4, 7)
    expected = 0.5 * (whole + (mean - x).square() * torch.exp(-whole) + np.log(2 * np.pi))
    expected = expected.sum(1) if reduction == "sample" else expected.sum() / 4
    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(loss.sum(), ours), torch.autograd.grad(expected.sum(), theirs)
    torch.testing.assert_close(*gradients)
    assert gradients[0][0].shape == shape


@pytest.mark.parametrize(("make", "name"), [(Huber, "delta"), (StudentT, "df")])
def test_constants_that_are_refused(make, name):
    for value in (0, -1.0, float("inf"), NAN):
        with pytest.raises(ValueError, match=rf"^{name} is .*: expected a finite number >=? 0$"):
            make(value)
    with pytest.raises(TypeError, match=rf"^{name} is str: expected a number$"):
        make("1")
