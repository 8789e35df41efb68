"""Measures cases: checks every contender, times them in turns, counts, and makes one row of each result."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch

from vae_fast import checks
from vae_fast.benchmarks import counting, machine, memory, peers, timing
from vae_fast.benchmarks.contenders import CONTENDERS, GRAPH, Contender
from vae_fast.benchmarks.entrants import WHOLE, Entrant, count_launches, enter, is_out_of_memory
from vae_fast.benchmarks.results import OK, OVER, Results, Row

MOST_CALLS = 50  # in a batch on a GPU
QUEUE = 800  # launches in a batch: CUDA takes about a thousand before it makes the host wait
USUAL_LAUNCHES = 40  # of a call, where the profiler sees none
CPU_ELEMENTS = 2**24  # of one tensor: beyond, a case takes minutes on a CPU, and is measured only where it is named
NEED = 3  # memory that a case takes, over its floor: inputs, results, and what eager keeps for backward


class Session(NamedTuple):
    """What all cases of a run share. copy_bandwidth: in bytes/s by number of threads, which is None on a GPU."""

    device: torch.device
    quick: bool
    effort: timing.Effort
    description: dict[str, str]
    copy_bandwidth: dict[int | None, float]


def begin(device: torch.device, quick: bool = False) -> Session:
    """Look at the machine, and measure how fast it copies."""
    effort = timing.QUICK if quick else timing.FULL
    bandwidth = {}
    for threads in _thread_counts(device):
        with using_threads(threads):
            bandwidth[threads] = memory.copy_bandwidth(device, effort)
    return Session(device, quick, effort, machine.describe(device), bandwidth)


def run(
    cases: list,
    device: torch.device,
    results: Results,
    say: Callable[[str], None],
    *,
    quick: bool = False,
    named: tuple[str, ...] = (),
    contenders: dict[str, Contender] = CONTENDERS,
) -> list[Row]:
    """Measure `cases`, and put the rows of each into `results` at once: an interrupted run keeps what it has.

    Returns the rows of this run, where `results` may hold others.

    say: takes a line for each case. named: those that the user asked for by name, which a CPU measures at any size.
    """
    measured = []
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext(), timing.short_collections():
        session = begin(device, quick)
        for number, case in enumerate(cases, start=1):
            rows = measure(case, session, contenders, case.name in named)
            results.put(rows)
            measured += rows
            say(f"[{number}/{len(cases)}] {summary(case.name, rows)}")
    return measured


def measure(case, session: Session, contenders: dict[str, Contender] = CONTENDERS, named: bool = False) -> list[Row]:
    """The rows of one case; a single one, which says why, where it cannot be measured here."""
    obstacle = _obstacle(case, session.device, named)
    if obstacle:
        return [_row(case, session, status=f"skipped: {obstacle}")]
    chosen = [c for c in contenders.values() if c.runs(case, session.device, session.quick)]
    try:
        return _measure_entrants(case, session, enter(case, chosen, session.device))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return [_row(case, session, status="skipped: it ran out of memory")]
    finally:
        peers.switch(case.project, False)


def summary(name: str, rows: list[Row]) -> str:
    """One line: what the case came to, and what went wrong."""
    faults = dict.fromkeys(f"{row.contender or 'case'} {row.status}" for row in rows if row.status != OK)
    ours = [row for row in rows if row.contender.startswith("vae_fast") and row.phase in WHOLE and row.over_eager]
    speeds = [f"{row.contender}{row.on_threads} {row.over_eager:.2f} times as fast as eager" for row in ours]
    return f"{name}: {'; '.join([*speeds, *faults])}"


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """PyTorch's threads on the CPU; None leaves them as they are."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _thread_counts(device) -> list[int | None]:
    return list(dict.fromkeys((1, machine.all_threads()))) if device.type == "cpu" else [None]


def _obstacle(case, device, named):
    """Why the case cannot be measured here, "" if it can."""
    needed, free = NEED * case.floor.get("forward+backward", 0), memory.free_memory(device)
    if free is not None and needed > free:
        return f"it takes about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
    if device.type == "cpu" and case.elements > CPU_ELEMENTS and not named:
        return f"it takes minutes on a CPU; --case {case.name} measures it"
    return peers.obstacle(case.project)


def _measure_entrants(case, session, entrants: list[Entrant]) -> list[Row]:
    rows = [_row(case, session, e.contender, status=e.status) for e in entrants if not e.works]
    entrants = [entrant for entrant in entrants if entrant.works]
    counts = {entrant.contender.name: _count(case, entrant, session.device) for entrant in entrants}
    room = memory.free_memory(session.device) or 0
    with timing.no_collection():
        for threads in session.copy_bandwidth:
            for phase in dict.fromkeys(phase for entrant in entrants for phase in entrant.works):
                with using_threads(threads):
                    rows += _measure_phase(case, session, entrants, phase, threads, counts, room)
    return rows


