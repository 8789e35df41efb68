"""The figures of a report, as PNG files: speed-up, bandwidth, memory, host overhead and whole training steps."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vae_fast.benchmarks import tables
from vae_fast.benchmarks.contenders import GRAPH
from vae_fast.benchmarks.drawing import figure
from vae_fast.benchmarks.entrants import WHOLE
from vae_fast.benchmarks.results import OK, OVER, Row

COLORS = {"eager": "C7", "compile": "C0", "compile max-autotune": "C9", "vae_fast": "C1"}
MARKERS = {"float32": "o", "bfloat16": "s", "bfloat16+float32": "D"}
COLUMNS = 4
TITLE_WIDTH = 11  # characters an inch


class Line(NamedTuple):
    """One line of a panel: what it shows, in which precision, and on how many threads (None on a GPU)."""

    name: str
    precision: str
    threads: int | None

    @property
    def style(self) -> dict:
        dashed = self.threads == 1
        return {
            "color": COLORS[self.name],
            "marker": MARKERS[self.precision],
            "linestyle": ":" if dashed else "-",
            "markerfacecolor": "white" if dashed else COLORS[self.name],
            "markersize": 5,
        }


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Draw every figure for which there are figures, and return their paths; any other that was there before goes."""
    rows = [row for row in rows if row.status == OK and row.phase in WHOLE]
    ops = [row for row in rows if row.phase != "step"]
    drawn = []
    for name, function, chosen in (
        ("device", device_speedup, [row for row in ops if row.contender == "vae_fast" and row.device_over_eager]),
        ("speedup", speedup, [row for row in ops if row.contender == "vae_fast" and row.over_eager]),
        ("steps", training_steps, [row for row in rows if row.phase == "step"]),
        ("bandwidth", bandwidth, [row for row in ops if row.share]),
        ("memory", memory, [row for row in ops if row.peak_bytes]),
        ("host", host, [row for row in ops if row.host_time or row.kind == "cpu"]),
    ):
        path = folder / f"{name}.png"
        if chosen:
            function(chosen, path)
            drawn.append(path)
        else:
            path.unlink(missing_ok=True)
    return drawn


def speedup(rows: list[Row], path: Path) -> None:
    """How many times faster than each other contender, forward and backward, by size: one call after the other."""
    _speedup(rows, path, "", f"whole calls: speed-up of vae_fast, forward + backward, on {rows[0].device}")


def device_speedup(rows: list[Row], path: Path) -> None:
    """The same of the device's time alone."""
    title = f"device time, the host's left out: speed-up of vae_fast, forward + backward, on {rows[0].device}"
    _speedup(rows, path, "device_", title)


def _speedup(rows, path, kind, title):
    lines: dict[str, dict[Line, list]] = {}
    for row in rows:
        for name, field in OVER.items():
            ratio = getattr(row, kind + field)
            if ratio:
                line = Line(name, row.precision, row.threads)
                lines.setdefault(row.op, {}).setdefault(line, []).append((row.elements, ratio))
    values = [y for panel in lines.values() for points in panel.values() for _, y in points]
    low, high = min(0.45, 0.8 * min(values)), max(2.2, 1.25 * max(values))

    def dress(axes):
        axes.set_yscale("log", base=2)
        axes.set_ylim(low, high)
        axes.axhspan(low, 1, color="C3", alpha=0.08, linewidth=0)
        axes.axhline(1, color="C3", linewidth=1)
        axes.text(0.99, 0.02, "slower", color="C3", transform=axes.transAxes, ha="right", va="bottom")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}x"))
        axes.yaxis.set_minor_formatter(NullFormatter())

    _panels(lines, path, title, dress, "over ")


def bandwidth(rows: list[Row], path: Path) -> None:
    """The floor's bytes over the time, as a share of the bandwidth of a copy in the same run."""
    lines: dict[str, dict[Line, list]] = {}
    for row in rows:
        line = Line(row.contender, row.precision, row.threads)
        lines.setdefault(row.op, {}).setdefault(line, []).append((row.elements, row.share))
    high = max(1.1, 1.05 * max(y for panel in lines.values() for points in panel.values() for _, y in points))

    def dress(axes):
        axes.set_ylim(0, high)
        axes.axhline(1, color="C3", linewidth=1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}"))

    _panels(lines, path, f"fewest bytes / time, as a share of a copy's bandwidth (red), on {rows[0].device}", dress)


def memory(rows: list[Row], path: Path) -> None:
    """Peak memory over the inputs, in tensors of the case's size: of each op's largest size, in float32 where it is."""
    _bars(
        _of_one_case(rows, lambda row: (row.precision != "float32", -row.elements)),
        path,
        f"peak memory over the inputs, forward + backward, on {rows[0].device}",
        "tensors of the op's size",
        lambda row: row.peak_bytes / (row.elements * (2 if row.dtype == "bfloat16" else 4)),
        "{:.1f}".format,
        _case,
    )


