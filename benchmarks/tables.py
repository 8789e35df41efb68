"""The tables of a report, as lines of text in columns: for Markdown and for a terminal alike."""

from collections.abc import Callable, Iterable

from vae_fast.benchmarks import results
from vae_fast.benchmarks.contenders import GRAPH
from vae_fast.benchmarks.entrants import WHOLE
from vae_fast.benchmarks.results import OK, Row

NOISE = 1.05  # two runs of one contender differ by this much: less is neither a win nor a loss
OVER = {name.removeprefix("compile "): field for name, field in results.OVER.items()}  # short names for columns
ON_DEVICE = {f"{name} on device": f"device_{field}" for name, field in OVER.items()}

FASTER = tuple(f"x {name}" for name in OVER)
FASTER_ON_DEVICE = tuple(f"x {name}" for name in ON_DEVICE)
DEVICE_MS = tuple(f"{name} device ms" for name in ("eager", "compile", "vae_fast"))
TIMES = "x: how many times as fast as that"
DEVICE_TIMES = "on device: without the host's time, as in a CUDA graph or behind other work"

OVERVIEW = ("op", *FASTER_ON_DEVICE, *FASTER, "of copy bandwidth", "memory")
HEADER = ("case", "threads", "eager", "compile", "vae_fast", *DEVICE_MS, *FASTER_ON_DEVICE, *FASTER, "(min)", "of copy")
MORE = ("memory", "eager's bytes")

# What stands in a column whose name does not say it.
OVERVIEW_MEANINGS = {
    **dict.fromkeys(FASTER, f"{TIMES}, at worst and at best of all that was measured"),
    **dict.fromkeys(FASTER_ON_DEVICE, DEVICE_TIMES),
    "of copy bandwidth": "of copy bandwidth: the share of it at the largest size in float32, on a GPU by device time",
    "memory": "memory: the peak over the inputs at the largest size in float32, as a share of eager's",
}
MEANINGS = {
    "vae_fast": "milliseconds of a whole call, medians",
    **dict.fromkeys(DEVICE_MS, "device ms: those of the device alone"),
    **dict.fromkeys(FASTER, TIMES),
    **dict.fromkeys(FASTER_ON_DEVICE, DEVICE_TIMES),
    "(min)": "(min): as fast as eager by the minima, which other work disturbs less",
    "of copy": "of copy: share of a copy's bandwidth, on the floor's bytes by device ms, on a CPU by whole calls",
    "memory": "memory: over the inputs, as a share of eager's",
    "eager's bytes": "eager's bytes: those that its ops move, over the floor, which is the speed-up that memory allows",
}
OVERHEAD = ("op", "host: eager", "compile", "vae_fast", "launches: eager", "compile", "vae_fast")
OVERHEAD_NOTE = "microseconds of the host, and kernels, copies and fills, of one call at the smallest size"


def ours(rows: list[Row], phases: tuple[str, ...] = WHOLE) -> list[Row]:
    """The rows of vae_fast that have figures, of whole calls or of these phases."""
    return [row for row in rows if row.contender.startswith("vae_fast") and row.phase in phases and row.status == OK]


def is_loss(ratio: float) -> bool:
    return ratio < 1 / NOISE


def is_win(ratio: float) -> bool:
    return ratio > NOISE


def ratios(row: Row, over: dict[str, str] = OVER) -> dict[str, float]:
    """How many times as fast as each other contender."""
    found = {name: getattr(row, field) for name, field in over.items()}
    return {name: ratio for name, ratio in found.items() if ratio}


def overview(rows: list[Row]) -> list[tuple[str, ...]]:
    """A line an op: the worst and the best speed-up, and bandwidth and memory at the largest size."""
    lines = []
    for op, own in _by_op(ours(rows)).items():
        largest = max(own, key=lambda row: (row.precision == "float32", row.elements, row.threads or 0))
        speeds = [
            _range([ratios(row, over)[name] for row in own if name in ratios(row, over)])
            for over in (ON_DEVICE, OVER)
            for name in over
        ]
        memory = _memory(largest, _partner(rows, largest, "eager"))
        lines.append((op, *speeds, _percent(largest.share), memory))
    return lines


def cases(rows: list[Row], mark: Callable[[str, float], str]) -> list[tuple[str, ...]]:
    """A line a case, and on a CPU a number of threads. mark(text, ratio) shows a speed-up for what it is."""
    lines = []
    for row in ours(rows):
        eager, compiled = (_partner(rows, row, name) for name in ("eager", "compile"))
        times = [_time(other, field) for field in ("time", "device_time") for other in (eager, compiled, row)]
        by_minima = eager.time_min / row.time_min if eager and row.threads else None
        speeds = [ratios(row, over).get(name) for over in (ON_DEVICE, OVER) for name in over]
        marked = [mark(f"{speed:.2f}", speed) if speed else "" for speed in (*speeds, by_minima)]
        moved = f"{eager.moved_bytes / eager.floor_bytes:.1f}" if eager and eager.moved_bytes else ""
        name, threads = row.case + GRAPH * row.captured, str(row.threads or "")
        lines.append((name, threads, *times, *marked, _percent(row.share), _memory(row, eager), moved))
    return lines


