"""Faults that users of other projects reported: extreme values."""

import math

import pytest
import torch

from tests.faults import plain
from tests.ops.cases import values
from tests.support.tolerance import ROUNDING, assert_close, assert_loss_close, assert_z_close
from vae_fast import (
    DiagonalGaussian,
    Huber,
    capacity,
    elbo_loss,
    free_bits,
    gaussian_kl,
    reconstruction_loss,
    sample_kl,
)
from vae_fast.reference import noise as reference

pytestmark = pytest.mark.filterwarnings(
    "ignore:(invalid value|overflow) encountered:RuntimeWarning"
)  # NumPy's, interpreted
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
NAN, INF = math.nan, math.inf


def gradient(loss, tensor):
    return torch.autograd.grad(loss.sum(), tensor)[0]


@dtypes
def test_large_logits_are_exact(dtype, backend):
    logits = torch.tensor([[1e4, -1e4, 1e4, -1e4, 0.0, 88.0, -104.0]], dtype=dtype, device=backend.device)
    logits.requires_grad_()
    target = torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.5, 0.25, 1.0]], device=backend.device)
    nll = reconstruction_loss(logits, target, reduction="none")
    wide, x = logits.detach().double(), target.double()
    assert_close(nll, plain.nll(wide, x), terms=wide.abs() + 1)
    assert_close(gradient(nll, logits), torch.sigmoid(wide) - x, atol=1e-7, exponent=wide.abs().clamp(max=88))
    total = reconstruction_loss(logits, target, reduction="sum")
    assert_loss_close(total, plain.nll(wide, x).sum(), (wide.abs() + 1).sum())


@dtypes
@pytest.mark.parametrize("likelihood", ["bernoulli", "mse", "gaussian"])
def test_nan_stays_nan_and_infinity_is_not_finite(likelihood, dtype, backend):
    first = torch.tensor([[NAN, INF, -INF, 0.5]], dtype=dtype, device=backend.device).requires_grad_()
    output = (first, torch.zeros_like(first)) if likelihood == "gaussian" else first
    nll = reconstruction_loss(output, torch.full((1, 4), 0.5, device=backend.device), likelihood, reduction="none")
    assert nll[0, 0].isnan()
    assert not nll[0, 1:3].isfinite().any()
    assert nll[0, 3].isfinite()
    slope = gradient(nll, first)
    assert slope[0, 0].isnan()
    assert slope[0, 3].isfinite()
    for reduction in ("sample", "sum", "mean", "batchmean"):
        target = torch.zeros(1, 4, device=backend.device)
        assert not reconstruction_loss(output, target, likelihood, reduction=reduction).isfinite().any()


@dtypes
def test_nan_targets_and_nan_latents_show(dtype, backend):
    nan = torch.tensor([[NAN, 1.0]], dtype=dtype, device=backend.device)
    one = torch.ones_like(nan)
    assert reconstruction_loss(one, nan).isnan()
    for mu, logvar in ((nan, one), (one, nan)):
        for options in ({}, {"prior": (one, one)}, {"logvar_clamp": (-1, 2)}):
            z, kl = sample_kl(mu, logvar, seed=0, reduction="none", **options)
            assert z.isnan().tolist() == kl.isnan().tolist() == [[True, False]]
    for prior in ((nan, one), (one, nan)):
        assert gaussian_kl(one, one, prior=prior, reduction="none").isnan().tolist() == [[True, False]]
    clamped = nan.clone().requires_grad_()
    kl = gaussian_kl(one, clamped, logvar_clamp=(-1, 2), reduction="sum")
    assert gradient(kl, clamped).isnan().tolist() == [[True, False]]


