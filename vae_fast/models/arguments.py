"""Checks of numbers: each error names the argument, what it was, and what is wanted."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any


def integer(name: str, value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} is {type(value).__name__}: expected an int")
    return int(value)


def size(name: str, value: Any) -> int:
    """An int, 1 or more."""
    if integer(name, value) < 1:
        raise ValueError(f"{name} is {value}: expected 1 or more")
    return int(value)


def sizes(name: str, value: Any, *, may_be_empty: bool = False) -> tuple[int, ...]:
    """A sequence of ints, each 1 or more."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} is {type(value).__name__}: expected a sequence of ints")
    if not value and not may_be_empty:
        raise ValueError(f"{name} is empty: expected one size or more")
    return tuple(size(f"{name}[{i}]", item) for i, item in enumerate(value))


def weight(name: str, value: Any) -> float:
    """A finite number, 0 or more."""
    if not 0 <= _real(name, value) < math.inf:
        raise ValueError(f"{name} is {value}: expected a finite number, 0 or more")
    return float(value)


def rate(name: str, value: Any) -> float:
    """A finite number above 0."""
    if not 0 < _real(name, value) < math.inf:
        raise ValueError(f"{name} is {value}: expected a finite number above 0")
    return float(value)


def _real(name: str, value: Any) -> Real:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} is {type(value).__name__}: expected a number")
    return value
