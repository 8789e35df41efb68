"""Records the kernel launches of any code, without a GPU and without running one: what the launchers really choose.

    with record_launches() as launches:
        my_launcher(torch.empty(64, 784, device="meta"))     # or CPU tensors; "meta" ones take no memory at any size
    launches[0].kernel, launches[0].grid, launches[0].arguments["BLOCK"]
    launches[0].specialize(TARGETS["sm_90"])                  # what Triton would compile for these arguments

Needs TRITON_INTERPRET unset. The launcher's code on the host runs as it is; each launch is noted instead of made. An
autotuned kernel has no launch of its own: call its `.fn`, with the arguments of one configuration. Kernels wrapped by
`torch.library.wrap_triton` are not launched for "meta" tensors: give them CPU tensors.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple
from unittest.mock import patch

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import jit
from triton.runtime.autotuner import Autotuner

from vae_fast.kernels.launching import planning_anew

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Specialization(NamedTuple):
    """What distinguishes two compilations of one kernel."""

    signature: dict  # argument -> type, nested for tuples; "constexpr" also for None and for an int equal to 1
    constants: dict  # path of an argument -> its value at compile time
    attributes: dict  # path of an argument -> facts such as divisibility by 16
    options: object  # num_warps and the other options of the target's compiler


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch `kernel[grid](*args, **kwargs)`; `kwargs` holds num_warps and the like as well."""

    kernel: jit.JITFunction
    grid: tuple
    args: tuple
    kwargs: dict

    @property
    def name(self):
        return self.kernel.__name__

    @property
    def arguments(self):
        """Every argument of the kernel by name, defaults included."""
        return _bind(self.kernel, self.args, self.kwargs)

    def specialize(self, target):
        """The specialisation that Triton's own launcher derives for these arguments on this GPUTarget."""
        backend = make_backend(target)
        binder = jit.create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        debug = self.kwargs.get("debug", self.kernel.debug) or triton.knobs.runtime.debug
        kwargs = {**self.kwargs, "debug": debug, "instrumentation_mode": triton.knobs.compilation.instrumentation_mode}
        arguments, types, options = binder(*self.args, **kwargs)
        options, signature, constants, attributes = self.kernel._pack_args(backend, kwargs, arguments, types, options)
        return Specialization(signature, constants, {path: fact for path, fact in attributes.items() if fact}, options)

    def variant(self, target):
        """A text that is equal for two launches which Triton would compile to the same machine code."""
        special = self.specialize(target)
        options = {name: value for name, value in vars(special.options).items() if name != "extern_libs"}
        constants = {path: getattr(value, "__name__", value) for path, value in special.constants.items()}
        return f"{self.kernel.__module__}.{self.name} {special.signature} {constants} {special.attributes} {options}"


@contextlib.contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Yields a list to which each Triton launch inside the block is appended as a `Launch`; none is executed."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("record_launches needs compiled kernels: unset TRITON_INTERPRET before Triton is imported")
    launches = []

    def note(kernel, /, *args, grid, warmup=False, **kwargs):
        if callable(grid):
            grid = grid(_bind(kernel, args, kwargs))
        launches.append(Launch(kernel, tuple(grid), args, kwargs))

    with patch.object(jit.JITFunction, "run", note), planning_anew(), without_autotuning():
        yield launches


@contextlib.contextmanager
def without_autotuning():
    """Within the block the launch of an autotuned kernel raises: it would time its configurations on a GPU."""
    run = Autotuner.run

    def refuse(kernel, /, *args, **kwargs):
        if len(kernel.configs) == 1:
            return run(kernel, *args, **kwargs)
        name = kernel.base_fn.__name__
        raise RuntimeError(
            f"{name} is autotuned: launch {name}.fn[grid](...), what triton.autotune was given, with the arguments of "
            "one configuration"
        )

    with patch.object(Autotuner, "run", refuse):
        yield


def variants(launches, target):
    """One launch of each variant, in the order of first appearance."""
    return list({launch.variant(target): launch for launch in reversed(launches)}.values())[::-1]


def _bind(kernel, args, kwargs):
    bound = kernel.signature.bind(*args, **{k: v for k, v in kwargs.items() if k in kernel.signature.parameters})
    bound.apply_defaults()
    return dict(bound.arguments)
