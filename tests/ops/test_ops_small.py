"""Small float32 losses on the CPU take less host time, by PyTorch's own op or a Function of their own: same numbers."""

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
    rows = {name: row for name, row in vars(likelihoods).items() if isinstance(row, likelihoods.Formulas)}
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
def test_a_tuple_of_one_output(name):
    logits, target = tensors()
    assert torch.equal(reconstruction_loss((logits,), target, name), reconstruction_loss(logits, target, name))
    kl = torch.zeros(4)
    assert elbo_loss((logits,), target, kl, likelihood=name) == elbo_loss(logits, target, kl, likelihood=name)


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


def node(output, target, name="mse", **options):
    loss = reconstruction_loss(output, target, name, **options)
    return loss.grad_fn.name()  # for as long as the loss is there


def is_native(logits, target, name="mse", **options):
    return not any(function in node(logits, target, name, **options) for function in ("Ordinary", "_Reconstruction"))


def gives(name, reduction):
    """Whether PyTorch's own op is good for it, of more than one element a sample."""
    return reduction != "none" or name in ("mse", "huber")


@pytest.mark.parametrize("name", NATIVE)
def test_where_the_function_takes_over(name):
    most = getattr(likelihoods, name).most * torch.get_num_threads()
    for weight in (None, torch.ones(1)):
        most *= 4 if weight is not None and name == "bernoulli" else 1
        few, many = tensors(1, most), tensors(1, most + 1)
        assert is_native(*few, name, weight=weight)
        assert not is_native(*many, name, weight=weight)
        for reduction in ("sample", "none"):
            assert is_native(*many, name, reduction=reduction, weight=weight) == gives(name, reduction)


WEIGHTS = {
    "of samples": values(4, dtype=torch.float32, seed=3),
    "with a zero": torch.tensor([0.0, 1, 2, 3]),
    "of elements": values(4, 6, dtype=torch.float32, seed=3),
    "of features": values(1, 6, dtype=torch.float32, seed=3),
    "in a column": values(4, 1, dtype=torch.float32, seed=3),
    "one": torch.full((1, 1), 2.0),
    "mask": values(4, 6, seed=3) > 0.5,
    "bfloat16": values(4, dtype=torch.bfloat16, seed=3),
    "float64": values(4, dtype=torch.float64, seed=3),
}


