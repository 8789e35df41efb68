"""Why kernels/tiling.py says 16 elements a thread and tiles of 4096: the same kernels with other numbers.

    python -m vae_fast.benchmarks.sweep                   # on a GPU by time, elsewhere from machine code for sm_90
    python -m vae_fast.benchmarks.sweep --target sm_80    # from machine code, for another target
    python -m vae_fast.benchmarks.sweep --op sample_kl    # that op alone

From machine code: instructions per element, registers, the warps that fit on a multiprocessor, and the kilobytes that
these can load at once. By Little's law the bandwidth times the latency must be on its way: on an H200 4.3 TB/s x 0.7 us
/ 132 = 23 KB. A good choice has that with room to spare, and few instructions.

By time: that of the device alone. The choices take turns at each call, so what the machine does beside is spread over
all of them, and the 20th and 80th percentiles tell whether two differ.
"""

import argparse
import itertools
from contextlib import contextmanager
from typing import NamedTuple
from unittest.mock import patch

import torch

from vae_fast import use_backend
from vae_fast.benchmarks.layouts import LAYOUTS, ORDINARY, contiguous
from vae_fast.benchmarks.memory import cache_bytes
from vae_fast.benchmarks.timing import DeviceTimer, Effort, Rotation, Work, statistics, take_turns
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
SHARED = 227 * 1024  # its bytes of shared memory
GPU_SHAPE = (2**16, 2**10)  # 256 MB of float32: larger than any L2
DEVICE = torch.device("cuda")
ROUNDS = 20
MOST_CALLS = 4  # in a batch: what each keeps for its backward pass must fit beside that of the others


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
    """Sample + KL and each likelihood whose kernel has these tiles, on whole tensors: of one op, or of both."""
    tiled = (name for name, row in LIKELIHOODS.items() if row.domain != "classes")
    options = ("sample", *(f"{name}, batchmean" for name in tiled))
    ordinary = [w for w in workloads() if w.layout == ORDINARY and w.dtype in DTYPES]
    return [w for w in ordinary if w.options in options and w.op in ((op,) if op else OPS)]


def compiled(workload, target):
    """(choice, cells) of each large kernel of one workload: what the machine code says of every choice."""
    from vae_fast.benchmarks.audit import audit
    from vae_fast.benchmarks.audit_table import tile_size
    from vae_fast.benchmarks.launches import record_launches

    for choice in CHOICES:
        with choice.used(), record_launches() as launches:
            workload.run()
        found = {launch.name: launch for launch in reversed(launches) if "AXES" in launch.arguments}
        for launch in reversed(found.values()):
            report = audit(launch, target, elements=tile_size(launch))
            used = report.resources
            widest = max(report.loads)
            loaded = report.loads[widest] * widest / 8
            warps = resident_warps(used.registers, report.threads, report.shared)
            yield choice, (
                launch.name.lstrip("_"), f"{report.issued:.1f}", f"{report.special:.2f}", str(used.registers),
                str(used.spilled), str(warps), f"{loaded * 32 * warps / 1024:.0f}",
            )  # fmt: skip


def resident_warps(registers, threads, shared):
    """How many warps of such programs a multiprocessor holds; registers are given out by eights."""
    programs = min(REGISTERS // (-(-registers // 8) * 8 * threads), WARPS * 32 // threads, PROGRAMS)
    return min(programs, SHARED // (shared + 1024)) * threads // 32


def timed(workload):
    """(choice, cells) of each direction of one workload, with tensors of GPU_SHAPE: percentiles of milliseconds."""
    with patch.dict(LAYOUTS, {ORDINARY: contiguous(*GPU_SHAPE)}), DEVICE:
        leaves, constants = workload.make()
    with use_backend("triton"):
        upstream = [torch.ones_like(output) for output in workload.call(leaves, constants)[1]]
    rotation = Rotation(1, cache_bytes(DEVICE))  # one set of inputs: each is larger than the L2
    timers = {
        (choice, direction): DeviceTimer(work, rotation, MOST_CALLS)
        for choice in CHOICES
        for direction, work in _works(workload, choice, leaves, constants, upstream).items()
    }
    for (choice, direction), samples in take_turns(timers, Effort(0.0, ROUNDS, ROUNDS)).items():
        times = statistics([sample["device"] for sample in samples if "device" in sample])
        if times is None:
            raise RuntimeError(f"{workload} waits for the GPU itself: it cannot be timed behind a sleeping one")
        yield choice, (direction, *(f"{time:.4f}" for time in (times.p20, times.median, times.p80)))


def _works(workload, choice, leaves, constants, upstream):
    """What is timed of a choice, by direction: of backward, without the forward pass before it."""

    def forward(number):
        with choice.used(), use_backend("triton"):
            return workload.call(leaves, constants)[1]

    def backward(used):
        with choice.used():
            return torch.autograd.grad(used, leaves, upstream)

    return {"forward": Work(forward, int), "backward": Work(backward, forward)}


COMPILED = ("kernel", "issued", "special", "registers", "spilled", "warps", "KB loading")
TIMED = ("direction", "p20 ms", "median ms", "p80 ms")


def sweep(op=None, target=None):
    """Print the table: on a GPU by time, or from machine code where a target is given or there is no GPU."""
    on_gpu = target is None and torch.cuda.is_available()
    _line("", "call", "elements", "tile", *(TIMED if on_gpu else COMPILED))
    for workload in chosen_workloads(op):
        for choice, cells in timed(workload) if on_gpu else compiled(workload, target or "sm_90"):
            _line("*" if choice == OURS else "", str(workload), *map(str, choice), *cells)
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
