"""What a launcher does for one kind of arguments, written down: a function of their tensors, in a few lines of Python.

Views, tiles and workspaces are as they were, and so are the compiled kernels, which Triton finds by a look at each
argument: what is left is to allocate, to put the addresses in, and to launch.
"""

import contextlib
import copy
import functools
from typing import NamedTuple

import torch
import triton
from torch._C._dynamo.guards import _empty_strided_cuda
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from vae_fast.kernels import tiling

ALIGNMENT = 16  # bytes: Triton compiles another kernel where an address is no multiple of it
STREAM = object()  # in place of the current one
IN_EACH_CALL = ("global_scratch_size", "profile_scratch_size", "gsan_enabled")  # Triton's launcher allocates or waits


class Launch(NamedTuple):
    """One that has been made."""

    kernel: object
    compiled: object  # None in the interpreter
    programs: int
    arguments: tuple
    warps: int
    constants: dict


class Varying(float):
    """A number that is another in another call."""


class Tape(TorchDispatchMode):
    """Notes what a launcher allocates; who launches for it adds to `launches`."""

    def __init__(self, inputs):
        super().__init__()
        self.inputs, self.allocated, self.launches = inputs, [], []
        self._is_deaf = self._computes = self._is_ambiguous = False

    @contextlib.contextmanager
    def deaf(self):
        """During a launch: the interpreter's own operators are none of the launcher's."""
        self._is_deaf = True
        yield
        self._is_deaf = False

    @classmethod
    def _should_skip_dynamo(cls):
        """No, or the first call would import all of torch._dynamo, to be left alone by it: seconds, in a launcher."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self._is_deaf:
            return result
        made = [t for t in tree_iter(result) if isinstance(t, torch.Tensor) and not t.is_meta]
        if "empty" in func.__name__:
            self.allocated += made
        elif not func.is_view:
            self._computes = True
        elif any(view.data_ptr() != args[0].data_ptr() and self._is_of_input(view) for view in made):
            self._is_ambiguous = True
        return result

    def _is_of_input(self, part):
        """Whether a part of a tensor begins where an input does, for which it would be taken."""
        return any(part.data_ptr() == given.data_ptr() for given in self.inputs)

    def plan(self, result, is_watched):
        """The launcher as a function (a list of tensors, the varying number) -> its result.

        It returns None, and does nothing, where an address is not aligned or is_watched(). None instead of it where
        an operator does something beside the kernels, nothing is launched, or a tensor is from elsewhere, or may be of
        two inputs.
        """
        if self._computes or self._is_ambiguous or not self.launches:
            return None
        try:
            return _Writer(self).function(self.launches, result, is_watched)
        except LookupError:
            return None


class _Writer:
    """Writes the function: tensor k is t{k}, its address p{k}, first of the inputs and then of what is allocated."""

    def __init__(self, tape):
        self.bases, self.inputs = [*tape.inputs, *tape.allocated], len(tape.inputs)
        self.constants = {"torch": torch, "tiling": tiling}

    def function(self, launches, result, is_watched):
        inputs, is_compiled = range(self.inputs), launches[0].compiled is not None
        on_current = is_compiled and torch.cuda.device_count() == 1  # nothing is elsewhere
        lines = [
            f"{''.join(f't{k}, ' for k in inputs)} = tensors",
            *(f"p{k} = t{k}.data_ptr()" for k in inputs),
            f"if ({' | '.join(f'p{k}' for k in inputs)}) % {ALIGNMENT} or {self.constant(is_watched)}(): return None",
        ]
        for k, base in enumerate(self.bases[self.inputs :], start=self.inputs):
            lines += [f"t{k} = {self.allocation(base, on_current)}", f"p{k} = t{k}.data_ptr()"]
        launching = self.launching(launches) if is_compiled else map(self.interpreted, launches)
        if not on_current:
            launching = "with tiling.on_device(t0):", *(f"    {line}" for line in launching)
        lines += [*launching, f"return {self.expression(result, self.tensor)}"]
        text = "\n    ".join(("def play(tensors, number=None):", *lines))
        exec(text, self.constants)  # of our own text alone
        return self.constants["play"]

    def allocation(self, base, on_current):
        """Allocates what takes the place of the base."""
        layout = f"{self.constant(tuple(base.shape))}, {self.constant(base.stride())}"
        dtype, device = self.constant(base.dtype), self.constant(base.device)
        is_filled = torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory
        if on_current and not is_filled:  # as compiled code does, in half the time
            return f"{self.constant(_empty_strided_cuda)}({layout}, {dtype})"
        return f"torch.empty_strided({layout}, dtype={dtype}, device={device})"

    def launching(self, launches):
        """Its lines that launch what is compiled."""
        stream = self.constant(triton.runtime.driver.active.get_current_stream)
        return [f"stream = {stream}({self.bases[0].device.index})", *map(self.compiled, launches)]

    def compiled(self, each):
        """A line that launches without what Triton asks of each argument to find the compiled kernel, and hooks."""
        rest = (each.constants[name] for name in each.kernel.arg_names[len(each.arguments) :])
        launch, given = _handed_on(each.compiled, each.programs, [*each.arguments, *rest])
        self.constant(each.compiled)  # kept as long as the function: from triton 3.8 on what is dropped is unloaded
        return f"{self.constant(launch)}({', '.join(self.expression(value, self.address) for value in given)})"

    def interpreted(self, each):
        """The same for the interpreter, which wants tensors."""
        run = functools.partial(each.kernel[(each.programs,)], **each.constants, num_warps=each.warps)
        return f"{self.constant(run)}({', '.join(self.expression(value, self.tensor) for value in each.arguments)})"

    def expression(self, value, leaf):
        if value is STREAM:
            return "stream"
        if isinstance(value, torch.Tensor):
            return leaf(value)
        if isinstance(value, Varying):
            return "number"
        if not any(isinstance(part, (torch.Tensor, Varying)) for part in tree_iter(value)):
            return self.constant(value)
        items = "".join(f"{self.expression(item, leaf)}, " for item in value)
        return f"{self.constant(type(value))}({items})" if hasattr(value, "_fields") else f"({items})"

    def constant(self, value):
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def address(self, tensor):
        base, offset = self.place(tensor)
        return f"p{base} + {offset}" if offset else f"p{base}"

    def tensor(self, tensor):
        number, offset = self.place(tensor)
        layout, base = (tensor.shape, tensor.stride(), tensor.dtype), self.bases[number]
        if not offset and layout == (base.shape, base.stride(), base.dtype):
            return f"t{number}"
        return f"{self.constant(functools.partial(_part, offset, *layout))}(t{number})"

    def place(self, tensor):
        """(the number of the tensor in which it lies, bytes from the beginning of that)."""
        for number, base in enumerate(self.bases):
            if base.data_ptr() == tensor.data_ptr():
                return number, 0
        storage = tensor.untyped_storage().data_ptr()
        found = [k for k, base in enumerate(self.bases) if base.untyped_storage().data_ptr() == storage]
        if len(found) != 1:  # of two inputs, either may lie elsewhere the next time
            raise LookupError("neither in one tensor given to the launcher nor in one allocated by it")
        return found[0], tensor.data_ptr() - self.bases[found[0]].data_ptr()


def _handed_on(kernel, programs, arguments):
    """(the driver's function that launches, what Triton's launcher hands on to it).

    Each call of the launcher works that out anew, which takes Python a microsecond. It is asked of a copy, as each
    version of Triton and each vendor hands on something else.
    """
    launcher, handed_on = copy.copy(kernel.run), []
    if not hasattr(launcher, "launch") or any(getattr(launcher, name, 0) for name in IN_EACH_CALL):
        raise LookupError("a launcher of another make, or that does more in each call")
    launch, launcher.launch = launcher.launch, lambda *given: handed_on.append(given)
    launcher(programs, 1, 1, STREAM, kernel.function, kernel.packed_metadata, None, None, None, *arguments)
    return launch, handed_on[0]


def _part(offset, shape, strides, dtype, base):
    base = base.view(dtype)
    return base.as_strided(shape, strides, base.storage_offset() + offset // base.element_size())
