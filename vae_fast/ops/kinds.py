"""Kinds of calls of the kernels: what a long way has found out of one call holds for all of its kind.

A launch waits for its host, who would check the same shapes and options in each step of a training. The second call of
a kind goes past the checks, and past the search for how its launches are played.
"""

import torch
from torch._C._dynamo.guards import TensorGuards

from vae_fast.ops import backend
from vae_fast.ops.plain import PLAIN, is_plain, overheard

MOST, MOST_ALIKE = 4096, 16  # rows of a table, and kinds in a row: dynamic shapes must not fill the memory


class Table:
    """Values, each for calls of one kind: with tensors that differ in nothing that a launch depends on but addresses.

    A row is of the kinds that have in common the shape of the first tensor, which tensors are None, and what else is
    asked. What tells them apart is PyTorch's own guard of compiled code: it takes a tenth of the time in which Python
    asks each tensor for its strides, dtype and device, and minds modes and transforms of the thread, too.
    """

    def __init__(self):
        self._rows = {}

    def look_up(self, tensors, asked=()):
        """(a key to add the value, the value or None). The key: (its row, the tensors that are not None).

        TypeError where what is asked has no hash.
        """
        given = present(*tensors)
        row = given[0].shape, *map(type, tensors), *asked
        for are_alike, value in self._rows.get(row, ()):
            if are_alike(*given):
                return (row, given), value
        return (row, given), None

    def add(self, key, value):
        """The value; None, and nothing added, where a tensor is not plain or is given twice."""
        row, given = key
        if not all(map(is_plain, given)):
            return None
        are_alike = TensorGuards(*given, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
        if not are_alike(*given):
            return None
        if len(self._rows) >= MOST:
            self._rows.clear()
        self._rows[row] = *self._rows.get(row, ())[1 - MOST_ALIKE :], (are_alike, value)
        return value


_kinds = Table()


def find(tensors, *asked):
    """(a call's key, the kind that is kept under it or None).

    tensors: all that may be given, each may be None but the first. asked: all else that checks and specs depend on; the
    type of a number too, as True is equal to 1. The key is None where a call is not the kernels', or not plain, or not
    differentiated.
    """
    if overheard() or type(tensors[0]) not in PLAIN or not backend.launches(tensors[0]) or not torch.is_grad_enabled():
        return None, None
    for tensor in tensors:
        if type(tensor) in PLAIN and tensor.is_nested:  # it has no shape, and PyTorch's guard would end the process
            return None, None
    try:
        return _kinds.look_up(tensors, asked)
    except TypeError:  # an option that has no hash
        return None, None


def keep(key, tensors, kind, *arguments):
    """Keep kind(*arguments) for calls to come, if there is a key, and one of the op's tensors needs a gradient."""
    if key is not None and tensors[0].numel() and any(t is not None and t.requires_grad for t in tensors):
        _kinds.add(key, kind(*arguments))


class Replay:
    """The calls of a launcher that are known to be of one kind: their plan is looked up once."""

    __slots__ = ("_launcher", "_plan")

    def __init__(self, launcher):
        self._launcher, self._plan = launcher, None

    def play(self, tensors, number=None):
        """What the launcher gives; None, and nothing done, where it must be called.

        tensors: a list of those among its arguments, in their order. number: its `beta`.
        """
        return None if self._plan is None else self._plan(tensors, number)

    def call(self, *arguments, **options):
        """The launcher's own call, after which the next one may be played."""
        made = self._launcher(*arguments, **options)
        if self._plan is None:  # it may have been left out for an address that is not aligned
            self._plan = self._launcher.plan_of(*arguments, **options)
        return made


class Replays:
    """A `Replay` of one launcher for each kind of tensors that backward gets.

    Of the upstream gradients, but of what was saved, too: a hook may have saved something else, such as a dense copy.
    """

    def __init__(self, launcher):
        self._launcher, self._table = launcher, Table()

    def of(self, *tensors):
        """(that of these tensors, or Nones, and those that are not None); (None, None) where they cannot be played."""
        if overheard():
            return None, None
        key, replay = self._table.look_up(tensors)
        return self._table.add(key, Replay(self._launcher)) if replay is None else replay, key[1]


def present(*tensors):
    """Those that are not None."""
    return [t for t in tensors if t is not None]
