"""The machine code of every kernel of ours, in the variants that its launcher chooses: what `vae-fast audit` prints.

Options, dtypes and layouts are varied as `workloads` lists them, and compiled with no GPU present. A row fails where
the compiler raises, or the code spills, uses local memory, has narrow accesses in a layout that allows wide ones, or,
on sm_90, issues more instructions per element than the number beside the kernel (`ISSUED` in kernels/). Where
the main path reads nothing back from there, the masked tail of a tensor may have a register or two in local memory:
ptxas does that to fit one more program, and only the last program takes that path. The table shows it.
"""

import contextlib
import functools
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import NamedTuple

import torch
import triton.language as tl

from vae_fast.benchmarks import workers
from vae_fast.benchmarks.audit import Budget, audit, check
from vae_fast.benchmarks.cards import CARDS, bound
from vae_fast.benchmarks.issued import issued_limit
from vae_fast.benchmarks.launches import TARGETS, Launch, record_launches, variants
from vae_fast.benchmarks.workloads import run_wide, workloads

TILE = ("ROWS", "COLUMNS", "TILE")  # the constexpr arguments whose product is a tile's number of elements
WIDE_ACCESS = 128  # bits
LOCAL_READ = ("LDL", "scratch_load")  # opcodes that read local memory, NVIDIA's and AMD's
LOCAL_OF_TAILS = 16  # bytes a thread
RAISED = 300  # characters of what a compiler says


class Task(NamedTuple):
    """One variant on one target: `index` is its place in `recorded(main)`."""

    target: str
    index: int
    main: bool


class Row(NamedTuple):
    call: str  # the first call that chose this variant
    kernel: str
    target: str
    registers: int | None  # None, as all figures, where there is no code
    spilled: int  # bytes a thread
    local: int  # bytes a thread
    loads: str  # global ones of a thread on the main path, as 8x128+1x64: number x bits
    stores: str
    issued: float  # instructions per element, as the next two
    integer: float
    special: float
    limit: float | None  # of `issued`, from the number beside the kernel
    bytes: float  # that global accesses move per element
    card: str
    bound: str  # what bounds the kernel there: "memory" or a kind of instruction
    load: float  # the time of the busiest kind of instruction over that of the memory
    failures: tuple[str, ...]

    @property
    def compiled(self):
        """Whether there are figures at all."""
        return self.registers is not None


class Recorded(NamedTuple):
    call: str  # of a public function, and the direction
    launch: Launch
    elements: int  # that a program takes


@functools.cache
def recorded(main=False) -> list[Recorded]:
    """Each launch of the workloads."""
    found = []
    with record_launches() as launches:

        @contextlib.contextmanager
        def observe(name):
            before = len(launches)
            yield
            found.extend(Recorded(name, *real_path(launch)) for launch in launches[before:])

        for workload in workloads():
            if workload.main or not main:
                workload.run(lambda direction, workload=workload: observe(f"{workload}: {direction}"))
        if not main:
            run_wide(observe)
    return found


def tasks(targets=tuple(TARGETS), kernel="", main=False) -> list[Task]:
    """Every variant of the kernels whose name contains `kernel`; with `main`, those of the main workloads alone."""
    launches = [entry.launch for entry in recorded(main)]
    index = {id(launch): k for k, launch in enumerate(launches)}
    return [
        Task(target, index[id(launch)], main)
        for target in targets
        for launch in variants(launches, TARGETS[target])
        if kernel in launch.name
    ]


def audit_rows(todo, cards=(), jobs=1) -> Iterator[Row]:
    """A row for each `Task`, in order. cards: names in `CARDS`, each in place of its target's own."""
    run = functools.partial(row, cards=tuple(cards))
    if jobs == 1:
        yield from map(run, todo)
        return
    with workers.pool(jobs) as pool:
        try:
            yield from pool.map(run, todo, chunksize=4)
        finally:
            pool.shutdown(cancel_futures=True)


def row(task, cards=()) -> Row:
    """Compile one variant, and judge it. What the compiler raises is the failure of this variant alone."""
    call, launch, elements = recorded(task.main)[task.index]
    card = chosen_card(task.target, cards)
    try:
        report = audit(launch, task.target, elements=elements)
    except Exception as error:  # its own, Triton's, MLIR's and those of the tools that it starts
        failure = f"{launch.name} on {task.target}: not compiled: {_raised(error)}"
        return _without_code(call, launch.name, task.target, card.name, failure)
    return _judged(call, launch, report, card)


