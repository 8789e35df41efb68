"""The schedules against their papers' formulas, and the module that counts their steps."""

import copy
import dataclasses
import io
import math
import pickle
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch._dynamo.testing import CompileCounterWithBackend

from tests.ops.cases import values
from vae_fast import Constant, Cyclical, ELBOLoss, LinearWarmup, capacity, elbo_loss, free_bits

B, PIXELS = 5, 6

SCHEDULES = {
    Constant(2.0): {0: 2.0, 10**9: 2.0},
    LinearWarmup(10): {0: 0.0, 1: 0.1, 5: 0.5, 9: 0.9, 10: 1.0, 11: 1.0, 10**9: 1.0},
    LinearWarmup(1): {0: 0.0, 1: 1.0},
    LinearWarmup(4, start=0.1, end=0.3): {0: 0.1, 2: 0.2, 4: 0.3, 5: 0.3},
    LinearWarmup(4, start=1.0, end=0.25): {0: 1.0, 2: 0.625, 4: 0.25, 100: 0.25},
    Cyclical(10, cycles=2): {0: 0.0, 4: 0.8, 5: 1.0, 9: 1.0, 10: 0.0, 14: 0.8, 15: 1.0, 19: 1.0, 20: 1.0, 10**9: 1.0},
    Cyclical(4, cycles=1, ratio=1.0): {0: 0.0, 1: 0.25, 3: 0.75, 4: 1.0, 5: 1.0},
    Cyclical(10, ratio=0.1, start=0.5, end=4.0): {0: 0.5, 1: 4.0, 10: 0.5, 30: 0.5, 40: 4.0},
    Cyclical(1): {0: 0.0, 3: 0.0, 4: 1.0},
}


@pytest.mark.parametrize(("schedule", "wanted"), SCHEDULES.items(), ids=map(repr, SCHEDULES))
def test_schedules(schedule, wanted):
    for step, value in wanted.items():
        assert schedule(step) == pytest.approx(value, abs=1e-12)
        assert type(schedule(step)) is float
        made = schedule(torch.tensor(step))
        torch.testing.assert_close(torch.as_tensor(made), torch.tensor(value))


@pytest.mark.parametrize("number", [Fraction, np.float32, np.float64], ids=lambda kind: kind.__name__)
def test_numbers_of_other_kinds(number):
    """What is kept is Python's own."""
    for plain, made in (
        (Constant(0.5), Constant(number(1) / 2)),
        (LinearWarmup(4, 0.25, 2.0), LinearWarmup(np.int64(4), number(1) / 4, number(2))),
        (Cyclical(8, 2, 0.5, 0.0, 1.0), Cyclical(np.int64(8), np.int32(2), number(1) / 2, number(0), number(1))),
    ):
        assert repr(made) == repr(plain)
        assert type(made(3)) is float
        torch.testing.assert_close(made(torch.tensor(3)), plain(torch.tensor(3)))


def test_a_schedule_is_exact_at_its_ends():
    schedule = LinearWarmup(3, start=0.1, end=0.7)
    assert (schedule(0), schedule(3)) == (0.1, 0.7)
    assert schedule(torch.tensor(3)) == torch.tensor(0.7)


def test_schedules_are_values():
    for schedule in SCHEDULES:
        assert pickle.loads(pickle.dumps(schedule)) == schedule
    with pytest.raises(dataclasses.FrozenInstanceError):
        LinearWarmup(10).steps = 5


def fu(step, period, cycles, ratio):
    """Fu et al. 2019, equations 6 and 7, whose steps start at 1."""
    total = period * cycles
    tau = ((step + 1 - 1) % math.ceil(total / cycles)) / (total / cycles)
    return tau / ratio if tau <= ratio else 1.0


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 6), st.floats(0.01, 1), st.data())
def test_cyclical_is_the_papers(period, cycles, ratio, data):
    step = data.draw(st.integers(0, period * cycles - 1))
    schedule, wanted = Cyclical(period, cycles, ratio), fu(step, period, cycles, ratio)
    assert schedule(step) == pytest.approx(wanted, abs=1e-12)
    assert float(schedule(torch.tensor(step))) == pytest.approx(wanted, abs=1e-6)


@settings(deadline=None)
@given(st.integers(1, 10**6), st.floats(0, 10), st.floats(0, 10), st.integers(0, 2 * 10**6))
def test_a_warmup_is_monotone_and_within_its_ends(steps, start, end, step):
    schedule = LinearWarmup(steps, start, end)
    first, second = schedule(step), schedule(step + 1)
    assert min(start, end) * (1 - 1e-12) <= first <= max(start, end) * (1 + 1e-12)
    assert (second - first) * (end - start) >= -1e-12


# the module and its step


def batch(seed=0, device="cpu"):
    output = values(B, PIXELS, device=device, dtype=torch.float32, seed=seed).requires_grad_()
    target = values(B, PIXELS, device=device, dtype=torch.float32, seed=seed + 1)
    return output, target, (values(B, device=device, dtype=torch.float32) * 4).requires_grad_()


def test_a_scheduled_beta_follows_the_steps(backend):
    schedule = LinearWarmup(4, end=2.0)
    loss = ELBOLoss(beta=schedule).to(backend.device)
    for step in range(7):
        losses = loss(*batch(device=backend.device))
        torch.testing.assert_close(loss(*batch(device=backend.device)), losses)  # forward does not count
        torch.testing.assert_close(losses.total, losses.reconstruction + schedule(step) * losses.kl)
        loss.advance()