def host(rows: list[Row], path: Path) -> None:
    """What a call costs the host, at each op's smallest size; on a CPU, where host and device are one, all of it."""
    what = "a call" if rows[0].kind == "cpu" else "host time of a call"
    _bars(
        _of_one_case(rows, lambda row: (row.elements, row.precision != "float32")),
        path,
        f"{what} at the smallest size, forward + backward, on {rows[0].device}",
        "microseconds",
        lambda row: 1e3 * (row.host_time or row.time),
        "{:.0f}".format,
        _case,
    )


def training_steps(rows: list[Row], path: Path) -> None:
    """Time of a whole training step, eager calls and CUDA graphs."""
    title = f"a whole training step on {rows[0].device}"
    _bars(rows, path, title, "milliseconds", lambda row: row.time, tables.milliseconds, _op)


def _of_one_case(rows, order) -> list[Row]:
    """The rows, on all threads, of one case of each op: the first by `order`."""
    threads = max((row.threads or 0 for row in rows), default=0)
    rows = [row for row in rows if (row.threads or 0) == threads]
    first = {op: min((row for row in rows if row.op == op), key=order).case for op in {row.op for row in rows}}
    return [row for row in rows if row.case == first[row.op]]


def _panels(lines: dict[str, dict[Line, list]], path: Path, title: str, dress: Callable, prefix: str = "") -> None:
    """One panel an op, by size; the legend takes a place of its own."""
    count = len(lines) + 1
    across = min(COLUMNS, count)
    down = -(-count // across)
    with figure(path, 2.9 * across, 2.5 * down + 0.4) as canvas:
        grid = list(canvas.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)
        for axes, (op, panel) in zip(grid, lines.items()):
            dress(axes)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=6))
            axes.set_title(op)
            for line, points in panel.items():
                axes.plot(*zip(*sorted(points)), **line.style)
        for axes in grid[len(lines) :]:
            axes.set_axis_off()
        for axes in grid[max(len(lines) - across, 0) : len(lines)]:
            axes.tick_params(labelbottom=True)  # matplotlib labels the bottom row alone, where nothing may stand
        _legend(canvas, [line for panel in lines.values() for line in panel], prefix)
        canvas.supxlabel("elements of one tensor", fontsize=9)
        canvas.suptitle(title, fontsize=11)


def _legend(canvas, lines: list[Line], prefix: str) -> None:
    """Colour, marker and dash each once."""
    handles = [
        Line2D([], [], color=COLORS[name], linewidth=2, label=f"{prefix}{name}")
        for name in dict.fromkeys(line.name for line in lines)
    ]
    handles += [
        Line2D([], [], color="0.4", marker=MARKERS[name], linestyle="", label=name)
        for name in dict.fromkeys(line.precision for line in lines)
    ]
    threads = sorted({line.threads for line in lines if line.threads})
    handles += [
        Line2D([], [], color="0.4", linestyle=":" if count == 1 else "-", label=_threads(count)) for count in threads
    ]
    canvas.axes[-1].legend(handles=handles, frameon=False, loc="center")


def _bars(
    rows: list[Row],
    path: Path,
    title: str,
    unit: str,
    value: Callable[[Row], float],
    text: Callable,
    label: Callable[[Row], str],
) -> None:
    """Bars of every contender, with their numbers, grouped by label and, where it varies, the number of threads."""
    threads = {row.threads for row in rows}

    def group(row):
        return label(row) if len(threads) == 1 else f"{label(row)}\n{_threads(row.threads)}"

    groups = list(dict.fromkeys(map(group, rows)))
    names = sorted({row.contender for row in rows}, key=lambda name: ([*COLORS].index(name.removesuffix(GRAPH)), name))
    width = 0.8 / len(names)
    across = max(5.0, max(1.2, 0.44 * len(names)) * len(groups))
    with figure(path, across, 3.6) as canvas:
        axes = canvas.subplots()
        for number, name in enumerate(names):
            own = {group(row): value(row) for row in rows if row.contender == name}
            base, graph = name.removesuffix(GRAPH), name.endswith(GRAPH)
            bars = axes.bar(
                [groups.index(group) + (number - (len(names) - 1) / 2) * width for group in own],
                list(own.values()),
                0.92 * width,
                color=COLORS[base],
                hatch="///" if graph else None,
                edgecolor="white",
                linewidth=0,
                label=f"{base}, CUDA graph" if graph else name,
            )
            axes.bar_label(bars, labels=[text(v) for v in own.values()], fontsize=7, padding=1)
        axes.set(ylabel=unit, xticks=range(len(groups)), xticklabels=groups)
        canvas.suptitle(textwrap.fill(title, int(TITLE_WIDTH * across)), fontsize=11)
        axes.margins(y=0.12)
        axes.grid(False, axis="x")
        axes.set_axisbelow(True)
        canvas.legend(loc="outside lower center", ncols=4, frameon=False)


def _op(row):
    return row.op.replace("_", "\n")  # side by side, long names would run into each other


def _case(row):
    return "\n".join((_op(row), row.shape, *([row.precision] if row.precision != "float32" else ())))


def _threads(count):
    return f"{count} CPU thread{'s' * (count > 1)}"
