"""The gate: right contenders pass it, deliberately wrong ones get no speed."""

import dataclasses
import os

import pytest
import torch

from vae_fast.benchmarks import cases, correctness, formulas, steps
from vae_fast.benchmarks.contenders import CONTENDERS, Contender
from vae_fast.benchmarks.correctness import Wrong
from vae_fast.benchmarks.formulas import OPS

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="speed is that of compiled code")

CPU = torch.device("cpu")
SHAPES = {"sample_kl": (37, 19), "sample_kl_packed": (5, 3, 4, 6), "kl": (37, 19)}
EAGER, FUSED = CONTENDERS["eager"], CONTENDERS["vae_fast"]


# What people write for these is off by 1e-4 and more in float32.
LOSES_DIGITS = ("continuous_bernoulli", "discretized_logistic")


def small(op, precision=cases.FLOAT32):
    target = torch.int64 if op == "categorical" else precision.target
    return cases.Case(op, SHAPES.get(op, (37, 3, 5)), precision.dtype, target, "small", latents=11)


def check(case, contender, function=None):
    inputs, noise = formulas.draw_inputs(case, CPU), correctness.draw_noise(case, CPU)
    return correctness.check_op(case, contender, function or contender.function(case.op), inputs, noise)


@pytest.mark.parametrize("precision", cases.ALL, ids=["float32", "bfloat16", "mixed"])
@pytest.mark.parametrize("contender", [EAGER, FUSED], ids=lambda contender: contender.name)
@pytest.mark.parametrize("op", OPS)
def test_right_contenders_pass(op, contender, precision):
    if op in LOSES_DIGITS and contender is EAGER:
        with pytest.raises(correctness.Wrong):
            check(small(op, precision), contender)
        return
    error = check(small(op, precision), contender)
    assert 0 < error < (2e-5 if precision == cases.FLOAT32 else 3e-2) or (op, error) == ("l1", 0)


@pytest.mark.parametrize("op", OPS)
def test_the_reference_is_the_same_in_chunks(op, monkeypatch):
    torch.manual_seed(0)
    whole = check(small(op), FUSED)
    monkeypatch.setattr(correctness, "CHUNK", 100)
    torch.manual_seed(0)
    assert check(small(op), FUSED) == pytest.approx(whole, rel=1e-2)


def wrong_value(leaves, target, noise):
    loss = OPS["mse"].eager(leaves, target, noise)[0]
    return (loss + 0.001 * loss.detach(),)


def wrong_gradient(leaves, target, noise):
    loss = OPS["mse"].eager(leaves, target, noise)[0]
    return (loss.detach() + 1.001 * (loss - loss.detach()),)


def one_wrong_element(leaves, target, noise):
    leaves[0].register_hook(lambda grad: grad.index_fill(0, torch.tensor([3]), 0.0))
    return OPS["mse"].eager(leaves, target, noise)


def not_a_number(leaves, target, noise):
    leaves[0].register_hook(lambda grad: grad * float("nan"))
    return OPS["mse"].eager(leaves, target, noise)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (wrong_value, "wrong: output 0 is off by 1.0e-03 of its largest value, allowed 2e-05"),
        (wrong_gradient, "wrong: gradient 0 is off by 1.0e-03"),
        (one_wrong_element, "wrong: gradient 0 is off by"),
        (not_a_number, "wrong: gradient 0 is off by nan"),
    ],
)
def test_wrong_results_are_found(function, message):
    with pytest.raises(Wrong, match=message):
        check(small("mse"), EAGER, function)


def test_wrong_noise_is_found():
    def other_noise(leaves, target, seed):
        return OPS["sample_kl"].fused(leaves, target, seed + 1)

    with pytest.raises(Wrong, match="output 0"):
        check(small("sample_kl"), FUSED, other_noise)


def test_a_fused_op_is_warm_when_it_is_checked():
    calls = []

    def counted(leaves, target, noise):
        calls.append(noise)
        return OPS["mse"].fused(leaves, target, noise)

    check(small("mse"), FUSED, counted)
    assert len(calls) == 4
    calls.clear()
    check(small("mse"), EAGER, counted)
    assert len(calls) == 1


