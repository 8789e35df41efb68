"""Why kernels/tiling.py says 16 elements a thread and tiles of 4096: the same kernels with other numbers.

    python -m vae_fast.benchmarks.sweep                   # on a GPU by time, elsewhere from machine code for sm_90
    python -m vae_fast.benchmarks.sweep --target sm_80    # from machine code, for another target
    python -m vae_fast.benchmarks.sweep --op sample_kl    # that op alone

From machine code: instructions per element, registers, the warps that fit on a multiprocessor, and the kilobytes that
these can load at once. By Little's law the bandwidth times the latency must be on its way: on an H200 4.3 TB/s x 0.7 us
/ 132 = 23 KB. A good choice has that with room to spare, and few instructions.
"""

import argparse
import itertools
import statistics
from contextlib import contextmanager
from typing import NamedTuple
from unittest.mock import patch

import torch

from vae_fast.benchmarks.layouts import LAYOUTS, ORDINARY, contiguous
from vae_fast.benchmarks.workloads import workloads
from vae_fast.kernels import tiling
from vae_fast.kernels.launching import planning_anew
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.ops import backend

OPS = ("sample_kl", "reconstruction_loss")
DTYPES = ("float32", "bfloat16")
TARGETS = ("sm_80", "sm_90", "sm_100")
ELEMENTS_PER_THREAD = (4, 8, 16, 32)
FLAT_TILES = (1024, 2048, 4096, 8192)  # ROW_TILE is half of it, as in tiling.py
MOST_WARPS = 32  # of a program
REGISTERS, WARPS, PROGRAMS = 65536, 64, 32  # of a multiprocessor of these targets
GPU_SHAPE = (2**16, 2**10)  # 256 MB of float32: larger than any L2
ROUNDS = 20
ATTEMPTS = 6
SLEEP = 2_000_000  # cycles: the host queues a call meanwhile; doubled where it does not


class Choice(NamedTuple):
    elements: int  # of a thread
    tile: int  # FLAT_TILE

    @contextmanager
    def used(self):
        """The launchers use this choice."""
        sizes = {"ELEMENTS_PER_THREAD": self.elements, "FLAT_TILE": self.tile, "ROW_TILE": self.tile // 2}
        with patch.multiple(tiling, **sizes), planning_anew():
            yield


OURS = Choice(tiling.ELEMENTS_PER_THREAD, tiling.FLAT_TILE)
CHOICES = [Choice(*c) for c in itertools.product(ELEMENTS_PER_THREAD, FLAT_TILES) if c[1] <= 32 * MOST_WARPS * c[0]]


def chosen_workloads(op=None):
    """Sample + KL and each likelihood, on whole tensors: of one op, or of both."""
    options = ("sample", *(f"{name}, batchmean" for name in LIKELIHOODS))
    ordinary = [w for w in workloads() if w.layout == ORDINARY and w.dtype in DTYPES]
    return [w for w in ordinary if w.options in options and w.op in ((op,) if op else OPS)]


def compiled(workload, choice, target):
    """A line for each large kernel of one workload: what the machine code says of a choice."""
    from vae_fast.benchmarks.audit import audit
    from vae_fast.benchmarks.audit_table import tile_size
    from vae_fast.benchmarks.launches import record_launches

    with choice.used(), record_launches() as launches:
        workload.run()
    found = {launch.name: launch for launch in reversed(launches) if "AXES" in launch.arguments}
    for launch in reversed(found.values()):
        report = audit(launch, target, elements=tile_size(launch))
        used = report.resources
        widest = max(report.loads)
        loaded = report.loads[widest] * widest / 8
        warps = resident_warps(used.registers, report.threads, report.shared)
        yield (
            launch.name.lstrip("_"), f"{report.issued:.1f}", f"{report.special:.2f}", str(used.registers),
            str(used.spilled), str(warps), f"{loaded * 32 * warps / 1024:.0f}",
        )  # fmt: skip


def resident_warps(registers, threads, shared, memory=227 * 1024):
    """How many warps of such programs a multiprocessor holds; registers are given out by eights."""
    programs = min(REGISTERS // (-(-registers // 8) * 8 * threads), WARPS * 32 // threads, PROGRAMS)
    return min(programs, memory // (shared + 1024)) * threads // 32


def timed(workload, choice):
    """Milliseconds (median) of forward and of backward on the GPU, with tensors of GPU_SHAPE."""
    large = patch.dict(LAYOUTS, {ORDINARY: contiguous(*GPU_SHAPE)})
    with choice.used(), large, torch.device("cuda"):
        attempts = (_samples(workload, SLEEP * 2**k) for k in range(ATTEMPTS))
        samples = next(filter(None, attempts), None)
    if samples is None:
        raise RuntimeError(f"{workload} waits for the GPU itself: it cannot be timed behind a sleeping one")
    for direction in ("forward", "backward"):
        yield direction, f"{statistics.median(samples[direction][ROUNDS // 4 :]):.4f}"


def _samples(workload, sleep):
    """Milliseconds by direction; None where the GPU, asleep for so many cycles, woke before the host had launched."""
    events = {"forward": [], "backward": [], "again": []}
    early = []

    @contextmanager
    def observe(direction):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(sleep)
        start.record()
        yield
        early.append(start.query() and len(events[direction]) > 1)  # the first two compile, and load
        end.record()
        events[direction].append((start, end))

    for _ in range(ROUNDS):
        workload.run(observe)
    torch.cuda.synchronize()
    if any(early):
        return None
    return {direction: [start.elapsed_time(end) for start, end in pairs] for direction, pairs in events.items()}


COMPILED = ("kernel", "issued", "special", "registers", "spilled", "warps", "KB loading")
TIMED = ("direction", "ms")


def sweep(op=None, target=None):
    """Print the table: on a GPU by time, or from machine code where a target is given or there is no GPU."""
    on_gpu = target is None and torch.cuda.is_available()
    _line("", "call", "elements", "tile", *(TIMED if on_gpu else COMPILED))
    for workload in chosen_workloads(op):
        for choice in CHOICES:
            lines = timed(workload, choice) if on_gpu else compiled(workload, choice, target or "sm_90")
            for line in lines:
                _line("*" if choice == OURS else "", str(workload), *map(str, choice), *line)
    print("* the choice of kernels/tiling.py")


def _line(mark, call, *cells):
    print(f"{mark:1s} {call:56s}", *(f"{cell:>10s}" for cell in cells), flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser("python -m vae_fast.benchmarks.sweep", description=__doc__.partition("\n")[0])
    parser.add_argument("--op", choices=OPS)
    parser.add_argument("--target", choices=TARGETS)
    chosen = parser.parse_args(arguments)
    if backend.interpreting():
        parser.error("TRITON_INTERPRET is set: the sweep compiles kernels, unset it")
    sweep(chosen.op, chosen.target)


if __name__ == "__main__":
    main()