@dtypes
def test_log_variances_from_minus_30_to_80(dtype, backend):
    """float16: the variance overflows at 12, where float32 arithmetic gives a finite KL."""
    logvar = torch.linspace(-30, 80, 111, device=backend.device).to(dtype).view(3, 37).requires_grad_()
    mu = (values(3, 37, device=backend.device, seed=1) - 0.5).to(dtype).requires_grad_()
    z, kl = sample_kl(mu, logvar, seed=0, reduction="none")
    m, v = mu.detach().double().cpu(), logvar.detach().double().cpu()
    eps = torch.from_numpy(reference.normal(0, 111)).view(3, 37)
    assert kl.isfinite().all()
    assert_close(kl, plain.kl(m, v), terms=m**2 + v.exp() + v.abs() + 1, exponent=v)
    assert_z_close(z, m, v, eps)
    assert_close(gradient(kl, logvar), torch.expm1(v) / 2, terms=(v.exp() + 1) / 2, exponent=v)
    by_logvar = torch.autograd.grad(sample_kl(mu, logvar, seed=0)[0].sum(), logvar)[0]
    std = torch.exp(v / 2)
    assert_close(by_logvar, std * eps / 2, terms=std * eps.abs(), exponent=v / 2, atol=2e-6 * std.numpy())


@dtypes
def test_tiny_log_variances_keep_their_digits(dtype, backend):
    """exp(x) - 1 - x in its plain form has no correct digit left at 1e-3 in float32."""
    logvar = torch.tensor([[1e-4, -1e-3, 1e-2, -0.1, 0.49, 0.51]], device=backend.device).to(dtype).requires_grad_()
    kl = gaussian_kl(torch.zeros_like(logvar), logvar, reduction="none")
    v = logvar.detach().double().cpu()
    series = sum(v**k / math.factorial(k) for k in range(2, 20)) / 2
    assert_close(kl, series)
    assert_close(gradient(kl, logvar), torch.expm1(v) / 2)


@dtypes
def test_numbers_that_float32_does_not_hold(dtype, backend):
    """They are infinite to its arithmetic, and what they are to that of float64."""
    ones, huge = torch.ones(2, 3, dtype=dtype, device=backend.device).requires_grad_(), 1e39
    kl = gaussian_kl(ones, ones, reduction="sample")
    assert_same = torch.testing.assert_close
    for bounds in ((-huge, huge), (0, huge), (-huge, 2)):
        assert_same(gaussian_kl(ones, ones, logvar_clamp=bounds, reduction="sample"), kl)
    for options in ({}, {"weight": torch.ones(2, device=backend.device)}):
        losses = [reconstruction_loss(ones, ones.detach() * 3, Huber(d), **options) for d in (huge, 9.0)]
        assert_same(*losses)
        assert_same(*(gradient(loss, ones) for loss in losses))
    wanted = huge if dtype == torch.float64 else math.inf
    for options in ({}, {"weight": torch.ones(2, device=backend.device)}):
        total = elbo_loss(ones, ones.detach(), kl.detach() * 0 + 1, likelihood="mse", beta=huge, **options).total
        assert total.item() == wanted
    assert free_bits(kl, huge).tolist() == capacity(kl, huge).tolist() == [wanted] * 2


@dtypes
def test_a_clamp_that_a_half_does_not_hold(dtype, backend):
    """float16 ends at 65504."""
    mu, logvar = (values(2, 3, device=backend.device, seed=i).to(dtype) for i in (1, 2))
    q, plain_q = DiagonalGaussian(mu, logvar, logvar_clamp=(-1e5, 1e39)), DiagonalGaussian(mu, logvar)
    assert torch.equal(q.logvar, logvar)
    torch.testing.assert_close(q.log_prob(mu), plain_q.log_prob(mu))
    torch.testing.assert_close(q.kl(), plain_q.kl())


def _of_one_value(value, shape):
    return torch.zeros(shape), torch.full(shape, value)


def _mostly_collapsed(active):
    mu, logvar = _of_one_value(6.3e-4, (256, 256))
    mu[:, 0] = active
    return mu, logvar


EQUAL = [  # whose roundings are all of one sign, on either side of where a sum is taken again
    *(_of_one_value(value, (64, 32)) for value in (0.17544, 0.3, 0.45, 0.4702, 0.48, -0.6)),
    *(_of_one_value(value, (4096, 1)) for value in (0.25, 0.47)),
    *(_mostly_collapsed(active) for active in (2.01, 5.6, 5.7, 8.0)),
]


