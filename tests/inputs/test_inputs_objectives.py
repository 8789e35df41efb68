"""What the objectives and the schedules say of bad arguments: each argument, each kind of wrongness."""

import math

import numpy as np
import pytest
import torch

from tests.inputs.refusals import FLOATS, not_tensors, refuses, zeros
from vae_fast import Constant, Cyclical, ELBOLoss, LinearWarmup, capacity, free_bits, iwae_loss

SAMPLE = 'expected [B] (reduction="sample") or [] (reduction="batchmean")'
NOT_NATS = (torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64)


def _latent(kl, nats=1.0):
    return free_bits(kl, nats, per="latent")


def _module(**options):
    """The module called with kl [4], or as given."""

    def call(kl, output=None, target=None):
        return ELBOLoss(**options)(
            zeros(4, 6) if output is None else output, zeros(4, 6) if target is None else target, kl
        )

    return call


@pytest.mark.parametrize("name", ["beta", "capacity", "free_bits"])
def test_a_schedule_is_made_first(name):
    message = f"{name} is the class LinearWarmup: expected a schedule made of it"
    refuses(TypeError, message, lambda: ELBOLoss(**{name: LinearWarmup}))


FUNCTIONS = [lambda kl: free_bits(kl, 1.0), _latent, lambda kl: capacity(kl, 1.0)]
MODULES = [{"free_bits": 1.0}, {"free_bits": 1.0, "free_bits_per": "latent"}, {"capacity": 1.0}]


@pytest.mark.parametrize("call", [*FUNCTIONS, *(_module(**options) for options in MODULES)])
def test_kl_is_nats(call):
    for value, name in not_tensors():
        refuses(TypeError, f"kl is {name}: expected a tensor", call, value)
    for dtype in NOT_NATS:
        name = str(dtype).removeprefix("torch.")
        refuses(TypeError, f"kl is {name}: expected float32 or float64 nats", call, zeros(4, dtype=dtype))
    message = "kl has layout torch.sparse_coo: expected a dense (strided) tensor"
    refuses(TypeError, message, call, zeros(4).to_sparse())


def test_the_shape_of_kl():
    for call in (FUNCTIONS[0], FUNCTIONS[2]):
        for shape in ((4, 1), (4, 3), (2, 3, 4)):
            refuses(ValueError, f"kl has shape {list(shape)}: {SAMPLE}", call, zeros(*shape))
    wanted = 'kl has shape []: expected [D, ...], one a latent (reduction="latent")'
    for call in (_latent, _module(free_bits=1.0, free_bits_per="latent")):
        refuses(ValueError, wanted, call, zeros())
    for options in ({"free_bits": 1.0}, {"capacity": 1.0}):
        for shape in ((5,), (3,), (4, 3)):
            message = f"kl has shape {list(shape)}: {SAMPLE.replace('B]', '4]', 1)}"
            refuses(ValueError, message, _module(**options), zeros(*shape))


@pytest.mark.parametrize("options", MODULES, ids=str)
def test_output_and_target_are_refused_as_without_options(options):
    refuses(TypeError, "target is NoneType: expected a tensor", lambda kl: ELBOLoss(**options)(kl, None, kl), zeros(4))
    message = "target has shape [4, 5], output has [4, 6]: they must be equal"
    refuses(ValueError, message, _module(**options), zeros(4), zeros(4, 6), zeros(4, 5))
    message = "kl is on meta, target is on cpu: they must be on one device"
    refuses(ValueError, message, _module(**options), zeros(4, device="meta"))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("nats", lambda value: free_bits(zeros(4), value)),
        ("nats", lambda value: free_bits(zeros(4), value, per="latent")),
        ("nats", lambda value: capacity(zeros(4), value)),
        ("free_bits", lambda value: _module(free_bits=value)(zeros(4))),
        ("free_bits", lambda value: _module(free_bits=lambda step: value)(zeros(4))),
        ("capacity", lambda value: _module(capacity=value)(zeros(4))),
        ("beta", lambda value: _module(beta=lambda step: value)(zeros(4))),
    ],
)
def test_weights_in_nats(name, call):
    for value, kind in (("1", "str"), (True, "bool"), ([1.0], "list"), (1j, "complex")):
        refuses(TypeError, f"{name} is {kind}: expected a number or a 0-d tensor", call, value)
    for value in (-1, -1e-9, math.nan, math.inf, -math.inf):
        refuses(ValueError, f"{name} is {value}: expected a finite number >= 0", call, value)
    refuses(TypeError, f"{name} is int64: expected {FLOATS} values", call, torch.tensor(1))
    for shape in ((1,), (4,)):
        message = f"{name} has shape {list(shape)}: expected a number or a 0-d tensor"
        refuses(ValueError, message, call, zeros(*shape))
    message = f"{name} requires a gradient, which is not made: expected one that does not, detached if none is needed"
    refuses(ValueError, message, call, zeros().requires_grad_())
    with pytest.raises(ValueError, match=f"^{name} is on meta, (kl|target) is on cpu: they must be on one device$"):
        call(zeros(device="meta"))


