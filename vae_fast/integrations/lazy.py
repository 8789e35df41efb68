"""Attributes that are made when they are first read, for classes whose own __init__ makes them all."""

import gc
import logging

import torch

from vae_fast.integrations.tensors import is_like

_log = logging.getLogger("vae_fast")


class Lazy:
    """An attribute that `make(instance)` makes at the first read; then it stands in the instance like any other.

    It has the gradient that it would have had if __init__ had made it: to read it under no_grad, for a log say, must
    not cut a later loss. It is made of `instance._raw`, which __init__ did make.
    """

    def __init__(self, name, make):
        self._name, self._make = name, make

    def __get__(self, instance, owner=None):
        if instance is None:
            return self
        if instance._raw.requires_grad and not torch.is_grad_enabled():
            with torch.inference_mode(False), torch.enable_grad():
                value = self._make(instance)
        else:
            value = self._make(instance)
        setattr(instance, self._name, value)  # there is no __set__: from now on the instance's own comes first
        return value


def source(tensor):
    """What __init__ keeps as `_raw`. Under no_grad a view of a leaf still requires a gradient; what is made of it must
    not. All else stays as it is: torch.jit.trace compares a graph with that of a second call, under no_grad."""
    return tensor.detach() if tensor.requires_grad and not torch.is_grad_enabled() else tensor


def is_untouched(instance, *names):
    """Whether it was made under the patch, nobody has read or set these attributes, and its mean is like its `_raw`."""
    own = vars(instance)
    return "_raw" in own and not any(name in own for name in names) and is_like(instance.mean, instance._raw)


def complete(instance, lazy, private):
    """Make every `lazy` attribute and drop the `private` ones: what the class's own __init__ leaves."""
    if "_raw" not in vars(instance):  # already complete, or made before the patch
        return
    try:
        for name in lazy:
            getattr(instance, name)
    finally:
        for name in private:
            vars(instance).pop(name, None)


def complete_all(cls, lazy, private):
    """Every living instance, so that the class's own methods can take it. A search, not a register that costs at each
    construction."""
    for found in gc.get_objects():
        if issubclass(type(found), cls):  # not isinstance: it would ask proxies what they stand for
            try:
                complete(found, lazy, private)
            except RuntimeError as error:  # one that a vmap left behind, say: the others are to be usable
                _log.warning("a %s stays without its %s: %s", cls.__name__, ", ".join(lazy), error)


def state(instance, lazy, private):
    """What pickle and deepcopy take: complete, so that a process without the patch can read it."""
    for name in lazy:
        getattr(instance, name)
    return {name: value for name, value in vars(instance).items() if name not in private}
