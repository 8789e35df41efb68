"""Extreme, infinite and NaN inputs, and numbers so small that a plain formula has no digit left."""

import numpy as np
import pytest
import torch

from tests.kernels.latents import DTYPES, Posterior, check, drawer
from tests.kernels.outputs import Case
from tests.support.tolerance import assert_close, assert_loss_close
from vae_fast import elbo_loss, gaussian_kl, reconstruction_loss, reparameterize, sample_kl
from vae_fast.reference import likelihoods

# NumPy, which interprets the kernels, warns of what is meant here
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

NAN, INF = float("nan"), float("inf")


def leaf(values, backend, dtype=torch.float32):
    return torch.as_tensor(values, dtype=torch.float64).to(backend.device, dtype).requires_grad_()


def case_of(likelihood, params, target, backend, dtype=torch.float32):
    """A `Case` with given values, one sample an element."""
    case = Case("a batch alone", likelihood, backend)
    case.params = [leaf(values, backend, dtype) for values in params]
    case.target = leaf(target, backend, dtype).detach()
    return case


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "sample"])
def test_logits_of_any_finite_size(reduction, dtype, backend):
    logits, target = np.meshgrid([-1e4, -300, -80, -20, -1e-3, 0, 1e-3, 20, 80, 300, 1e4], [0, 0.25, 1])
    case = case_of("bernoulli", [logits.ravel()], target.ravel(), backend, dtype)
    loss = reconstruction_loss(case.output, case.target, reduction=reduction)
    assert loss.isfinite().all()
    case.check(loss, "none")  # one element a sample


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("reduction", ["sample", "sum", "batchmean"])
@pytest.mark.parametrize("logit", [-6.0, -10.0, -16.0, -30.0])
def test_sums_of_confident_logits_keep_their_digits(logit, reduction, weighted, backend):
    """Black pixels: beside the logit, or beside 1, float32 rounds most of a nll away, and equally for each."""
    logits = torch.full((4, 784), logit, device=backend.device, requires_grad=True)
    weight = torch.full((4,), 3.0, device=backend.device) if weighted else None
    loss = reconstruction_loss(logits, torch.zeros_like(logits), reduction=reduction, weight=weight)
    total = 784 * np.log1p(np.exp(logit)) * (3 if weighted else 1) * (4 if reduction == "sum" else 1)
    torch.testing.assert_close(loss.double().cpu(), torch.full(loss.shape, total).double(), rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinite_logits_give_no_finite_loss_and_the_limit_of_the_gradient(dtype, backend):
    logits, target = np.meshgrid([-INF, INF], [0, 0.25, 1])
    case = case_of("bernoulli", [logits.ravel()], target.ravel(), backend, dtype)
    loss = reconstruction_loss(case.output, case.target, reduction="none")
    wrong_side = (logits < 0) == (target > 0)  # where the loss tends to infinity
    assert not loss.reshape(logits.shape)[torch.from_numpy(wrong_side)].isfinite().any()
    (grad,) = torch.autograd.grad(loss.sum(), case.params)
    assert_close(grad, case.oracle().derivatives[0])


@pytest.mark.parametrize("likelihood", ["bernoulli", "mse", "gaussian"])
@pytest.mark.parametrize("reduction", ["none", "sample", "sum", "mean", "batchmean"])
@pytest.mark.parametrize("poisoned", ["output", "target"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_bad_element_spoils_its_own_losses_and_no_others(value, poisoned, reduction, likelihood, backend):
    case = Case("MNIST", likelihood, backend)
    with torch.no_grad():
        (case.params[0] if poisoned == "output" else case.target)[1, 700] = value
    loss = reconstruction_loss(case.output, case.target, likelihood, reduction=reduction)
    finite = loss.isfinite()
    if reduction == "none":
        assert not finite[1, 700]
        assert finite.sum() == finite.numel() - 1
    elif reduction == "sample":
        assert finite.tolist() == [True, False, True]
    else:
        assert not finite
    if value != value:
        assert loss[~finite].isnan().all()
    grads = torch.autograd.grad(loss.sum(), case.params)
    for grad in grads:
        assert grad.isfinite().sum() >= grad.numel() - 1  # only the bad element's may be bad
        assert value == value or grad[1, 700].isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_log_variances_of_the_gaussian_likelihood_from_tiny_to_huge(dtype, backend):
    logvar = np.linspace(-30, 80, 111)
    case = case_of("gaussian", [np.full(111, 0.75), logvar], np.full(111, 0.5), backend, dtype)
    loss = reconstruction_loss(case.output, case.target, "gaussian", reduction="none")
    assert loss.isfinite().all()
    case.check(loss, "none")


@pytest.mark.parametrize("reduction", ["none", "sample", "sum"])
def test_errors_of_the_gaussian_likelihood_whose_square_overflows(reduction, backend):
    case = case_of("gaussian", [[1e20, -3e22, 1e18], [40.0, 60.0, 10.0]], [0.0, 0.0, 1.0], backend)
    loss = reconstruction_loss(case.output, case.target, "gaussian", reduction=reduction)
    assert loss.isfinite().all()
    case.check(loss, "sum" if reduction == "sum" else "none")


@pytest.mark.parametrize("likelihood", ["negative_binomial", "zero_inflated_negative_binomial"])
@pytest.mark.parametrize("reduction", ["none", "sample", "sum"])
def test_counts_under_a_tiny_theta(reduction, likelihood, backend):
    """As softplus gives it below -33: the nll is hardly more than -log theta."""
    theta, x = (grid.ravel() for grid in np.meshgrid([1e-30, 1e-20, 1e-16, 1e-12], [0.0, 1.0, 30.0, 1000.0]))
    params = [np.full_like(x, 2.0), theta, np.full_like(x, -1.0)][: 3 if "zero" in likelihood else 2]
    loss = reconstruction_loss(
        tuple(leaf(p, backend) for p in params), leaf(x, backend).detach(), likelihood, reduction=reduction
    )
    oracle = getattr(likelihoods, likelihood)(*params, x)[0]
    terms = np.abs(oracle) + 7 * x + 1  # log x! is less than 7 x
    summed = np.sum if reduction == "sum" else np.asarray
    assert_loss_close(loss, summed(oracle), summed(terms))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("noise", ["seed", "eps"])
def test_log_variances_of_the_latents_from_tiny_to_huge(noise, dtype, backend):
    """In float16 the variance overflows at 11.1, the KL and the standard deviation later."""
    logvar = leaf(np.linspace(-30, 80, 111).reshape(37, 3), backend, dtype)
    p = Posterior(leaf(np.full((37, 3), 0.5), backend, dtype), logvar)
    noise = {"seed": 3} if noise == "seed" else {"eps": drawer(backend.device, dtype, seed=4)(37, 3)}
    z, kl = sample_kl(p.mu, p.logvar, reduction="none", **noise)
    assert kl.isfinite().all()
    check(p, z, kl, reduction="none", **noise)


@pytest.mark.parametrize("reduction", ["sample", "latent", "sum", "mean", "batchmean"])
def test_a_float16_kl_is_finite_where_the_variance_overflows(reduction, backend):
    mu = torch.zeros(4, 5, dtype=torch.float16, device=backend.device)
    kl = gaussian_kl(mu, mu + 60, reduction=reduction)
    assert kl.dtype == torch.float32
    assert kl.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("with_prior", [False, True])
def test_the_kl_of_a_small_log_variance_keeps_its_digits(with_prior, dtype, backend):
    # Eager takes the difference in float64, whose 1e-16 nats show below 1e-4; that of halves in float32.
    if backend.name == "eager" and dtype == torch.bfloat16:
        pytest.skip("see test_tiny_log_variances_keep_their_digits")
    sizes = np.geomspace(1e-6 if backend.name == "triton" or dtype == torch.float64 else 1e-4, 1e-1, 60)
    logvar = leaf(np.concatenate([-sizes, sizes])[:, None], backend, dtype)
    zeros = torch.zeros_like(logvar).detach()
    prior = (zeros.clone().requires_grad_(), zeros.clone().requires_grad_()) if with_prior else None
    p = Posterior(zeros.clone().requires_grad_(), logvar, prior)
    kl = gaussian_kl(p.mu, p.logvar, prior=prior, reduction="none")
    x = logvar.detach().cpu().double()
    oracle = ((torch.expm1(x) - x) / 2).numpy()  # 1e-16 / 1e-6 is enough to see 1e-6
    assert np.abs(kl.detach().cpu().double().numpy() / oracle - 1).max() < 1e-6
    check(p, None, kl, reduction="none")


@pytest.mark.parametrize("samples", [1, 64], ids=["one by one", "in vectors"])  # as a CPU computes them
def test_an_infinite_bound_bounds_nothing(samples, backend):
    logvar = leaf([[-INF, -40.0, -1.0, 2.0, INF]] * samples, backend)
    zeros = torch.zeros_like(logvar).detach()
    for clamp, allowed in (
        ((-INF, INF), [1, 1, 1, 1, 1]),
        ((-30.0, INF), [0, 0, 1, 1, 1]),
        ((-INF, 1.0), [1, 1, 1, 0, 0]),
    ):
        kl = gaussian_kl(zeros, logvar, logvar_clamp=clamp, reduction="sum")
        (slope,) = torch.autograd.grad(kl, logvar)
        assert (slope != 0).int().tolist() == [allowed] * samples


@pytest.mark.parametrize("clamp", [(-2.0, 1.0), (-INF, 1.0)], ids=["bounded", "unbounded"])
def test_a_clamp_does_not_hide_a_nan(clamp, backend):
    logvar = leaf([[NAN]] * 64, backend)
    kl = gaussian_kl(torch.zeros_like(logvar), logvar, logvar_clamp=clamp)
    (slope,) = torch.autograd.grad(kl, logvar)
    assert slope.isnan().all()


@pytest.mark.parametrize("clamp", [None, (-2.0, 1.0)], ids=["free", "clamped"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("bad", ["mu", "logvar", "eps", "prior mu", "prior logvar"])
def test_one_bad_latent(bad, value, clamp, backend):
    draw = drawer(backend.device, torch.float32)
    tensors = {name: draw(5, 3) for name in ("mu", "logvar", "eps", "prior mu", "prior logvar")}
    tensors[bad][2, 1] = value
    p = Posterior(*(tensors[name].requires_grad_() for name in ("mu", "logvar")))
    p.prior = tuple(tensors[name].requires_grad_() for name in ("prior mu", "prior logvar"))
    z, kl = sample_kl(p.mu, p.logvar, prior=p.prior, logvar_clamp=clamp, eps=tensors["eps"], reduction="none")
    others = torch.ones(5, 3, dtype=torch.bool, device=backend.device)
    others[2, 1] = False
    assert z[others].isfinite().all()
    assert kl[others].isfinite().all()
    if value != value:
        assert z[2, 1].isnan() == (bad in ("mu", "logvar", "eps"))
        assert kl[2, 1].isnan() == (bad != "eps")
    check(p, z, kl, clamp=clamp, eps=tensors["eps"], reduction="none")


@pytest.mark.parametrize("bad", ["mu", "logvar"])
def test_a_bad_latent_spoils_its_sample_alone(bad, backend):
    tensors = {name: torch.zeros(5, 3, device=backend.device) for name in ("mu", "logvar")}
    tensors[bad][2, 1] = NAN
    _, kl = sample_kl(**tensors)
    assert kl.isnan().tolist() == [False, False, True, False, False]
    assert gaussian_kl(**tensors, reduction="latent").isnan().tolist() == [False, True, False]
    assert gaussian_kl(**tensors).isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("clamp", [(-1.5, 0.75), (-0.1, 0.3)], ids=["exact bounds", "rounded bounds"])
def test_the_clamps_gradient_is_one_at_the_bounds_and_zero_outside(clamp, dtype, backend):
    if clamp == (-0.1, 0.3) and dtype in (torch.bfloat16, torch.float16):
        clamp = tuple(torch.tensor(clamp, dtype=dtype).tolist())  # the numbers of the dtype at the bounds
    low, high = torch.tensor(clamp, dtype=dtype)
    down, up = torch.tensor(-INF, dtype=dtype), torch.tensor(INF, dtype=dtype)
    values = [low.nextafter(down), low, low.nextafter(up), high.nextafter(down), high, high.nextafter(up)]
    raw = torch.stack([*values, down, up, torch.zeros_like(low)]).to(backend.device)
    passes = torch.tensor([False, True, True, True, True, False, False, False, True], device=backend.device)
    grads = []
    for options in ({"logvar_clamp": clamp}, {}):
        mu, logvar = torch.zeros_like(raw).requires_grad_(), raw.clone().requires_grad_()
        z, kl = sample_kl(mu, logvar, eps=torch.ones_like(mu), **options)
        (z.sum() + kl.sum()).backward()
        grads.append(logvar.grad)
    assert torch.equal(grads[0][passes], grads[1][passes])
    assert (grads[0][~passes] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_means_whose_square_overflows(dtype, backend):
    mu = leaf([[1e4, -1e4], [0.5, 6e4]], backend, dtype)
    p = Posterior(mu, torch.zeros_like(mu).requires_grad_())
    z, kl = sample_kl(p.mu, p.logvar, seed=0)
    assert kl.isfinite().all()
    check(p, z, kl, seed=0, reduction="sample")
    assert gaussian_kl(
        torch.full((1, 1), 1e30, device=backend.device), torch.zeros(1, 1, device=backend.device)
    ).isinf()


def test_an_infinite_kl_reaches_the_total(backend):
    output = torch.zeros(2, 3, device=backend.device)
    losses = elbo_loss(output, output, torch.tensor([1.0, INF], device=backend.device))
    assert losses.total.isinf()
    assert losses.kl.isinf()
    assert losses.reconstruction.isfinite()


def test_a_standard_deviation_of_zero_gives_the_mean(backend):
    mu = drawer(backend.device, torch.float32)(3, 5)
    assert torch.equal(reparameterize(mu, torch.full_like(mu, -INF), seed=1), mu)