def test_the_options_of_the_module():
    message = "free_bits and capacity were given: expected at most one of them"
    refuses(ValueError, message, ELBOLoss, free_bits=1.0, capacity=1.0)
    for value in ("batch", "", None, 0):
        message = f"{value!r}: expected one of 'sample', 'latent'"
        refuses(ValueError, f"free_bits_per is {message}", ELBOLoss, free_bits=1.0, free_bits_per=value)
        refuses(ValueError, f"per is {message}", free_bits, zeros(4), 1.0, per=value)
    for name in ("free_bits", "capacity"):
        refuses(ValueError, f"{name} is -1: expected a finite number >= 0", ELBOLoss, **{name: -1})
        refuses(TypeError, f"{name} is str: expected a number or a 0-d tensor", ELBOLoss, **{name: "1"})


def test_a_schedule_must_be_there_when_the_module_is_made():
    loss = ELBOLoss()
    loss.beta = LinearWarmup(10)
    message = "a schedule was set on an ELBOLoss made without one: it counts no steps, make a new one"
    refuses(ValueError, message, loss, zeros(4, 6), zeros(4, 6), zeros(4))


@pytest.mark.parametrize("name", ["nll", "kl"])
def test_iwae(name):
    def call(value, **options):
        return iwae_loss(**{"nll": zeros(3, 4), "kl": zeros(3, 4), name: value}, **options)

    for value, kind in not_tensors():
        refuses(TypeError, f"{name} is {kind}: expected a tensor", call, value)
    for dtype in NOT_NATS:
        kind = str(dtype).removeprefix("torch.")
        refuses(TypeError, f"{name} is {kind}: expected float32 or float64 nats", call, zeros(3, 4, dtype=dtype))
    for shape in ((), (4,), (3, 4, 1), (0, 4)):
        message = f"{name} has shape {list(shape)}: expected [K, B] with K of 1 or more"
        refuses(ValueError, message, call, zeros(*shape))
    for reduction in ("mean", "none", None):
        message = f"reduction is {reduction!r}: expected one of 'sample', 'sum', 'batchmean'"
        refuses(ValueError, message, call, zeros(3, 4), reduction=reduction)


def test_iwae_wants_equal_shapes_on_one_device():
    for shape in ((1, 4), (3, 1), (4, 3)):
        message = f"kl has shape {list(shape)}, nll has [3, 4]: they must be equal"
        refuses(ValueError, message, iwae_loss, zeros(3, 4), zeros(*shape))
    message = "kl is on meta, nll is on cpu: they must be on one device"
    refuses(ValueError, message, iwae_loss, zeros(3, 4), zeros(3, 4, device="meta"))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("beta", Constant),
        *((name, lambda value, name=name: LinearWarmup(10, **{name: value})) for name in ("start", "end")),
        *((name, lambda value, name=name: Cyclical(10, **{name: value})) for name in ("start", "end")),
    ],
)
def test_the_ends_of_a_schedule(name, make):
    for value, kind in (("1", "str"), (True, "bool"), (None, "NoneType"), (zeros(), "Tensor")):
        refuses(TypeError, f"{name} is {kind}: expected a number", make, value)
    for value in (-1, math.nan, math.inf):
        refuses(ValueError, f"{name} is {value}: expected a finite number >= 0", make, value)


@pytest.mark.parametrize(
    ("name", "make"),
    [("steps", LinearWarmup), ("period", Cyclical), ("cycles", lambda value: Cyclical(10, cycles=value))],
)
def test_counts_of_a_schedule(name, make):
    for value, kind in ((1.5, "float"), (True, "bool"), (None, "NoneType"), ("10", "str")):
        refuses(TypeError, f"{name} is {kind}: expected an int", make, value)
    for value in (0, -3):
        refuses(ValueError, f"{name} is {value}: expected 1 or more", make, value)
    make(np.int64(3))


def test_ratio():
    for value in (0, 0.0, 1.1):
        refuses(ValueError, f"ratio is {value}: expected a number in (0, 1]", Cyclical, 10, ratio=value)
    refuses(TypeError, "ratio is NoneType: expected a number", Cyclical, 10, ratio=None)


@pytest.mark.parametrize("schedule", [Constant(1.0), LinearWarmup(10), Cyclical(10)], ids=repr)
def test_step(schedule):
    for value, kind in ((None, "NoneType"), ("1", "str"), (True, "bool"), ([1], "list")):
        refuses(TypeError, f"step is {kind}: expected a number or a tensor", schedule, value)
    for value in (-1, math.nan):
        refuses(ValueError, f"step is {value}: expected a finite number >= 0", schedule, value)
