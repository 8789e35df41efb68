"""Small float32 losses on the CPU are PyTorch's own ops, where those exist: less host time, the same numbers."""

import pytest
import torch
import torch.nn.functional as F

from tests.ops.cases import values
from vae_fast import elbo_loss, reconstruction_loss, use_backend
from vae_fast.eager import likelihoods

NATIVE = {"bernoulli": F.binary_cross_entropy_with_logits, "mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}


@pytest.fixture(autouse=True)
def _eager():
    with use_backend("eager"):
        yield


def tensors(samples=4, elements=6, dtype=torch.float32):
    logits = (values(samples, elements, dtype=dtype) * 4 - 2).requires_grad_()
    return logits, values(samples, elements, dtype=dtype, seed=2)


def test_every_native_op_is_tested():
    rows = {name: row for name, row in vars(likelihoods).items() if isinstance(row, likelihoods.Likelihood)}
    assert {name for name, row in rows.items() if row.native} == set(NATIVE)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize(("reduction", "count"), [("sum", 1), ("mean", 24), ("batchmean", 4)])
def test_value_and_gradient(name, reduction, count):
    logits, target = tensors()
    expected = NATIVE[name](logits, target, reduction="sum") / count
    actual = reconstruction_loss(logits, target, name, reduction=reduction)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, logits), torch.autograd.grad(expected, logits))


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("beta", [2.0, torch.tensor(2.0)], ids=["number", "tensor"])
@pytest.mark.parametrize("shape", [(4,), ()], ids=["per_sample", "averaged"])
def test_the_whole_loss(name, beta, shape):
    logits, target = tensors()
    kl = values(*shape, dtype=torch.float32).requires_grad_()
    total, nll, divergence = elbo_loss(logits, target, kl, likelihood=name, beta=beta)
    torch.testing.assert_close(nll, NATIVE[name](logits, target, reduction="sum") / 4)
    torch.testing.assert_close(divergence, kl.mean())
    torch.testing.assert_close(total, nll + 2 * kl.mean())
    assert divergence.data_ptr() != kl.data_ptr()  # a caller may change what we return
    (gradient,) = torch.autograd.grad(total, kl)
    torch.testing.assert_close(gradient, torch.full_like(kl, 2 / max(kl.numel(), 1)))


@pytest.mark.parametrize("name", ["bernoulli", "mse"])  # that of l1 is 0
def test_a_second_derivative_is_right_instead_of_an_error(name):
    logits, target = tensors()
    penalties = []
    for loss in (reconstruction_loss(logits, target, name), NATIVE[name](logits, target, reduction="sum") / 4):
        (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
        penalties.append(torch.autograd.grad(gradient.square().sum(), logits)[0])
    torch.testing.assert_close(*penalties)
    assert penalties[0].abs().max() > 0


def is_native(logits, target, name="mse", **options):
    return "Ordinary" not in reconstruction_loss(logits, target, name, **options).grad_fn.name()


@pytest.mark.parametrize("name", NATIVE)
def test_where_the_function_takes_over(name):
    most = getattr(likelihoods, name).most * torch.get_num_threads()
    assert is_native(*tensors(1, most), name)
    assert not is_native(*tensors(1, most + 1), name)


def test_other_dtypes_and_reductions_are_not_native():
    logits, target = tensors()
    assert is_native(logits, target)
    assert not is_native(logits, target, reduction="sample")
    assert not is_native(logits, target.bfloat16())
    assert not is_native(*tensors(dtype=torch.float64))
    assert not is_native(*tensors(dtype=torch.bfloat16))


def test_what_pytorch_s_op_does_not_do_is_not_native():
    logits, target = tensors()
    assert not is_native(logits, target, target_scale=0.5)
    assert not is_native(logits, target, weight=torch.ones(4))
    assert not is_native(logits, target.to(torch.uint8))
    assert not is_native(logits, target, "bernoulli", binarize=True, seed=0)
    assert not is_native(logits, target, "bernoulli", binarize=True)
    kl = torch.zeros(4)
    for options in ({"weight": torch.ones(4)}, {"target_scale": 0.5}, {"binarize": True, "seed": 0}):
        assert "Ordinary" in elbo_loss(logits, target, kl, **options).reconstruction.grad_fn.name()


def test_the_profiler_sees_our_op():
    logits, target = tensors()
    with torch.profiler.profile() as profile:
        reconstruction_loss(logits, target)
    assert "vae_fast::reconstruction_forward" in {event.key for event in profile.key_averages()}