def overheads(rows: list[Row]) -> list[tuple[str, ...]]:
    """A line an op at its smallest size, of what a GPU's host does; nothing on a CPU."""
    lines = []
    for op, own in _by_op([row for row in ours(rows) if row.host_time]).items():
        row = min(own, key=lambda row: (row.elements, row.precision != "float32"))
        trio = [_partner(rows, row, "eager"), _partner(rows, row, "compile"), row]
        hosts = [f"{1e3 * r.host_time:.0f}" if r and r.host_time else "" for r in trio]
        lines.append((op, *hosts, *(str(r.launches) if r and r.launches else "" for r in trio)))
    return lines


def losses(rows: list[Row], over: dict[str, str] = OVER, phases: tuple[str, ...] = WHOLE) -> list[str]:
    """Where another contender is faster by more than the noise: a line for each op and contender."""
    lines = []
    for op, own in _by_op(ours(rows, phases)).items():
        for name in over:
            speeds = {row.case + row.on_threads: ratios(row, over)[name] for row in own if name in ratios(row, over)}
            lost = sum(map(is_loss, speeds.values()))
            if lost:
                worst = min(speeds, key=speeds.get)
                slower = f"{1 / speeds[worst]:.2f} times as slow"
                lines.append(f"{op}: slower than {name} in {lost} of {len(speeds)}, at worst {slower} ({worst})")
    return lines


def unmeasured(rows: list[Row]) -> list[str]:
    """What has no figures, and why."""
    faulty = [row for row in rows if row.status != OK]
    return [f"{row.case}{', ' * bool(row.contender)}{row.contender}: {row.status}" for row in faulty]


def own_faults(rows: list[Row]) -> list[str]:
    """The cases that vae_fast itself got wrong, or failed at."""
    ours = (row for row in rows if row.contender.startswith("vae_fast"))
    return list(dict.fromkeys(row.case for row in ours if row.status.startswith(("wrong", "failed"))))


def busy(rows: list[Row]) -> str:
    """That other work ran beside the benchmark, where it did; "" on a GPU."""
    load = max((row.load or 0 for row in rows if row.kind == "cpu"), default=0)
    if load <= max(row.threads or 1 for row in rows) / 2:
        return ""
    return f"The machine was busy (load {load:.1f}): times on all threads mean little."


def notes(rows: list[Row]) -> list[str]:
    """What is said of rows, and of how many: what could not be counted, or where they come from."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.note:
            found.setdefault(row.note.strip(), []).append(row)
    return [
        f"{', '.join(dict.fromkeys(row.op for row in own))}, {len(own)} of all {len(rows)} results: {note}"
        for note, own in found.items()
    ]


def note(columns: Iterable[str], meanings: dict[str, str]) -> str:
    """What stands in these columns."""
    return "; ".join(dict.fromkeys(meanings[name] for name in columns if name in meanings))


def milliseconds(value: float) -> str:
    """Three digits, or all of a large number's."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def without_empty(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> tuple[list[str], list[list[str]]]:
    """The same without the columns that are empty in every line."""
    kept = [k for k in range(len(header)) if any(line[k] for line in lines)]
    return [header[k] for k in kept], [[line[k] for k in kept] for line in lines]


def _by_op(rows):
    ops: dict[str, list[Row]] = {}
    for row in rows:
        ops.setdefault(row.op + GRAPH * row.captured, []).append(row)
    return ops


def _partner(rows, row, name):
    """The row of the contender `name` beside `row`, captured if that is; None where it has no time."""
    name += GRAPH * row.captured
    same = ("case", "phase", "threads")
    beside = (r for r in rows if r.contender == name and all(getattr(r, f) == getattr(row, f) for f in same))
    return next((r for r in beside if r.time), None)


def _time(row, field):
    value = getattr(row, field) if row else None
    return milliseconds(value) if value else ""


def _memory(row, eager):
    return _percent(row.peak_bytes / eager.peak_bytes) if eager and eager.peak_bytes and row.peak_bytes else ""


def _percent(share):
    return f"{share:.0%}" if share else ""


def _range(values):
    if not values:
        return ""
    low, high = f"{min(values):.2f}x", f"{max(values):.2f}x"
    return low if low == high else f"{low} to {high}"
