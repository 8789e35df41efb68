"""Triton's interpreter, in half its time."""

import inspect


def look_once():
    """Let it look for what is builtin in triton.language once, and not in each call of a function inside a kernel.

    That is a third of what interpreted kernels take. What it has patched itself it leaves alone either way.
    """
    from triton.runtime import interpreter

    interpreter.inspect = _Inspect()


class _Inspect:
    """The module `inspect`, with a memory for which members are builtins of Triton's."""

    def __init__(self):
        self._names = {}

    def __getattr__(self, name):
        return getattr(inspect, name)

    def getmembers(self, of):
        from triton.language.core import is_builtin

        if of not in self._names:
            self._names[of] = [name for name, member in inspect.getmembers(of) if is_builtin(member)]
        return [(name, getattr(of, name)) for name in self._names[of]]