@pytest.mark.parametrize("reduction", ["sum", "mean", "batchmean", "sample", "none"])
@pytest.mark.parametrize("weight", [None, *WEIGHTS])
@pytest.mark.parametrize("name", NATIVE)
def test_weights_and_losses_of_samples_and_elements(name, weight, reduction):
    logits, target = tensors()
    weight = None if weight is None else WEIGHTS[weight]
    nll = NATIVE[name](logits, target, reduction="none")
    if weight is not None:
        nll = nll * (weight.unsqueeze(1) if weight.dim() == 1 else weight).float()
    counts = {"sum": 1, "mean": 24, "batchmean": 4}
    expected = nll.sum() / counts[reduction] if reduction in counts else nll.sum(1) if reduction == "sample" else nll
    actual = reconstruction_loss(logits, target, name, reduction=reduction, weight=weight)
    assert is_native(logits, target, name, reduction=reduction, weight=weight) == gives(name, reduction)
    assert actual.dtype is torch.float32
    torch.testing.assert_close(actual, expected)
    upstream = None if reduction in counts else torch.arange(1.0, 1 + expected.numel()).view_as(expected)
    gradients = [torch.autograd.grad(loss, logits, upstream)[0] for loss in (actual, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [None, 0.5])
def test_targets_of_other_dtypes_and_scales(dtype, scale):
    logits, target = tensors()
    target = (target * 200).to(dtype)
    factor = (1 / 255 if dtype is torch.uint8 else 1) if scale is None else scale
    for name, native in NATIVE.items():
        expected = native(logits, target.float() * factor, reduction="sum") / 4
        actual = reconstruction_loss(logits, target, name, target_scale=scale)
        assert is_native(logits, target, name, target_scale=scale)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(torch.autograd.grad(actual, logits), torch.autograd.grad(expected, logits))


@pytest.mark.parametrize("reduction", ["batchmean", "sample"])
def test_a_sampled_target(reduction):
    logits, target = tensors()
    torch.manual_seed(1)
    drawn = (torch.rand(4, 6) < target).float()
    torch.manual_seed(1)
    actual = reconstruction_loss(logits, target, binarize=True, reduction=reduction)
    torch.testing.assert_close(actual, reconstruction_loss(logits, drawn, reduction=reduction))
    assert "Ordinary" not in node(logits, target, "bernoulli", binarize=True, reduction=reduction)
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    first, second = (reconstruction_loss(logits, target, binarize=True, generator=g) for g in generators)
    assert torch.equal(first, second)
    assert not is_native(logits, target, "bernoulli", binarize=True, seed=0)  # whose numbers are the contract's


@pytest.mark.parametrize("reduction", ["batchmean", "sample"])
def test_a_target_is_sampled_once_where_the_loss_is_computed_twice(reduction):
    """PyTorch's own op rounds such a nll away."""
    logits, target = torch.full((4, 6), -16.0, requires_grad=True), torch.zeros(4, 6)
    torch.manual_seed(1)
    loss = reconstruction_loss(logits, target, binarize=True, reduction=reduction)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    torch.rand(4, 6)
    assert torch.equal(drawn, torch.rand(1))
    torch.testing.assert_close(loss, torch.full_like(loss, 6 * 1.1253516e-07), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(loss.sum(), logits)[0].mean(),
        torch.tensor(1.1253516e-07) / (4 if reduction == "batchmean" else 1),
        rtol=1e-6,
        atol=0,
    )


@pytest.mark.parametrize("weight", [torch.tensor([0.0, 1, 1, 1]), torch.ones(4, 6).index_fill(0, torch.tensor(0), 0)])
@pytest.mark.parametrize("reduction", ["batchmean", "sample", "none"])
@pytest.mark.parametrize("name", NATIVE)
def test_what_a_weight_leaves_out_may_be_anything(name, reduction, weight):
    logits, target = tensors()
    expected = reconstruction_loss(logits, target, name, reduction=reduction, weight=weight)
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    for bad in (float("nan"), float("inf")):
        holed = logits.detach().clone()
        holed[0] = bad
        actual = reconstruction_loss(holed.requires_grad_(), target, name, reduction=reduction, weight=weight)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(torch.autograd.grad(actual.sum(), holed)[0], gradient)


def test_the_whole_loss_with_options():
    logits, target = tensors()
    kl, weight = values(4, dtype=torch.float32).requires_grad_(), WEIGHTS["of samples"]
    calls = {"weight": weight}, {"target_scale": 0.5}, {"binarize": True}, {"beta": torch.tensor(2.0)}
    for options in calls:
        torch.manual_seed(1)
        losses = elbo_loss(logits, target, kl, **options)
        beta = options.pop("beta", 1.0)
        torch.manual_seed(1)
        torch.testing.assert_close(losses.reconstruction, reconstruction_loss(logits, target, **options))
        torch.testing.assert_close(losses.total, losses.reconstruction + beta * kl.mean())
        assert "Ordinary" not in losses.reconstruction.grad_fn.name()


def test_a_bad_kl_is_named_before_a_bad_option():
    """As on the long way; and nothing is drawn in vain."""
    logits, target = tensors()
    with pytest.raises(ValueError, match="kl has shape"):
        elbo_loss(logits, target, torch.zeros(3), weight=torch.zeros(5))
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    with pytest.raises(ValueError, match="kl has shape"):
        elbo_loss(logits, target, torch.zeros(3), binarize=True)
    assert torch.equal(torch.rand(1), wanted)


def test_other_dtypes_are_not_native():
    logits, target = tensors()
    assert is_native(logits, target)
    assert not is_native(*tensors(dtype=torch.float64))
    assert not is_native(*tensors(dtype=torch.bfloat16))
    loss = reconstruction_loss(logits, target, "bernoulli", weight=torch.ones(4), binarize=True)
    assert "Ordinary" in loss.grad_fn.name()


class Wrapped(torch.Tensor):
    """A subclass, whose memory could hold anything."""


def test_what_is_not_a_plain_tensor_of_the_cpu_is_not_native():
    logits, target = tensors()
    assert not is_native(logits.as_subclass(Wrapped), target)
    assert not is_native(logits, target.as_subclass(Wrapped))
    with pytest.raises(ValueError, match="they must be on one device"):
        reconstruction_loss(logits.to("meta"), target, "mse")
    with pytest.raises(TypeError, match="expected a dense"):
        reconstruction_loss(logits.detach().to_sparse().requires_grad_(), target, "mse")
    with pytest.raises(ValueError, match="they must be equal"):
        reconstruction_loss(logits, target[:1], "mse")
    for options in ({}, {"target_scale": 0.5}, {"weight": torch.ones(4)}):
        with pytest.raises(ValueError, match="target requires a gradient"):
            reconstruction_loss(logits, target.clone().requires_grad_(), "mse", **options)


def test_the_profiler_sees_our_op():
    logits, target = tensors()
    with torch.profiler.profile() as profile:
        reconstruction_loss(logits, target)
    assert "vae_fast::reconstruction_forward" in {event.key for event in profile.key_averages()}
