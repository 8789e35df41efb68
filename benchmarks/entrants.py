"""A contender at a case, past the gate: what is timed of it."""

import functools
import gc
import math
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae_fast.benchmarks import correctness, counting, memory, peers, steps, workers
from vae_fast.benchmarks.contenders import Contender
from vae_fast.benchmarks.formulas import Inputs, draw_inputs
from vae_fast.benchmarks.results import OK
from vae_fast.benchmarks.timing import WARM_UP, Work

WHOLE = ("forward+backward", "step")  # the phases that are a whole call
MOST_SETS = 256


class Entrant(NamedTuple):
    """works: by phase, none for one that did not pass; status: "ok" or the reason; error: against the reference."""

    contender: Contender
    works: dict[str, Work]
    sets: int = 1
    status: str = OK
    error: float | None = None

    def call(self):
        """One whole call."""
        work = next(self.works[phase] for phase in WHOLE if phase in self.works)
        return work.run(work.prepare(0))


def enter(case, contenders: list[Contender], device: torch.device) -> list[Entrant]:
    """Every contender, checked against the reference; what does not match, or cannot run here, has no works."""
    torch._dynamo.reset()  # or torch.compile would remember the last size, and prepare for more
    return (_enter_step if case.is_step else _enter_op)(case, contenders, device)


def _enter_op(case, contenders, device):
    first, noise = draw_inputs(case, device), correctness.draw_noise(case, device)
    functions = {contender: contender.function(case.op) for contender in contenders}
    checked = {
        contender: _attempt(correctness.check_op, case, contender, function, first, noise)
        for contender, function in functions.items()
    }
    del noise
    count = _count_of_sets(sum(tensor.nbytes for tensor in first.tensors), device)
    sets = [first, *(draw_inputs(case, device, seed) for seed in range(1, count))]
    return [
        _entrant(contender, count, *checked[contender], _phases, function, sets)
        for contender, function in functions.items()
    ]


def _enter_step(case, contenders, device):
    first = steps.draw_batch(case, device)
    count = _count_of_sets(first.nbytes, device)
    batches = [first, *(steps.draw_batch(case, device, seed) for seed in range(1, count))]
    entrants = []
    for contender in contenders:
        checked = _attempt(correctness.check_step, case, contender, device)
        entrants.append(_entrant(contender, count, *checked, _step, case, contender, batches))
    return entrants


def _entrant(contender, count, error, status, make, *arguments) -> Entrant:
    """With the works that `make` returns, where the check has passed."""
    works = None
    if status == OK:
        works, status = _attempt(make, *arguments)
    return Entrant(contender, works or {}, count, status, error)


def _attempt(function: Callable, *arguments) -> tuple[Any, str]:
    """(what it returns, "ok"), or (None, why it failed). A compiler that is missing must not end the run."""
    try:
        return function(*arguments), OK
    except correctness.Wrong as wrong:
        return None, str(wrong)
    except Exception as error:
        if is_out_of_memory(error):
            return None, "skipped: it ran out of memory"
        return None, f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def count_launches(case, contender: Contender, device: torch.device) -> int | None:
    """As `counting.count_launches`, of a whole call, in a process of its own. RuntimeError says why it failed there."""
    try:
        count, status = _process_for_counts().submit(count_launches_here, case, contender, device).result()
    except (BrokenProcessPool, KeyboardInterrupt):
        for process in (_process_for_counts()._processes or {}).values():  # which Python would wait for at its end
            process.terminate()
        _process_for_counts.cache_clear()
        raise
    if status != OK:
        raise RuntimeError(status)
    return count


@functools.cache
def _process_for_counts():
    return workers.pool(1, ignore_interrupts=True)


def count_launches_here(case, contender: Contender, device: torch.device) -> tuple[int | None, str]:
    """(launches, "ok"), or (None, why it failed). The contender is not checked again."""
    try:
        torch._dynamo.reset()
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return _attempt(lambda: counting.count_launches(_warm_call(case, contender, device)))
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()  # for the process that times


def _warm_call(case, contender, device):
    if case.is_step:
        works = _step(case, contender, [steps.draw_batch(case, device)])
    else:
        works = _phases(contender.function(case.op), [draw_inputs(case, device)])
    entrant = Entrant(contender, works)
    for _ in range(WARM_UP):
        entrant.call()
    return entrant.call


def is_out_of_memory(error: BaseException) -> bool:
    """Also where it was not PyTorch's allocator that asked: a kernel is loaded, a graph made, cuBLAS begun."""
    said = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in said)


def _count_of_sets(size: int, device: torch.device) -> int:
    """How many sets of inputs of `size` bytes to rotate through, so that none is found in a GPU's L2.

    MOST_SETS may be fewer bytes than that; they are more than the calls of a batch, before which the L2 is emptied.
    """
    if device.type != "cuda":
        return 1
    return min(max(math.ceil(3 * memory.cache_bytes(device) / size), 1), MOST_SETS)


def _phases(function: Callable, sets: list[Inputs]) -> dict[str, Work]:
    """Noise is drawn in the timed calls, as in training; upstream gradients have the dtypes of this contender."""

    def forward(inputs):
        return function(inputs.leaves, inputs.target, None)

    def backward(state):
        outputs, inputs = state
        return torch.autograd.grad(outputs, inputs.leaves, inputs.upstream)

    def pick(number):
        return sets[number % len(sets)]

    outputs = forward(sets[0])
    sets = [inputs._replace(upstream=correctness.upstream_for(outputs, inputs)) for inputs in sets]
    del outputs
    return {
        "forward": Work(forward, pick),
        "backward": Work(backward, lambda number: (forward(pick(number)), pick(number))),
        "forward+backward": Work(lambda inputs: backward((forward(inputs), inputs)), pick),
    }


def _step(case, contender, batches: list[Tensor]) -> dict[str, Work]:
    """Training steps of a new model, after its first, in which the optimizer makes its state."""
    step = contender.step(case.op, steps.build_model(case.op, batches[0].device), batches[0])

    def pick(number):
        peers.switch(case.project, contender.fused)
        return batches[number % len(batches)]

    step(pick(0))
    return {"step": Work(step, pick)}
