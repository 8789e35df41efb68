"""Schedules of a weight over training: frozen dataclasses, called with the number of steps already taken.

A number gives a float. A tensor gives a float32 tensor, computed on its device: nothing waits for it, and torch.compile
and CUDA graphs see one computation at every step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_fast import checks

Schedule = Callable[[Tensor], float | Tensor]  # steps taken -> weight: a dataclass below, or any function


@dataclass(frozen=True)
class Constant:
    """The same weight at every step, as a float.

    Args:
        beta: a finite number >= 0.

    Raises:
        TypeError, ValueError: beta is not such a number, or step is not a number >= 0 or a tensor.

    >>> Constant(4.0)(1000)
    4.0
    """

    beta: float

    def __post_init__(self):
        _keep(self, checks.number, "beta")

    def __call__(self, step: float | Tensor) -> float:
        _taken(step)
        return self.beta


@dataclass(frozen=True)
class LinearWarmup:
    """A straight line from `start` at step 0 to `end` at step `steps`, and `end` from there on (Sønderby et al. 2016).

    Args:
        steps: an int, 1 or more.
        start, end: finite numbers >= 0; exact at both ends. end may be the smaller.

    Raises:
        TypeError, ValueError: an argument is not such a number, or step is not a number >= 0 or a tensor.

    >>> warmup = LinearWarmup(10)
    >>> warmup(0), warmup(5), warmup(10), warmup(1000)
    (0.0, 0.5, 1.0, 1.0)
    """

    steps: int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self):
        _keep(self, checks.count, "steps")
        _keep(self, checks.number, "start", "end")

    def __call__(self, step: float | Tensor) -> float | Tensor:
        return _ramp(_taken(step), self.steps, self.start, self.end)


@dataclass(frozen=True)
class Cyclical:
    """Cycles of a straight line from `start` to `end`, then `end` (Fu et al. 2019, equations 6 and 7).

    Args:
        period: steps of one cycle, an int, 1 or more. For T steps of training it is T / cycles.
        cycles: their number, an int, 1 or more; the weight stays at `end` after the last.
        ratio: the part of a cycle that the line takes, in (0, 1].
        start, end: finite numbers >= 0.

    Raises:
        TypeError, ValueError: an argument is not such a number, or step is not a number >= 0 or a tensor.

    >>> cyclical = Cyclical(period=8, cycles=2)
    >>> [cyclical(step) for step in (0, 2, 4, 7, 8, 10, 16, 1000)]
    [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0]
    """

    period: int
    cycles: int = 4
    ratio: float = 0.5
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self):
        _keep(self, checks.count, "period", "cycles")
        _keep(self, checks.ratio, "ratio")
        _keep(self, checks.number, "start", "end")

    def __call__(self, step: float | Tensor) -> float | Tensor:
        step = _taken(step)
        # Past the last cycle's start the position only grows: the ramp then stays at its end.
        position = step - self.period * _at_most(step // self.period, self.cycles - 1)
        return _ramp(position, self.period * self.ratio, self.start, self.end)


def _keep(schedule, check, *names):
    """Replace these fields by the plain number that `check` makes of it, by which a tensor can be multiplied."""
    for name in names:
        object.__setattr__(schedule, name, check(name, getattr(schedule, name)))


def _taken(step):
    """A number as a float; a tensor as it is, but integers as int64: fewer bits may not hold the start of a cycle."""
    if not isinstance(step, Tensor):
        return checks.number("step", step, "a number or a tensor")
    checks.is_real("step", step)
    return step if step.is_floating_point() else step.to(torch.int64)


def _ramp(step, steps, start, end):
    if isinstance(step, Tensor):
        step = step.to(torch.float32)
    fraction = _at_most(step / steps, 1.0)
    return (1.0 - fraction) * start + fraction * end


def _at_most(value, bound):
    return value.clamp(max=bound) if isinstance(value, Tensor) else min(value, bound)