def _measure_phase(case, session, entrants, phase, threads, counts, room):
    rotation = _rotation(entrants[0].sets, session.device)
    names = [entrant.contender.name for entrant in entrants]
    timers = {name: _timer(e, phase, rotation, counts[name], room) for name, e in zip(names, entrants)}
    samples = timing.take_turns(timers, session.effort)
    rows = [_timed_row(case, session, e, phase, threads, samples[name]) for name, e in zip(names, entrants)]
    for row in rows:
        _compare(row, rows, samples)
        if phase in WHOLE:
            vars(row).update(counts[row.contender])
    return rows


def _rotation(sets, device):
    """None on a CPU, where one set of inputs is used again and again."""
    return timing.Rotation(sets, memory.cache_bytes(device)) if device.type == "cuda" else None


def _timer(entrant, phase, rotation, counted, room):
    """room: bytes that are free, of which the results of a batch take a quarter at most."""
    work = entrant.works[phase]
    if rotation is None:
        return timing.HostTimer(work)
    most = min(MOST_CALLS, QUEUE // (counted["launches"] or USUAL_LAUNCHES), room // 4 // (counted["peak_bytes"] or 1))
    return timing.DeviceTimer(work, rotation, max(most, 1))


def _count(case, entrant, device) -> dict[str, Any]:
    """What needs no clock. Counts are beside the point of a run: one that fails leaves its field empty, and a note."""
    counted: dict[str, Any] = {"peak_bytes": None, "launches": None, "passes": None, "moved_bytes": None, "note": ""}

    def attempt(name, count):
        try:
            counted[name] = count()
        except Exception as error:  # the profiler may be forbidden here, or compiled code may refuse a dispatch mode
            counted["note"] += f"{name}: {type(error).__name__}: {error}. "

    contender = entrant.contender
    if not contender.captured:  # a graph allocated its memory when it was captured
        attempt("peak_bytes", lambda: memory.peak_memory(entrant.call, device))
    if device.type == "cuda":
        attempt("launches", lambda: count_launches(case, contender, device))
    # A dispatch mode sees neither compiled code nor Triton kernels.
    if not (contender.mode or contender.captured or case.is_step or (contender.fused and device.type == "cuda")):
        attempt("moved", lambda: counting.count_ops(entrant.call))
    moved = counted.pop("moved", None)
    if moved is not None:
        counted |= {"passes": moved.passes, "moved_bytes": moved.bytes}
    return counted


def _row(case, session, contender=None, phase="", **values) -> Row:
    return Row(
        case=case.name,
        op=case.op,
        shape="x".join(map(str, case.shape)),
        elements=case.elements,
        dtype=checks.dtype_name(case.dtype),
        target_dtype=checks.dtype_name(case.target_dtype),
        phase=phase,
        contender="" if contender is None else contender.name,
        captured=contender is not None and contender.captured,
        quick=session.quick,
        **session.description,
        **values,
    )


def _timed_row(case, session, entrant, phase, threads, samples) -> Row:
    row = _row(case, session, entrant.contender, phase, threads=threads, error=entrant.error)
    time = timing.statistics([sample["time"] for sample in samples])
    row.time, row.time_p20, row.time_p80, row.time_min, row.rounds = time
    # A contender that waits for the device itself has neither of these.
    device = timing.statistics([sample["device"] for sample in samples if "device" in sample])
    host = timing.statistics([sample["host"] for sample in samples if "host" in sample])
    if device and host:
        row.device_time, row.device_p20, row.device_p80, *_ = device
        row.host_time, row.host_p20, row.host_p80, *_ = host
    row.copy_bandwidth = session.copy_bandwidth[threads]
    row.floor_bytes = case.floor.get(phase)
    # A whole call on a GPU may be the host's time and no more: of memory it says nothing.
    time = row.device_time or (row.time if row.kind == "cpu" else None)
    if row.floor_bytes and time:
        row.bandwidth = row.floor_bytes / (time / 1e3)
        row.share = row.bandwidth / row.copy_bandwidth
    return row


def _compare(row, others, samples):
    """How many times longer each other contender takes, graphs against graphs."""
    for other in others:
        if other.captured == row.captured and other.contender != row.contender:
            field = OVER.get(other.contender.removesuffix(GRAPH))
            if field:
                pair = samples[other.contender], samples[row.contender]
                setattr(row, field, timing.ratio(*pair))
                setattr(row, f"device_{field}", timing.ratio(*pair, "device"))
