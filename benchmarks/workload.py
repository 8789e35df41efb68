"""One call of a public function, as the workloads list them."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import torch

import vae_fast
from vae_fast.ops import backend

COMMON = (torch.float32, torch.bfloat16)
SEED = 2**40 + 1


@dataclass(frozen=True)
class Workload:
    """A call of one public function: `function(*leaves, *constants)`, for the (leaves, constants) that `make` gives.

    leaves: tensors that require a gradient, or that do not where there is no backward pass to measure; constants: the
    other tensors that are read. used: the output that the backward pass starts from, or None for all of them. main:
    whether `make test` audits it too, in both versions of Triton.
    """

    op: str
    options: str
    dtype: str
    layout: str
    make: Callable
    function: Callable
    used: int | None = None
    main: bool = False

    def __str__(self):
        return joined_words((self.op, self.options, self.dtype, self.layout))

    def run(self, observe=lambda direction: contextlib.nullcontext()):
        """Call and differentiate with Triton's kernels, each direction inside `observe(direction)`.

        Returns (leaves, constants, outputs, upstream gradients, gradients). The direction "again" is a second backward
        pass, which recomputes what the first one took from forward. CPU tensors are let through to the launchers, so
        launches must be interpreted, or recorded and not made.
        """
        leaves, constants = self.make()
        with vae_fast.use_backend("triton"), patch.object(backend, "_check_triton", lambda tensor: None):
            with observe("forward"):
                outputs, used = self.call(leaves, constants)
            upstream = [torch.ones_like(output) for output in used]
            gradients, wanted = (), [leaf for leaf in leaves if leaf.requires_grad]
            for direction in ("backward", "again") if wanted else ():
                with observe(direction):
                    gradients = torch.autograd.grad(used, wanted, upstream, retain_graph=True)
        return leaves, constants, outputs, upstream, gradients

    def call(self, leaves, constants):
        """The outputs, and those of them that the backward pass starts from."""
        outputs = self.function(*leaves, *constants)
        outputs = tuple(outputs) if isinstance(outputs, tuple) else (outputs,)
        return outputs, outputs if self.used is None else outputs[self.used : self.used + 1]


def joined_words(words):
    return ", ".join(filter(None, words))


def leaf(tensor):
    return tensor.detach().requires_grad_()