def _raised(error):
    """The first cause, in a line. A message of Triton's own has the kernel's source around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    message = getattr(error, "error_message", None) or str(error)
    return textwrap.shorten(f"{type(error).__name__}: {message}", RAISED)


def _without_code(call, kernel, target, card, failure):
    figures = dict.fromkeys(Row._fields)
    return Row(**{**figures, "call": call, "kernel": kernel, "target": target, "card": card, "failures": (failure,)})


def _judged(call, launch, report, card):
    lanes = tile_size(launch)
    operands = _operands(launch)
    wide = _allows_wide(operands, lanes // report.threads)
    limit = issued_limit(launch, operands) if wide else None
    if limit is not None:  # the number is one of lanes: a tile that overhangs its rows has fewer elements
        limit *= lanes / report.elements
    width = WIDE_ACCESS if wide else 0
    moved = sum(i.bits for i in report.main if i.bits >= width) / 8 * report.threads / lanes  # masked lanes move none
    scalars = _scalars(report, operands, lanes, width, moved)
    issued = limit if report.target == "sm_90" else None
    budget = Budget(issued=issued, bits=width, narrow=scalars, skipped=None)  # ours: of tails, and of few partial sums
    resource, load = bound(report, moved, card)
    return Row(
        call, launch.name, report.target,
        report.resources.registers, report.resources.spilled, report.resources.local,
        _widths(report.loads), _widths(report.stores), report.issued, report.integer, report.special, limit,
        moved, card.name, resource, max(load.values()),
        tuple(check(_without_tails(report), budget)),
    )  # fmt: skip


def _without_tails(report):
    """The report, without the few bytes of local memory that the main path may write, for a tail, but never reads."""
    read = any(i.opcode.startswith(LOCAL_READ) for i in report.main)
    if read or report.resources.local > LOCAL_OF_TAILS:
        return report
    return replace(report, resources=replace(report.resources, spilled=0, local=0))


def chosen_card(target, cards):
    """The one of `cards` that has this target, or else the first in `CARDS` that has."""
    names = [name for name in (*cards, *CARDS) if CARDS[name].target == target]
    return CARDS[names[0]]


def real_path(launch) -> tuple[Launch, int]:
    """(The launch, the elements that a program takes). Where no tile is full, the compiler is told so.

    A sample of 784 elements in a tile of 1024 always takes the path with masks, which the code alone does not show.
    """
    arguments = launch.arguments
    if "AXES" not in arguments or arguments["size"][1] >= arguments["COLUMNS"]:
        return launch, tile_size(launch)
    size = rows, columns = arguments["size"]
    args = tuple((rows, tl.constexpr(columns)) if value is size else value for value in launch.args)
    return replace(launch, args=args), arguments["ROWS"] * columns


def tile_size(launch):
    """The elements of a program's tile; of all tiles where one launch finishes several sums: its path has each."""
    if "TILES" in launch.arguments:
        return sum(map(prod, launch.arguments["TILES"]))
    return prod(launch.arguments[name] for name in TILE if name in launch.arguments)


def _operands(launch):
    """(tensor, strides) of each tensor that has an element for each lane; empty for the sums of partial sums."""
    found = list(_pairs(tuple(launch.arguments.values())))
    return found or [(tensor, (0, 1)) for tensor in launch.arguments.get("grads", ())]


def _pairs(value):
    """The pairs (tensor, strides) in an argument: how `tiling.view` hands tensors to a kernel."""
    if isinstance(value, tuple):
        if len(value) == 2 and isinstance(value[0], torch.Tensor) and isinstance(value[1], tuple):
            yield value
        else:
            for item in value:
                yield from _pairs(item)


def _allows_wide(operands, per_thread):
    """Whether each tensor lies so that a thread can access 16 bytes at once, and a thread has as many."""
    smallest = min((tensor.element_size() for tensor, _ in operands), default=0)
    return per_thread * smallest >= WIDE_ACCESS // 8 and all(_aligned(*operand) for operand in operands)


def _aligned(tensor, strides):
    """The innermost stride is 1, and 16 divides the other strides and the address; or a row shares one number."""
    row, innermost, *outer = strides
    if innermost == 0:
        return True
    return innermost == 1 and tensor.data_ptr() % 16 == 0 and not any(stride % 16 for stride in (row, *outer))


def _scalars(report, operands, lanes, width, moved):
    """How many narrow accesses a thread may have: all that it has, if they are of seeds, numbers of rows and sums.

    Loads, and stores, are taken for such where they move fewer bytes than the thread takes of the smallest tensor (or
    as many, where rows share a tensor that is read: its row has a layout of its own); or where there are wide ones
    beside them, and the wide accesses, which move `moved` bytes an element, account for every tensor. Otherwise a
    tensor is accessed narrowly, and none is allowed.
    """
    smallest = lanes * min((tensor.element_size() for tensor, _ in operands), default=0)
    shared = any(innermost and _is_shared(tensor) for tensor, (_, innermost, *_) in operands)
    whole = sum(tensor.element_size() for tensor, (_, innermost, *_) in operands if innermost)
    allowed = 0
    for accesses, most in ((report.loads, smallest + shared), (report.stores, smallest)):
        narrow = {bits: count for bits, count in accesses.items() if bits < width}
        few = sum(bits * count for bits, count in narrow.items()) / 8 * report.threads < most
        if not few and not (whole <= moved and len(narrow) < len(accesses)):
            return 0
        allowed += sum(narrow.values())
    return allowed


def _is_shared(tensor):
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _widths(accesses):
    return "+".join(f"{count}x{bits}" for bits, count in sorted(accesses.items(), reverse=True)) or "0"
