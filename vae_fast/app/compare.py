"""One training step with the fused losses against the same step in eager PyTorch, interleaved in one run."""

import copy
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vae_fast.app.training import synchronizer
from vae_fast.benchmarks.steps import fused_loss, training_step, usual_loss
from vae_fast.benchmarks.usual import FORMULAS
from vae_fast.models import VAE

ROUNDS = 200
WARM_UP = 20
SECONDS = 20  # after which a slow machine goes no further, but through the warm-up and a few rounds
FEWEST = 5


class Timing(NamedTuple):
    """One contender: median ms of a training step (forward, backward, Adam), and its first loss in nats per sample."""

    name: str
    milliseconds: float
    loss: float


def compare(model: VAE, data: Tensor, batch_size: int, learning_rate: float, rounds: int = ROUNDS) -> list[Timing]:
    """Time training steps of two copies of `model`, which take turns on the same batches of `data` with the same noise.

    The data may be on another device, where that of the model has no room for them: each batch is moved to it.
    Both start from the model's weights: their losses there agree to rounding if both are right, and drift apart after
    many steps. Returns the fused contender first; an empty list where there is no eager formula for the likelihood.
    """
    if model.likelihood not in FORMULAS:
        return []
    losses, steps = {"fused": fused_loss, "eager PyTorch": usual_loss}, {}
    for name, loss in losses.items():
        twin = copy.deepcopy(model)
        steps[name] = training_step(twin, loss, torch.optim.Adam(twin.parameters(), lr=learning_rate))
    milliseconds: dict[str, list[float]] = {name: [] for name in steps}
    first: dict[str, Tensor] = {}
    device = next(model.parameters()).device
    deadline = time.perf_counter() + SECONDS
    for number in range(WARM_UP + rounds):
        if number >= WARM_UP + FEWEST and time.perf_counter() > deadline:
            break
        batch = data[torch.arange(number * batch_size, (number + 1) * batch_size) % len(data)].to(device)
        with torch.no_grad():
            eps = torch.randn_like(model.encoder(batch).chunk(2, dim=1)[0])
        # Whoever goes second finds the batch in the cache: they take turns at that too.
        for name in sorted(steps, reverse=number % 2 == 1):
            spent, loss = _time(steps[name], batch, eps)
            milliseconds[name].append(spent)
            first.setdefault(name, loss)
    medians = {name: statistics.median(times[WARM_UP:]) for name, times in milliseconds.items()}
    return [Timing(name, medians[name], first[name].item()) for name in steps]


def _time(step: Callable[[Tensor, Tensor], Tensor], x: Tensor, eps: Tensor) -> tuple[float, Tensor]:
    """Milliseconds of one step, until the device has done it, and its loss."""
    synchronize = synchronizer(x.device)
    synchronize()
    start = time.perf_counter()
    loss = step(x, eps)
    synchronize()
    return 1e3 * (time.perf_counter() - start), loss
