"""Free bits, capacity and the importance-weighted bound against their formulas in float64 NumPy."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from tests.ops.cases import values
from vae_fast import (
    ELBO,
    DiagonalGaussian,
    ELBOLoss,
    capacity,
    elbo_loss,
    free_bits,
    gaussian_kl,
    iwae_loss,
    reconstruction_loss,
)

EPSILON = {torch.float32: 1e-6, torch.float64: 1e-13}
B, D, PIXELS, K = 5, 3, 6, 4
dtypes = pytest.mark.parametrize("dtype", EPSILON, ids=str)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
nats_in_range = st.floats(0, 50)


def kls(*shape, dtype=torch.float64, device="cpu"):
    return (values(*shape, dtype=dtype, device=device) * 4).requires_grad_()


def array(tensor):
    return tensor.detach().cpu().double().numpy()


def close(actual, wanted, dtype):
    np.testing.assert_allclose(array(actual), wanted, rtol=EPSILON[dtype], atol=EPSILON[dtype])
    assert actual.dtype == dtype


@dtypes
@pytest.mark.parametrize("nats", [0, 0.5, 1.75, 100.0, torch.tensor(1.75), torch.tensor(1.75).double()], ids=repr)
def test_free_bits(dtype, nats):
    bound = float(nats)
    for shape in ((B,), ()):
        kl = kls(*shape, dtype=dtype)
        close(free_bits(kl, nats), np.maximum(array(kl), bound), dtype)
    for shape in ((D,), (D, 2, 2)):
        kl = kls(*shape, dtype=dtype)
        close(free_bits(kl, nats, per="latent"), np.maximum(array(kl), bound).sum(), dtype)


@dtypes
@pytest.mark.parametrize("shape", [(B,), ()], ids=str)
@pytest.mark.parametrize("nats", [0, 1.75, 25.0, torch.tensor(1.75), torch.tensor(1.75).double()], ids=repr)
def test_capacity(dtype, shape, nats):
    kl = kls(*shape, dtype=dtype)
    close(capacity(kl, nats), np.abs(array(kl) - float(nats)), dtype)


def test_free_bits_have_no_gradient_below_the_floor():
    kl = torch.tensor([0.5, 1.0, 1.5], requires_grad=True)
    for nats in (1.0, torch.tensor(1.0)):
        for per in ("sample", "latent"):
            (gradient,) = torch.autograd.grad(free_bits(kl, nats, per=per).sum(), kl)
            assert gradient.tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "function",
    [
        lambda kl: free_bits(kl, 1.0),
        lambda kl: free_bits(kl, 1.0, per="latent"),
        lambda kl: capacity(kl, 1.0),
        lambda kl: iwae_loss(kl.view(K, 2), kl.view(K, 2).flip(0)),
        lambda kl: iwae_loss(kl.view(K, 2), kl.view(K, 2).flip(0), reduction="sample"),
    ],
)
def test_gradients(function):
    assert torch.autograd.gradcheck(function, kls(8))


@pytest.mark.parametrize("function", [free_bits, capacity])
def test_nan_stays(function):
    assert function(torch.tensor([math.nan, 1.0]), 0.5).isnan().tolist() == [True, False]


def module_and_formula(name, nats):
    """(ELBOLoss's options, the kl's shape, the KL that people report, what takes its place), of a NumPy kl."""
    return {
        "free bits per sample": ({"free_bits": nats}, (B,), np.mean, lambda kl: np.maximum(kl, nats).mean()),
        "free bits of the batch": ({"free_bits": nats}, (), np.mean, lambda kl: max(kl, nats)),
        "free bits per latent": (
            {"free_bits": nats, "free_bits_per": "latent"},
            (D, 2),
            np.sum,
            lambda kl: np.maximum(kl, nats).sum(),
        ),
        "capacity per sample": ({"capacity": nats}, (B,), np.mean, lambda kl: np.abs(kl - nats).mean()),
        "capacity of the batch": ({"capacity": nats}, (), np.mean, lambda kl: abs(kl - nats)),
    }[name]


OPTIONS = [
    "free bits per sample",
    "free bits of the batch",
    "free bits per latent",
    "capacity per sample",
    "capacity of the batch",
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_the_module_weights_what_takes_the_place_of_the_kl_and_reports_the_kl(name, dtype, backend):
    options, shape, report, replace = module_and_formula(name, 1.5)
    output = (values(B, PIXELS, device=backend.device) * 3 - 1).to(dtype).requires_grad_()
    target = values(B, PIXELS, device=backend.device, dtype=dtype, seed=2)
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    kl = kls(*shape, dtype=accumulated, device=backend.device)
    losses = ELBOLoss(beta=0.5, **options)(output, target, kl)
    assert isinstance(losses, ELBO)
    torch.testing.assert_close(losses.reconstruction, reconstruction_loss(output, target))
    close(losses.kl, report(array(kl)), accumulated)
    wanted = array(losses.reconstruction) + 0.5 * replace(array(kl))
    np.testing.assert_allclose(array(losses.total), wanted, rtol=1e-6)
    assert losses.total.dtype == accumulated


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_of_the_module(name, backend):
    options, shape, *_ = module_and_formula(name, 1.5)
    if backend.name == "triton":
        options["beta"] = 0.5  # exact in float32, to which the interpreter rounds it
    loss, target = ELBOLoss(**options), values(B, PIXELS, device=backend.device)
    output = values(B, PIXELS, device=backend.device, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, kl: tuple(loss(a, target, kl)), (output, kls(*shape, device=backend.device))
    )


@quick
@given(st.lists(nats_in_range, min_size=1, max_size=6), nats_in_range, nats_in_range)
def test_free_bits_grow_with_the_floor_and_capacity_is_a_distance(kl, nats, more):
    kl = torch.tensor(kl, dtype=torch.float64)
    low, high = sorted((nats, more))
    for per in ("sample", "latent"):
        assert (free_bits(kl, high, per=per) >= free_bits(kl, low, per=per)).all()
    assert torch.equal(free_bits(kl, 0), kl)
    assert torch.equal(capacity(kl, 0), kl)
    assert (capacity(kl, low) <= capacity(kl, high) + (high - low) + 1e-12).all()
    # A floor is one-sided: above it, free bits are capacity's distance and the floor.
    torch.testing.assert_close(free_bits(kl, low), (kl + low + capacity(kl, low)) / 2)


# the importance-weighted bound


def iwae_numpy(nll, kl):
    """[B]: -log of the mean weight, with the largest taken out."""
    log_weights = -(nll + kl)
    largest = log_weights.max(0)
    return -(np.log(np.exp(log_weights - largest).mean(0)) + largest)


@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (1, B), (K, B), (300, 2)], ids=str)
def test_iwae(dtype, shape):
    nll, kl = kls(*shape, dtype=dtype), (kls(*shape, dtype=dtype) - 2).flip(0)
    wanted = iwae_numpy(array(nll), array(kl))
    close(iwae_loss(nll, kl, reduction="sample"), wanted, dtype)
    close(iwae_loss(nll, kl, reduction="sum"), wanted.sum(), dtype)
    close(iwae_loss(nll, kl), wanted.mean(), dtype)


def test_iwae_of_weights_that_no_float_holds():
    nll = torch.tensor([[2000.0, -2000.0], [3000.0, -2000.0]], requires_grad=True)
    losses = iwae_loss(nll, torch.zeros(2, 2), reduction="sample")
    torch.testing.assert_close(losses, torch.tensor([2000.0 + math.log(2), -2000.0]))
    (gradient,) = torch.autograd.grad(losses.sum(), nll)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 0.5], [0.0, 0.5]]))


def test_iwae_with_one_sample_is_the_negative_elbo():
    posterior = DiagonalGaussian(kls(B, D) - 1, kls(B, D) - 2)
    prior = DiagonalGaussian(torch.zeros(B, D).double(), torch.zeros(B, D).double())
    z = posterior.rsample(seed=0)
    output, target = z.repeat(1, 2), values(B, PIXELS)
    kl = posterior.log_prob(z) - prior.log_prob(z)
    nll = reconstruction_loss(output, target, reduction="sample")
    torch.testing.assert_close(iwae_loss(nll[None], kl[None]), elbo_loss(output, target, kl).total)


@quick
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=8), st.floats(-50, 50))
def test_iwae_lies_between_the_best_sample_and_the_mean(nll, shift):
    nll = torch.tensor(nll, dtype=torch.float64)[:, None]
    loss = iwae_loss(nll, torch.zeros_like(nll))
    assert nll.min() - 1e-9 <= loss <= nll.mean() + 1e-9  # the mean is the negative ELBO of these samples
    torch.testing.assert_close(iwae_loss(nll, torch.full_like(nll, shift)), loss + shift)
    torch.testing.assert_close(iwae_loss(nll.repeat(3, 1), torch.zeros(3 * len(nll), 1).double()), loss)


def test_an_empty_batch():
    empty = torch.zeros(K, 0)
    assert iwae_loss(empty, empty, reduction="sample").shape == (0,)
    assert iwae_loss(empty, empty, reduction="sum") == 0
    assert iwae_loss(empty, empty).isnan()
    assert free_bits(torch.zeros(0), 1.0).shape == capacity(torch.zeros(0), 1.0).shape == (0,)


def test_the_functions_compile():
    def objective(mu, logvar, kl):
        latent = free_bits(gaussian_kl(mu, logvar, reduction="latent"), 0.5, per="latent")
        return latent + capacity(kl, 2.0).mean() + free_bits(kl, 2.0).mean() + iwae_loss(kl.view(1, -1), kl.view(1, -1))

    torch._dynamo.reset()
    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True)
    arguments = kls(B, D), kls(B, D), kls(B)
    actual, wanted = compiled(*arguments), objective(*arguments)
    torch.testing.assert_close(actual, wanted)
    torch.testing.assert_close(torch.autograd.grad(actual, arguments), torch.autograd.grad(wanted, arguments))


def test_iwae_of_weights_that_are_all_0():
    nll = torch.tensor([[math.inf, math.inf], [math.inf, 3.0]])
    assert iwae_loss(nll, torch.zeros(2, 2), reduction="sample").tolist() == pytest.approx([math.inf, 3 + math.log(2)])


def test_free_bits_per_means_nothing_without_free_bits():
    output, target, kl = torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([1.0, 3.0])
    assert ELBOLoss(capacity=1.0, free_bits_per="latent")(output, target, kl).kl.item() == 2.0


@pytest.mark.parametrize("options", [{"free_bits": 1.0}, {"capacity": 1.0}], ids=str)
def test_dtypes_of_the_module_are_those_of_elbo_loss(options):
    output, target, kl = torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([1.0, 3.0], dtype=torch.float64)
    made, plain = ELBOLoss(**options)(output, target, kl), elbo_loss(output, target, kl)
    assert [part.dtype for part in made] == [part.dtype for part in plain]