class Doubled(torch.autograd.Function):
    """The identity, with a wrong gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


@pytest.mark.parametrize("contender", [EAGER, FUSED], ids=lambda contender: contender.name)
@pytest.mark.parametrize("op", ["sample_kl", "sample_kl_packed", "loss"])
def test_what_draws_its_own_noise_is_checked_too(op, contender):
    def wrong_where_drawn(leaves, target, noise):
        leaves = [Doubled.apply(leaf) if noise is None else leaf for leaf in leaves]
        return contender.function(op)(leaves, target, noise)

    with pytest.raises(Wrong, match="gradient 0 is off by"):
        check(small(op), contender, wrong_where_drawn)


def test_drawn_noise_that_is_not_normal_is_found():
    def narrow(leaves, target, eps):
        return OPS["sample_kl"].eager(leaves, target, torch.rand(SHAPES["sample_kl"]) if eps is None else eps)

    with pytest.raises(Wrong, match=r"the noise that it drew has a mean of 0\.\d+, expected 0"):
        check(small("sample_kl"), EAGER, narrow)


def test_a_result_of_another_shape_is_found():
    def reshaped(leaves, target, eps):
        return (OPS["mse"].eager(leaves, target, eps)[0].reshape(1),)

    with pytest.raises(Wrong, match=r"output 0 has shape \[1\], the reference's is \[\]"):
        check(small("mse"), EAGER, reshaped)


STEP = cases.Case("step_mlp", (16, 784), *cases.FLOAT32, "small")


@pytest.mark.parametrize("contender", [EAGER, FUSED], ids=lambda contender: contender.name)
def test_right_steps_pass(contender):
    assert 0 < correctness.check_step(STEP, contender, CPU) < 1e-4


class WrongStep(Contender):
    """Forgets the KL."""

    def step(self, op, model, example):
        return steps.training_step(model, lambda model, x: model.loss(x).reconstruction, steps.adam(model, False))


def test_a_wrong_step_is_found():
    with pytest.raises(Wrong, match="loss is off by"):
        correctness.check_step(STEP, WrongStep("vae_fast", fused=True), CPU)


class IdleStep(Contender):
    def step(self, op, model, example):
        return lambda x: steps.fused_loss(model, x).detach()


def test_a_step_that_does_not_train_is_found():
    with pytest.raises(Wrong, match="got no gradient"):
        correctness.check_step(STEP, IdleStep("idle"), CPU)


def test_a_quiet_model_does_not_depend_on_its_noise():
    model, x = steps.quieten(steps.build_model("step_mlp", CPU)), torch.rand(4, 784)
    first, second = (steps.fused_loss(model, x) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=1e-6, atol=0)


def test_models_are_built_alike_and_leave_the_generator_alone():
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        models.append(steps.build_model("step_mlp", CPU).state_dict())
        assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(*models, rtol=0, atol=0)


def test_batches_are_those_of_their_seed_and_steps_draw_their_noise():
    first, again, other = (steps.draw_batch(STEP, CPU, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    model = steps.build_model("step_mlp", CPU)
    for loss in (steps.eager_loss, steps.fused_loss):
        assert loss(model, first) != loss(model, first)


def test_the_convolutional_model_fits_its_batch():
    model = steps.build_model("step_conv", CPU)
    assert model(torch.rand(2, 3, 64, 64)).output.shape == (2, 3, 64, 64)


def test_the_mean_and_the_variance_of_drawn_noise_are_checked():
    eps = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    correctness._check_noise(eps, 0.0)
    for wrong, what in ((eps + 0.1, "mean"), (1.1 * eps, "mean square"), (0.9 * eps, "mean square")):
        with pytest.raises(Wrong, match=f"has a {what} of"):
            correctness._check_noise(wrong, 0.0)


def test_a_step_that_is_off_by_a_thousandth(monkeypatch):
    step = steps.STEPS["step_mlp"]
    off = dataclasses.replace(step, fused=lambda model, x: 1.001 * step.fused(model, x))
    monkeypatch.setitem(steps.STEPS, "step_mlp", off)
    with pytest.raises(Wrong, match=r"loss is off by 1.0e-03"):
        correctness.check_step(cases.CASES["step_mlp/128x784/float32"], FUSED, CPU)
