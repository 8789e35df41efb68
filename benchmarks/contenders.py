"""The table of contenders."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_fast import capture_step
from vae_fast.benchmarks import steps
from vae_fast.benchmarks.formulas import OPS
from vae_fast.graphs import CapturedStep

GRAPH = " graph"  # what the name of a captured contender ends in
MAX_AUTOTUNE = "max-autotune-no-cudagraphs"


@dataclass(frozen=True)
class Contender:
    """A way to compute every case. mode: of torch.compile, None for none; captured: a whole step as a CUDA graph."""

    name: str
    fused: bool = False
    mode: str | None = None
    captured: bool = False

    def runs(self, case, device: torch.device, quick: bool = False) -> bool:
        """Whether it can run the case there.

        What must be compiled or captured is left out of a quick run, and of the steps of other projects, which are
        compared as those projects run them.
        """
        if (quick or case.project) and (self.mode or self.captured):
            return False
        return not self.captured or (case.is_step and device.type == "cuda")

    def function(self, op: str) -> Callable:
        """(leaves, target, noise) -> outputs."""
        return self._compiled(OPS[op].fused if self.fused else OPS[op].eager)

    def step(self, op: str, model, example: Tensor) -> Callable[[Tensor], Tensor]:
        """batch -> loss, after one step of training `model`."""
        optimizer = steps.adam(model, self.captured)
        if self.fused and self.captured:
            captured = capture_step(model, optimizer, example)
            return lambda x: captured(x).total
        loss = self._compiled(steps.STEPS[op].fused if self.fused else steps.STEPS[op].eager)
        step = steps.training_step(model, loss, optimizer)
        return CapturedStep(step, optimizer, example) if self.captured else step

    def _compiled(self, function: Callable) -> Callable:
        """Static shapes: a user trains at one, and would not want the slower code that serves many."""
        return function if self.mode is None else torch.compile(function, mode=self.mode, dynamic=False)


CONTENDERS = {
    contender.name: contender
    for base in (
        Contender("eager"),  # formulas on tensors, differentiated by autograd
        Contender("compile", mode="default"),
        Contender("compile max-autotune", mode=MAX_AUTOTUNE),
        Contender("vae_fast", fused=True),
    )
    for contender in (base, Contender(base.name + GRAPH, base.fused, base.mode, captured=True))
}