def test_each_weight_may_be_a_schedule():
    for name, function in (("free_bits", free_bits), ("capacity", capacity)):
        loss = ELBOLoss(beta=Cyclical(3), **{name: LinearWarmup(4, end=3.0)})
        for step in range(6):
            losses, kl = loss(*batch()), batch()[2]
            wanted = function(kl, LinearWarmup(4, end=3.0)(step)).mean() * Cyclical(3)(step)
            torch.testing.assert_close(losses.total, losses.reconstruction + wanted)
            loss.advance()


def test_any_callable_is_a_schedule():
    loss = ELBOLoss(beta=lambda step: torch.sigmoid(step - 2.0))
    for _ in range(3):
        loss.advance()
    losses = loss(*batch())
    torch.testing.assert_close(losses.total, losses.reconstruction + torch.tensor(1.0).sigmoid() * losses.kl)


def test_without_options_nothing_changes(backend):
    arguments = batch(device=backend.device)
    for options in ({}, {"beta": 0.3}, {"beta": torch.tensor(0.3, device=backend.device)}):
        loss = ELBOLoss(**options)
        assert all(map(torch.equal, loss(*arguments), elbo_loss(*arguments, **options)))
        loss.advance()
        assert not loss.state_dict()
        assert not list(loss.buffers())


def test_the_step_survives_a_checkpoint():
    loss, file = ELBOLoss(beta=LinearWarmup(10)), io.BytesIO()
    for _ in range(7):
        loss.advance()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    resumed = ELBOLoss(beta=LinearWarmup(10))
    resumed.load_state_dict(torch.load(file))
    for _ in range(2):
        torch.testing.assert_close(resumed(*batch()), loss(*batch()), rtol=0, atol=0)
        resumed.advance()
        loss.advance()
    assert copy.deepcopy(loss).step == resumed.step == 9


def test_another_dtype_leaves_the_weight_as_it_was():
    loss = ELBOLoss(beta=LinearWarmup(10**6)).bfloat16()
    for _ in range(3):
        loss.advance()
    assert (loss.step.item(), loss.step.dtype) == (3, torch.int64)


def test_the_step_stays_where_a_graph_reads_it():
    loss = ELBOLoss(beta=LinearWarmup(10))
    address = loss.step.data_ptr()
    loss.advance()
    assert loss.step.data_ptr() == address


def test_the_module_says_what_it_was_made_with():
    assert repr(ELBOLoss(free_bits=0.5)) == "ELBOLoss('bernoulli', beta=1.0, free_bits=0.5, free_bits_per='sample')"
    assert repr(ELBOLoss(beta=LinearWarmup(10), capacity=5)) == (
        "ELBOLoss('bernoulli', beta=LinearWarmup(steps=10, start=0.0, end=1.0), capacity=5)"
    )


SCHEDULED = [
    {"beta": Constant(0.5)},
    {"beta": LinearWarmup(3)},
    {"beta": Cyclical(2, cycles=2)},
    {"beta": Cyclical(2), "free_bits": LinearWarmup(4, start=3.0, end=0.0)},
    {"beta": 0.5, "capacity": LinearWarmup(3, end=9.0)},
]


@pytest.mark.parametrize("advances", ["in the graph", "outside"])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("options", SCHEDULED, ids=str)
def test_steps_do_not_recompile(options, compiler, advances):
    torch._dynamo.reset()
    compiled, plain = ELBOLoss(**options), ELBOLoss(**options)
    counter = CompileCounterWithBackend(compiler)

    @torch.compile(backend=counter, fullgraph=True)
    def step(*arguments):
        losses = compiled(*arguments)
        if advances == "in the graph":
            compiled.advance()
        return losses.total

    for i in range(6):
        arguments = batch(i)
        total, wanted = step(*arguments), plain(*arguments).total
        torch.testing.assert_close(total, wanted)
        leaves = arguments[::2]
        torch.testing.assert_close(torch.autograd.grad(total, leaves), torch.autograd.grad(wanted, leaves))
        plain.advance()
        if advances == "outside":
            compiled.advance()
    assert counter.frame_count == 1
    assert compiled.step == plain.step == 6


@pytest.mark.parametrize("schedule", [LinearWarmup(5), Cyclical(4, 2)], ids=repr)
def test_a_step_is_real_and_dense(schedule):
    for step in (torch.tensor(1j), torch.ones(2).to_sparse()):
        with pytest.raises(TypeError, match=r"^step (is|has) .*: expected "):
            schedule(step)


@pytest.mark.parametrize("schedule", [LinearWarmup(10), Cyclical(8), Cyclical(1000)], ids=repr)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.int64, torch.int16, torch.int8, torch.uint8, torch.bool], ids=str
)
def test_a_tensor_of_any_dtype_gives_float32(schedule, dtype):
    """A cycle of 1000 steps has no start that 8 bits hold."""
    step = torch.tensor(100 if dtype != torch.bool else 1, dtype=dtype)
    made = schedule(step)
    assert made.dtype == torch.float32
    assert made.item() == pytest.approx(schedule(step.item() + 0))
