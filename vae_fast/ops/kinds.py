"""Kinds of calls of the kernels: what a long way has found out of one call holds for all of its kind.

A launch waits for its host, who would check the same shapes and options in each step of a training. The second call of
a kind goes past the checks, and past the search for how its launches are played.
"""

import torch

from vae_fast.ops import backend
from vae_fast.ops.library import PLAIN, is_plain, overheard

MOST = 4096  # kinds, and descriptions: dynamic shapes must not fill the memory

_kinds = {}


def find(tensors, *asked):
    """(a call's key, the kind that is kept under it or None).

    tensors: all that may be given, each may be None but the first. asked: all else that checks and specs depend on; the
    type of a number too, as True is equal to 1. The key is None where a call is not the kernels', or not plain, or not
    differentiated.
    """
    if overheard() or type(tensors[0]) not in PLAIN or not backend.launches(tensors[0]) or not torch.is_grad_enabled():
        return None, None
    described = _described(tensors)
    if described is None:
        return None, None
    key = described + asked
    try:
        return key, _kinds.get(key)
    except TypeError:  # an option that has no hash
        return None, None


def keep(key, tensors, kind, *arguments):
    """Keep kind(*arguments) for calls to come, if there is a key, and one of the op's tensors needs a gradient."""
    if key is not None and tensors[0].numel() and any(t is not None and t.requires_grad for t in tensors):
        if len(_kinds) >= MOST:
            _kinds.clear()
        _kinds[key] = kind(*arguments)


def _described(tensors):
    """All that a launch depends on of tensors, or Nones, but their addresses; None where one is not plain."""
    found = ()
    for tensor in tensors:
        if tensor is None:
            found += (None,)
        elif is_plain(tensor):
            found += tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad
        else:
            return None
    return found


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


class Replays(dict):
    """A `Replay` of one launcher for each description of tensors that backward gets.

    Of the upstream gradients, but of what was saved, too: a hook may have saved something else, such as a dense copy.
    """

    def __init__(self, launcher):
        super().__init__()
        self._launcher = launcher

    def __missing__(self, described):
        if len(self) >= MOST:
            self.clear()
        made = self[described] = Replay(self._launcher)
        return made

    def of(self, *tensors):
        """That of these tensors, or Nones; None where one is not plain, or something listens."""
        described = None if overheard() else _described(tensors)
        return None if described is None else self[described]


def present(*tensors):
    """Those that are not None, for `Replay.play`."""
    return [t for t in tensors if t is not None]
