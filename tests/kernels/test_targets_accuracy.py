"""Targets of any dtype, scaled, weighted and sampled: the loss and its gradients against the reference."""

import numpy as np
import pytest
import torch

from tests.kernels.latents import DTYPES
from tests.kernels.outputs import INTEGERS, LAYOUTS, LIKELIHOODS, REDUCTIONS, WEIGHTS, Case, sample
from tests.support.environment import INTERPRETED
from vae_fast import elbo_loss, reconstruction_loss
from vae_fast.reference import noise

SHAPES = ["MNIST", "primes", "chunks of images", "channels_last output", "rows split over programs", "full tiles"]
SEED = 2**40 + 3


def scales(backend, dtype):
    """An inexact one too, where numbers reach the kernels in float64."""
    truncated = INTERPRETED and backend.name == "triton" and dtype == torch.float64
    return [0.25] if truncated else [0.25, 1 / 255]


@pytest.mark.parametrize("target_dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_integer_targets(likelihood, dtype, target_dtype, backend):
    for scale in scales(backend, dtype):
        case = Case("primes", likelihood, backend, dtype, target_dtype, target_scale=scale)
        case.check(case.loss(), "batchmean")


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_in_every_layout_and_reduction(layout, likelihood, backend):
    for reduction in REDUCTIONS:
        case = Case(layout, likelihood, backend, torch.bfloat16, torch.uint8)
        case.check(case.loss(reduction), reduction)


def test_the_default_scale_is_that_of_pixels_for_bytes_alone(backend):
    output = torch.zeros(2, 3, device=backend.device)
    for dtype, factor in ((torch.uint8, 1 / 255), (torch.int16, 1.0), (torch.bool, 1.0), (torch.float32, 1.0)):
        target = torch.ones(2, 3, device=backend.device, dtype=dtype)
        for likelihood in ("mse", "bernoulli"):
            loss = reconstruction_loss(output, target, likelihood)
            scaled = reconstruction_loss(output, target.float() * factor, likelihood)
            torch.testing.assert_close(loss, scaled)
            assert torch.equal(loss, reconstruction_loss(output, target, likelihood, target_scale=factor))


def test_bytes_that_are_counts_are_not_scaled(backend):
    target = torch.tensor([[0, 1, 200]], device=backend.device, dtype=torch.uint8)
    for likelihood, number in (("poisson", 1), ("negative_binomial", 2), ("zero_inflated_negative_binomial", 3)):
        ones = tuple(torch.ones(1, 3, device=backend.device) for _ in range(number))
        losses = [reconstruction_loss(ones, t, likelihood, reduction="none") for t in (target, target.float())]
        torch.testing.assert_close(*losses)


def test_integers_beyond_float32_are_exact_in_float64(backend):
    target = torch.tensor([[2**40 + 1, -(2**52) - 1]], device=backend.device)
    output = torch.zeros(1, 2, device=backend.device, dtype=torch.float64).requires_grad_()
    (grad,) = torch.autograd.grad(reconstruction_loss(output, target, "mse"), output)
    assert torch.equal(grad, -2 * target.double())


def test_white_is_one(backend):
    """255 / 255, whatever 1 / 255 is rounded to: a saturated pixel has the loss of a 1."""
    output = torch.ones(1, 64, device=backend.device)
    white = torch.full((1, 64), 255, device=backend.device, dtype=torch.uint8)
    assert reconstruction_loss(output, white, "mse").item() <= 64 * 2.0**-46


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_weights(likelihood, layout, weight, backend):
    """Reductions take turns: each meets every likelihood, layout and weight, in not every combination."""
    turn = sum(
        list(names).index(name) for names, name in ((LIKELIHOODS, likelihood), (SHAPES, layout), (WEIGHTS, weight))
    )
    reduction = REDUCTIONS[turn % len(REDUCTIONS)]
    case = Case(layout, likelihood, backend, weight=weight)
    case.check(case.loss(reduction), reduction)


@pytest.mark.parametrize("weight", ["per sample", "a mask", "shared by samples"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_in_every_dtype(dtype, weight, backend):
    for likelihood in LIKELIHOODS:
        case = Case("MNIST", likelihood, backend, dtype, torch.uint8, weight=weight, target_scale=0.5)
        case.check(case.loss(), "batchmean")


@pytest.mark.parametrize("layout", ["a batch alone", "the smallest", "one long row", "the batch innermost"])
def test_weights_of_shapes_with_few_dimensions(layout, backend):
    for weight in ("per sample", "elementwise", "shared by samples", "one number"):
        case = Case(layout, "gaussian", backend, weight=weight)
        case.check(case.loss("sample"), "sample")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_what_is_masked_does_not_count_even_if_it_is_not_finite(likelihood, bad, dtype, backend):
    for reduction in REDUCTIONS:
        case = Case("primes", likelihood, backend, dtype, weight="a mask")
        masked = ~case.options["weight"]
        expected = case.loss(reduction)
        grads = torch.autograd.grad(expected.sum(), case.params, retain_graph=True)
        with torch.no_grad():
            for tensor in (*case.params, case.target):
                tensor[masked] = bad
        loss = case.loss(reduction)
        torch.testing.assert_close(loss, expected)
        found = torch.autograd.grad(loss.sum(), case.params)
        torch.testing.assert_close(found, grads)
        assert all(not grad[masked].any() for grad in found)


def test_a_weight_that_is_nan_shows(backend):
    case = Case("MNIST", "mse", backend, weight="elementwise")
    case.options["weight"][1, 5] = float("nan")
    loss = case.loss("sample")
    assert loss.isnan().tolist() == [False, True, False]
    (grad,) = torch.autograd.grad(loss.sum(), case.params)
    assert grad.isnan().sum() == 1


def test_means_divide_by_all_elements(backend):
    output, target = (torch.full((4, 6), v, device=backend.device) for v in (1.0, 3.0))
    weight = torch.tensor([1.0, 0.0, 0.0, 0.0], device=backend.device)
    for reduction, value in (("sum", 24.0), ("mean", 1.0), ("batchmean", 6.0)):
        assert reconstruction_loss(output, target, "mse", reduction=reduction, weight=weight).item() == value


@pytest.mark.parametrize("target_dtype", [torch.float32, torch.uint8, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_binarised_targets(layout, target_dtype, backend):
    for reduction in REDUCTIONS:
        case = Case(layout, "bernoulli", backend, target_dtype=target_dtype, binarize=True, seed=SEED)
        case.check(case.loss(reduction), reduction)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_binarised_targets_in_every_dtype(dtype, backend):
    for weight in (None, "a mask"):
        case = Case("MNIST", "bernoulli", backend, dtype, torch.uint8, weight=weight, binarize=True, seed=-1)
        case.check(case.loss(), "batchmean")


def drawn(logits, target, **options):
    """The sample, from the gradient at logits of 0, which is 1/2 - x."""
    (grad,) = torch.autograd.grad(reconstruction_loss(logits, target, binarize=True, **options), logits)
    return 0.5 - grad


@pytest.mark.parametrize("layout", ["MNIST", "primes", "channels_last", "chunks of images", "the batch innermost"])
def test_the_sample_is_the_reference_s_bit_for_bit(layout, backend):
    for dtype in (torch.float32, torch.float64):
        case = Case(layout, "bernoulli", backend, dtype, torch.uint8)
        (logits,) = case.params
        zeros = (logits.detach() * 0).requires_grad_()
        found = drawn(zeros, case.target, seed=SEED, reduction="sum")
        assert np.array_equal(found.cpu().numpy(), sample(case.target, SEED, 1 / 255, logits))


def test_the_probability_of_a_sample_is_a_float32_in_any_dtype(backend):
    """Between one and the next of the noise's numbers it is rounded, so that a seed gives the same bits everywhere."""
    logits = torch.ones(4, 64, dtype=torch.float64, device=backend.device)
    u = torch.from_numpy(noise.uniform(SEED, logits.numel())).to(logits).view(4, 64)
    loss = reconstruction_loss(logits, u * (1 + 2**-40), binarize=True, seed=SEED, reduction="none")
    assert torch.equal(loss, reconstruction_loss(logits, torch.zeros_like(logits), reduction="none"))


def test_black_and_white_are_certain_and_grey_is_fair(backend):
    logits = torch.zeros(4, 10000, device=backend.device).requires_grad_()
    for grey in (0.0, 1.0, 0.3):
        found = drawn(logits, torch.full_like(logits, grey), seed=0, reduction="sum")
        assert abs(found.mean().item() - grey) < (0.01 if grey == 0.3 else 1e-12)
        assert set(found.unique().tolist()) <= {0.0, 1.0}


def test_grey_that_is_nan_gives_nan(backend):
    target = torch.tensor([[0.0, float("nan")]], device=backend.device)
    loss = reconstruction_loss(torch.zeros_like(target), target, binarize=True, seed=0, reduction="none")
    assert loss.isnan().tolist() == [[False, True]]


def test_drawn_samples_differ_and_follow_the_generator(backend):
    logits = torch.zeros(3, 500, device=backend.device).requires_grad_()
    target = torch.full_like(logits, 0.5)

    def draw(seed):
        generator = torch.Generator(backend.device).manual_seed(seed)
        return drawn(logits, target, generator=generator, reduction="sum")

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    torch.manual_seed(0)
    first, second = (drawn(logits, target, reduction="sum") for _ in range(2))
    torch.manual_seed(0)
    assert not torch.equal(first, second)
    assert torch.equal(first, drawn(logits, target, reduction="sum"))


def test_backward_draws_the_same_sample_again(backend):
    """As after retain_graph, in float16, and for losses a sample."""
    logits = torch.zeros(3, 50, device=backend.device).requires_grad_()
    loss = reconstruction_loss(logits, torch.full_like(logits, 0.5), binarize=True, seed=1, reduction="sum")
    made, recomputed = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(made, recomputed)


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("options", [{"weight": "per sample"}, {"weight": "a mask"}, {}], ids=str)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_elbo_loss(likelihood, options, averaged, backend):
    binarize = {"binarize": True, "seed": 3} if likelihood == "bernoulli" else {}
    case = Case("primes", likelihood, backend, torch.bfloat16, torch.uint8, **options, **binarize)
    kl = torch.rand(() if averaged else len(case.target), device=backend.device).requires_grad_()
    losses = elbo_loss(case.output, case.target, kl, likelihood=likelihood, beta=0.5, **case.options)
    torch.testing.assert_close(losses.reconstruction, case.loss(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(losses.kl, kl.mean())
    torch.testing.assert_close(losses.total, losses.reconstruction + 0.5 * losses.kl)
    for factor in (1, 2):
        *grads, kl_grad = torch.autograd.grad(losses.total, [*case.params, kl], torch.full_like(losses.total, factor),
                                              retain_graph=True)  # fmt: skip
        case.check_grads(grads, case.oracle(), factor / len(case.target))
        torch.testing.assert_close(kl_grad, torch.full_like(kl, factor * 0.5 / max(kl.numel(), 1)))
