"""Triton's interpreter, in half its time."""

import functools
import inspect
from types import SimpleNamespace


def patch_once():
    """Let it patch triton.language once a launch, and not again in each call of a function inside the kernel.

    It would look through all of the language each time, only to find it patched: that is half of what it does.
    """
    from triton.runtime import interpreter

    interpreter._patch_lang = _PatchOnce(interpreter)


class _PatchOnce:
    def __init__(self, interpreter):
        self._patch = interpreter._patch_lang
        self._language = interpreter.tl, interpreter.tl.core
        self._patched = None  # names of modules, while a kernel runs

    def __call__(self, function):
        modules = _modules(function, self._language)
        if self._patched is None:
            scope = self._patch(function)
            self._patched = set(modules)
            return SimpleNamespace(restore=lambda: self._end(scope))
        if not modules or modules - self._patched:
            self._patch(function)
            self._patched |= modules
        return SimpleNamespace(restore=lambda: None)

    def _end(self, scope):
        self._patched = None
        scope.restore()


@functools.cache
def _modules(function, language):
    """Which modules of the language it knows by a name of their own."""
    named = [value for value in function.__globals__.values() if inspect.ismodule(value)]
    return frozenset(value.__name__ for value in named if value in language)
