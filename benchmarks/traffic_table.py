"""The bytes that each op really moves, counted in Triton's interpreter, against the fewest that it must.

    rows = traffic_table()            # in a process of its own unless TRITON_INTERPRET=1
    python -m vae_fast.benchmarks.traffic_table         # --main: the main calls alone, in seconds

A lane outside every tensor, or between the elements of a strided one, and an address stored twice in one launch are
problems: the command prints them and fails.
"""

import argparse
import contextlib
import json
import math
import sys
from typing import NamedTuple

from vae_fast.benchmarks import interpreter
from vae_fast.benchmarks.workload import joined_words
from vae_fast.benchmarks.workloads import workloads
from vae_fast.ops import backend


class Row(NamedTuple):
    """One call. floor: its inputs, outputs, upstream gradients and gradients, each once.

    Where the gradient can be made in the forward pass, its inputs are read once for both directions.
    """

    op: str
    options: str
    dtype: str
    layout: str
    launches: int
    forward: int  # bytes
    backward: int
    floor: int
    problems: tuple[str, ...]

    @property
    def name(self):
        return joined_words((self.op, self.variant))

    @property
    def variant(self):
        """Which of the op's calls."""
        return joined_words((self.options, self.dtype, self.layout))

    @property
    def ratio(self):
        """Bytes moved over the floor."""
        return (self.forward + self.backward) / self.floor if self.floor else math.nan


def traffic_table(main=False) -> list[Row]:
    """A row for each workload, or for the main ones alone. Raises RuntimeError where Triton is not installed."""
    if not backend.HAS_TRITON:
        raise RuntimeError("traffic is counted in Triton's interpreter: pip install triton")
    if backend.interpreting():
        return [measured(workload) for workload in workloads() if workload.main or not main]
    options = ["--main"] if main else []
    rows = interpreter.ask("vae_fast.benchmarks.traffic_table", *options, what="counting traffic")
    return [Row(*values[:-1], tuple(values[-1])) for values in rows]


def measured(workload) -> Row:
    """Run one workload in the interpreter, in this process."""
    from vae_fast.benchmarks.traffic import OutOfBounds, Traffic, count_traffic

    counts = {"forward": Traffic(), "backward": Traffic()}

    @contextlib.contextmanager
    def observe(direction):
        with count_traffic() as counts[direction]:
            yield

    names = (workload.op, workload.options, workload.dtype, workload.layout)
    try:
        tensors = workload.run(observe)
    except OutOfBounds as error:
        return Row(*names, 0, 0, 0, 0, (str(error),))
    forward, backward = counts["forward"], counts["backward"]
    problems = [f"{direction}: {problem}" for direction, traffic in counts.items() for problem in _problems(traffic)]
    launches = forward.launches + backward.launches
    return Row(*names, launches, forward.moved(), backward.moved(), floor(workload, *tensors), tuple(problems))


def floor(workload, leaves, constants, outputs, upstream, gradients):
    """The fewest bytes, for the tensors that `Workload.run` returns.

    A gradient that is the upstream one itself is not made, and its leaf is not read. Nor are the mean and the prior,
    for the gradients of a sample, which do not depend on them.
    """
    forward = _bytes(*leaves, *constants, *outputs)
    if not gradients:
        return forward
    given = {tensor.data_ptr() for tensor in upstream}
    made = [gradient.data_ptr() not in given for gradient in gradients]
    backward = _bytes(*upstream, *(gradient for gradient, new in zip(gradients, made) if new))
    if any(output.dim() for output in outputs):  # of scalars, one pass over the inputs is enough for both directions
        of_sample = workload.op == "reparameterize" or workload.used == 0
        unread = 1 if of_sample and "SoftClamp" not in workload.options else 0
        again = constants[-1:] if of_sample else constants  # the noise comes last
        backward += _bytes(*(leaf for leaf, new in zip(leaves[unread:], made[unread:]) if new), *again)
    return forward + backward


def _bytes(*tensors):
    """Of distinct elements: an expanded tensor has few."""
    sizes = [(t.element_size(), *(size for size, stride in zip(t.shape, t.stride()) if stride)) for t in tensors]
    return sum(math.prod(size) for size in sizes)


def _problems(traffic):
    yield from (f"{count} addresses of {'.'.join(key)} stored twice" for key, count in traffic.overwrites.items())
    yield from (f"{count} lanes between the elements of {'.'.join(key)}" for key, count in traffic.gaps.items())


def show(rows):
    """Print the table; returns the exit status."""
    for row in rows:
        moved = f"{row.forward:6d} + {row.backward:6d} bytes, {row.ratio:.3f} x floor"
        print(f"{row.name:90s} {row.launches} launches, {moved}")
    problems = [f"{row.name}: {problem}" for row in rows for problem in row.problems]
    print("\n".join(problems) or "no lane outside a tensor, no address stored twice")
    return 1 if problems else 0


def main(arguments=None):
    parser = argparse.ArgumentParser("python -m vae_fast.benchmarks.traffic_table", description=__doc__.split("\n")[0])
    parser.add_argument("--main", action="store_true", help="the main calls alone, in seconds")
    parser.add_argument("--json", action="store_true", help="for another program")
    chosen = parser.parse_args(arguments)
    if backend.interpreting() and backend.HAS_TRITON:
        interpreter.patch_once()
    try:
        table = traffic_table(chosen.main)
    except RuntimeError as error:
        parser.error(str(error))
    if chosen.json:
        json.dump(table, sys.stdout)
    else:
        sys.exit(show(table))


if __name__ == "__main__":
    main()
