"""The latent ops in every scale and with either KL, value and gradient, against the reference."""

import itertools

import mpmath
import numpy as np
import pytest
import torch

from tests.kernels.latents import DTYPES, REDUCTIONS, drawer
from tests.kernels.scaled import SCALES, check, scaled
from vae_fast import gaussian_kl, reparameterize, sample_kl, sample_kl_packed

SEED = 2**40 + 3
LAYOUTS = ["the smallest", "odd", "full tiles", "primes", "channels_last images", "chunk(2, 1) of channels_last images"]
KLS = ["closed_form", "monte_carlo"]
PRIORS = {"no prior": None, "a full prior": (5, 3, 7), "a prior a channel": (1, 3, 1)}
VARIANTS = [(s, kl) for s, kl in itertools.product(SCALES, KLS) if (s, kl) != ("logvar", "closed_form")]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("scale", "kl"), VARIANTS)
def test_sample_kl_of_every_layout(scale, kl, layout, backend):
    p = scaled(layout, backend, SCALES[scale])
    options = {"scale": SCALES[scale], "seed": SEED}
    z, value = sample_kl(p.mu, p.logvar, kl=kl, **options)
    assert z.stride() == torch.empty_like(p.mu).stride()
    check(p, z, value, estimate=kl, reduction="sample", **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", ["seed", "eps"])
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize(("scale", "kl"), VARIANTS)
def test_sample_kl_with_every_option(scale, kl, prior, source, dtype, backend):
    p = scaled("odd", backend, SCALES[scale], dtype, PRIORS[prior])
    noise = {"seed": SEED} if source == "seed" else {"eps": drawer(backend.device, dtype, seed=4)(5, 3, 7)}
    # a reduction of each kind in turn
    reduction = REDUCTIONS[(len(prior) + len(scale) + DTYPES.index(dtype) + len(source)) % len(REDUCTIONS)]
    options = {"scale": SCALES[scale], "reduction": reduction, **noise}
    z, value = sample_kl(p.mu, p.logvar, prior=p.prior, kl=kl, **options)
    check(p, z, value, estimate=kl, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("prior", PRIORS)
def test_monte_carlo_with_every_reduction(prior, reduction, backend):
    p = scaled("odd", backend, "logvar", prior=PRIORS[prior])
    z, kl = sample_kl(p.mu, p.logvar, prior=p.prior, kl="monte_carlo", seed=SEED, reduction=reduction)
    check(p, z, kl, scale="logvar", estimate="monte_carlo", seed=SEED, reduction=reduction)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_reparameterize(scale, dtype, backend):
    p = scaled("odd", backend, SCALES[scale], dtype)
    z = reparameterize(p.mu, p.logvar, scale=SCALES[scale], seed=SEED)
    check(p, z, None, scale=SCALES[scale], seed=SEED)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("scale", SCALES)
def test_gaussian_kl(scale, prior, dtype, backend):
    p = scaled("odd", backend, SCALES[scale], dtype, PRIORS[prior])
    kl = gaussian_kl(p.mu, p.logvar, prior=p.prior, scale=SCALES[scale], reduction="none")
    check(p, None, kl, scale=SCALES[scale], reduction="none")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("scale", "kl"), VARIANTS)
def test_sample_kl_packed(scale, kl, memory_format, dtype, backend):
    moments = drawer(backend.device, dtype)(2, 6, 5, 4)
    if scale == "std":
        moments = moments.abs() + 0.1
    moments = moments.to(memory_format=memory_format).requires_grad_()
    options = {"scale": SCALES[scale], "seed": SEED}
    z, value = sample_kl_packed(moments, kl=kl, **options)
    p = scaled("odd", backend, SCALES[scale])
    p.mu, p.logvar = moments.chunk(2, 1)

    def grads(outputs, _, upstream):
        (grad,) = torch.autograd.grad(outputs, moments, upstream)
        assert grad.stride() == moments.stride()
        return grad.chunk(2, 1)

    check(p, z, value, estimate=kl, reduction="sample", grads=grads, **options)


@pytest.mark.parametrize("used", ["z", "kl"])
@pytest.mark.parametrize(("scale", "kl"), VARIANTS)
def test_the_gradient_of_one_output_alone(scale, kl, used, backend):
    p = scaled("odd", backend, SCALES[scale], prior=(3, 7) if used == "kl" else None)
    options = {"scale": SCALES[scale], "seed": SEED}
    z, value = sample_kl(p.mu, p.logvar, prior=p.prior, kl=kl, **options)
    if used == "z":
        check(p, z, None, estimate=kl, **options)
    else:
        check(p, None, value, estimate=kl, reduction="sample", **options)


@pytest.mark.parametrize("reduction", ["none", "sample"])
@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("scale", ["logstd", "std", "SoftClamp"])
def test_a_small_kl_keeps_its_digits(scale, with_prior, reduction, backend):
    """At a standard deviation near the prior's the KL is a square: the plain form has none of its digits."""
    d = np.array([[1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.3]]).T
    d = np.concatenate([d, -d])  # one latent a sample
    around = 0.0 if not with_prior else 0.75
    one = 1.0 + around if scale == "std" else around
    second = torch.tensor(one + d, dtype=torch.float32, device=backend.device)
    zero = torch.zeros_like(second)
    prior = (zero, zero + one) if with_prior and scale != "SoftClamp" else None
    second = second - around if scale == "SoftClamp" else second
    kl = gaussian_kl(zero, second, prior=prior, scale=SCALES[scale], reduction=reduction)
    with mpmath.workdps(50):
        exact = [_exact_kl(scale, mpmath.mpf(v), one if prior else None) for v in second.flatten().tolist()]
    np.testing.assert_allclose(kl.cpu().flatten().numpy(), np.array(exact), rtol=1e-6)


def _exact_kl(scale, v, one):
    bound = mpmath.mpf(1.5)
    log = {"logstd": lambda t: t, "std": mpmath.log, "SoftClamp": lambda t: bound * mpmath.tanh(t / bound)}[scale]
    ratio = 2 * (log(v) - (0 if one is None else log(mpmath.mpf(one))))
    return float((mpmath.exp(ratio) - 1 - ratio) / 2)


def test_a_standard_deviation_of_zero_gives_mu_and_a_finite_gradient(backend):
    mu, std = (torch.full((2, 3), value, device=backend.device).requires_grad_() for value in (1.5, 0.0))
    eps = torch.full((2, 3), -0.5, device=backend.device)
    z = reparameterize(mu, std, scale="std", eps=eps)
    grads = torch.autograd.grad(z.sum(), (mu, std))
    assert (z == 1.5).all()
    assert (grads[0] == 1).all()
    assert (grads[1] == -0.5).all()


@pytest.mark.parametrize("scale", ["softplus", "SoftClamp of NVAE's code"])
@pytest.mark.parametrize("value", [-1e4, -80.0, 80.0, 1e4])
def test_values_far_out_stay_finite_where_the_scale_bounds_them(scale, value, backend):
    second = torch.full((2, 3), value, device=backend.device).requires_grad_()
    z, kl = sample_kl(second, second, scale=SCALES[scale], seed=SEED)
    grads = torch.autograd.grad(z.sum() + kl.sum(), second)
    assert all(t.isfinite().all() for t in (z, kl, *grads))


@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("scale", SCALES)
def test_nan_stays_nan(scale, kl, backend):
    for place in range(2):
        pair = [torch.ones(1, 4, device=backend.device) for _ in range(2)]
        pair[place][0, 2] = float("nan")
        leaves = [t.requires_grad_() for t in pair]
        z, value = sample_kl(*leaves, scale=SCALES[scale], kl=kl, reduction="none", seed=SEED)
        grad = torch.autograd.grad(z.sum() + value.sum(), leaves[place])[0]
        for t in (z, value, grad):
            assert t.isnan().tolist() == [[False, False, True, False]]


def test_standard_deviations_whose_squares_are_no_numbers(backend):
    """1e-50 is 0 in float32."""
    mu = torch.zeros(2, 3, device=backend.device, requires_grad=True)
    std = torch.full((2, 3), 1e-25, device=backend.device, requires_grad=True)
    prior = torch.zeros_like(mu), std.detach()
    for kl in ("closed_form", "monte_carlo"):
        _, value = sample_kl(mu, std, prior=prior, scale="std", kl=kl, seed=0)
        assert (value.abs() < 1e-5).all()
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(value.sum(), (mu, std)))