@pytest.mark.parametrize("reduction", ["sample", "batchmean"])
@pytest.mark.parametrize(("mu", "logvar"), EQUAL)
def test_a_sum_keeps_its_digits_where_every_rounding_has_one_sign(mu, logvar, reduction, backend):
    kl = gaussian_kl(mu.to(backend.device), logvar.to(backend.device), reduction=reduction)
    m, v = mu.double(), logvar.double()
    expected = (m**2 + sum(v**k / math.factorial(k) for k in range(2, 20))).sum(1) / 2
    assert_loss_close(kl, expected if reduction == "sample" else expected.mean(), kl.detach())


@dtypes
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 0.1, 0.2, 0.5, 2.0])
@pytest.mark.parametrize("reduction", ["sample", "sum"])
def test_a_sum_keeps_its_digits_however_far_the_posterior_has_collapsed(reduction, scale, dtype, backend):
    """In float32's plain form the sum of 4096 has an error of 1e-6 to 1e-5, and at 1e-4 is itself 2e-5."""
    draw = (values(2, 4096, device=backend.device, seed=seed) - 0.5 for seed in (1, 2))
    mu, logvar = ((scale * t).to(dtype).requires_grad_() for t in draw)
    m, v = mu.detach().double().cpu(), logvar.detach().double().cpu()
    kl = gaussian_kl(mu, logvar, reduction=reduction)
    expected = (m**2 + sum(v**k / math.factorial(k) for k in range(2, 20))).sum(1) / 2
    assert_loss_close(kl, expected if reduction == "sample" else expected.sum(), kl.detach())
    assert_close(gradient(kl, logvar), torch.expm1(v) / 2, terms=torch.expm1(v).abs() / 2 + ROUNDING)


@pytest.mark.parametrize("option", ["prior", "logvar_clamp"])
def test_a_collapsed_posterior_beside_a_prior_or_a_clamp(option, backend):
    mu, logvar = (1e-2 * (values(2, 4096, device=backend.device, seed=seed) - 0.5).float() for seed in (1, 2))
    standard = torch.zeros((), device=backend.device)
    options = {"prior": (standard, standard), "logvar_clamp": (-30.0, 20.0)}
    kl = gaussian_kl(mu, logvar, reduction="sample", **{option: options[option]})
    m, v = mu.double().cpu(), logvar.double().cpu()
    assert_loss_close(kl, (m**2 + sum(v**k / math.factorial(k) for k in range(2, 20))).sum(1) / 2, kl)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_extreme_gaussian_likelihoods(dtype, backend):
    logvar = torch.tensor([[-30.0, -10.0, 0.0, 30.0, 80.0]], dtype=dtype, device=backend.device).requires_grad_()
    mean = torch.full_like(logvar, 1.5).requires_grad_()
    target = torch.tensor([[1.5, 1.0, -1.0, 0.0, 1e3]], device=backend.device)
    nll = reconstruction_loss((mean, logvar), target, "gaussian", reduction="none")
    m, v, x = (t.detach().double().cpu() for t in (mean, logvar, target))
    excess = (m - x) ** 2 * torch.exp(-v)
    assert_close(nll, plain.nll((m, v), x, "gaussian"), terms=v.abs() + excess + 2, exponent=v)
    assert_close(gradient(nll, mean), (m - x) * torch.exp(-v), exponent=v)
    assert_close(gradient(reconstruction_loss((mean, logvar), target, "gaussian", reduction="none"), logvar),
                 0.5 - excess / 2, terms=1 + excess, exponent=v)  # fmt: skip


def test_a_collapsed_sample_beside_one_that_is_not(backend):
    mu, logvar = torch.zeros(2, 4096), torch.full((2, 4096), 6.3e-4)
    mu[1] = 3
    kl = gaussian_kl(mu.to(backend.device), logvar.to(backend.device), reduction="sample")
    m, v = mu.double(), logvar.double()
    assert_loss_close(kl, (m**2 + v.expm1() - v).sum(1) / 2, kl)
