"""Triton's interpreter in half its time, with a check for overflow, whose own is made and not used, and without zeros
in place of what a GPU leaves undefined.

For a process that is ours alone: the tests, and those that count traffic. A user's own is left as it is.
"""

import functools
import inspect
import json
import os
import subprocess
import sys

import numpy as np


def ask(module, *options, what):
    """What `python -m module --json` writes in a process of its own, in which kernels are interpreted.

    Raises RuntimeError where that fails, which says that `what` did.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", module, "--json", *options]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{what} in the interpreter failed:\n{result.stderr}")
    return json.loads(result.stdout)


def patch_once():
    """Patch Triton's language once: the interpreter looks through all of it again and again, to find it patched."""
    from triton.language import semantic
    from triton.runtime import interpreter

    if isinstance(interpreter._patch_lang, _PatchOnce):
        return
    interpreter._patch_lang = _PatchOnce(interpreter)
    interpreter._get_np_dtype = _numpy_dtypes(interpreter)
    semantic.TritonSemantic.binary_op_sanitize_overflow_impl = _refuse_overflow
    builder = interpreter.InterpreterBuilder
    builder.create_masked_load = _undefined_where_masked(builder.create_masked_load, interpreter)


class _PatchOnce:
    """Patches triton.language once for all kernels of the process, and not again in each function inside a kernel."""

    def __init__(self, interpreter):
        self._patch = interpreter._patch_lang
        self._language = interpreter.tl, interpreter.tl.core
        self._patched = set()  # names of modules

    def __call__(self, function):
        modules = _modules(function, self._language)
        if not modules <= self._patched or not modules:
            self._patch(function)
            self._patched |= modules
        return self

    def restore(self):
        """Nothing: no kernel of this process is compiled."""


@functools.cache
def _modules(function, language):
    """Which modules of the language it knows by a name of their own."""
    named = [value for value in function.__globals__.values() if inspect.ismodule(value)]
    return frozenset(value.__name__ for value in named if value in language)


def _numpy_dtypes(interpreter):
    """Triton's dtype -> NumPy's: it writes the table anew for each operation."""
    written = interpreter._get_np_dtype
    known = functools.cache(lambda name: written(interpreter.tl.dtype(name)))
    return lambda dtype: written(dtype) if dtype.scalar.is_ptr() else known(dtype.scalar.name)


def _undefined_where_masked(load, interpreter):
    """Loads that give NaN, or the largest integer, in lanes that are masked where `other` does not say what they are.

    On a GPU those hold any number, and Triton's interpreter gives 0: what relies on that shows nowhere else.
    """

    def masked_load(builder, pointers, mask, other, *options, **named):  # by name from a descriptor
        # Of a single lane Triton's frontend drops an `other` that is 0, here alone: it asks whether that is true.
        lanes = mask.data if isinstance(mask, interpreter.TensorHandle) else mask  # block pointers make plain arrays
        if other is None and lanes.size > 1 and not lanes.all():
            dtype = pointers.get_element_ty()
            kind = interpreter._get_np_dtype(dtype)  # of bfloat16 its bits, which are NaN where all are set
            poison = np.iinfo(kind).max if np.issubdtype(kind, np.integer) else np.nan
            other = interpreter.TensorHandle(np.full_like(pointers.data, poison, dtype=kind), dtype)
        return load(builder, pointers, mask, other, *options, **named)

    return masked_load


def _refuse_overflow(_, lhs, rhs, operation):
    """Raise where an int32 wraps: as an index it would be another element's. (Unsigned ones are meant to: Philox.)

    Triton does the same in its own language, for a third of all its time, and then drops what it found: the assertion
    is only made in a debug mode, which the interpreter does not have.
    """
    if lhs.dtype.is_int_signed() and lhs.dtype.int_bitwidth == 32:
        exact = _IN_NUMPY[operation.__name__](lhs.handle.data, rhs.handle.data, dtype=np.int64)
        if (exact != exact.astype(np.int32)).any():
            raise OverflowError(f"int32 {operation.__name__} wraps: {lhs.handle.data}, {rhs.handle.data}")


_IN_NUMPY = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
