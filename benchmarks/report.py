"""The report of a folder of results: report.md with its figures, and the table that a terminal shows.

python -m vae_fast.benchmarks.report FOLDER writes it again, from the folder's results.json, on any machine.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from vae_fast.benchmarks import charts, machine, tables, traffic_table
from vae_fast.benchmarks.cases import CASES
from vae_fast.benchmarks.entrants import WHOLE
from vae_fast.benchmarks.results import Results, Row, load
from vae_fast.files import atomic_path

REPORT = "report.md"
FIGURES = {
    "device": "Speed-up over eager and torch.compile on the device: the host's time left out, as in a CUDA graph.",
    "speedup": "Speed-up over eager and torch.compile by size, whole calls. In the red part vae_fast is slower.",
    "steps": "A whole training step, the network and Adam included.",
    "bandwidth": "Share of the copy bandwidth by size: the fewest bytes over the time. A copy is the red line.",
    "memory": "Peak memory over the inputs.",
    "host": "Host overhead.",
}
TRAFFIC_TITLE, METHOD_TITLE = "## Traffic\n\n", "## How it was measured\n\n"
TRAFFIC_NOTE = (
    "Bytes that the kernels load and store over the fewest, by the interpreter's count, in every option, dtype and "
    "layout. Small tensors: vectors [B] and partial sums weigh more here than at a real size."
)
COUNTED_AT = "Counted at commit"
TRAFFIC_COMMAND = "Not counted in this run: `python -m vae_fast.benchmarks.report <this folder>` adds it."
NO_PROBLEMS = "No lane outside a tensor, and no address stored twice in a launch."
CPU_NOTE = (
    "**These are CPU figures.** Triton compiles for GPUs, so what runs here is vae_fast's PyTorch path: they say "
    "nothing of the kernels."
)
GPU_METHOD = """\
- Time is that of one call after the other on a GPU that was idle, by CUDA events around batches. Device time is that of
  calls queued behind a sleeping GPU, host time what these calls cost the host, whose queue is never full. Both
  are blank of a contender that waits for the device itself: its calls cannot be queued.
- The L2 is emptied before each batch of calls, in which inputs and results rotate: no call finds there what an earlier
  one has read or given. A note above names the rows that were timed before this was so.
"""
CPU_METHOD = """\
- Time is that of a call on the host's clock. One set of inputs is used again and again, so small cases find theirs in
  the cache, and a share of the copy bandwidth, which is that of main memory, can be over 100 %.
"""
METHOD = """\
- No speed is shown for a result that does not match float64 first: outputs and gradients, with the same noise for all.
- Timed calls draw their noise, as in training. Contenders take turns in one run; figures are medians, and the 20th and
  80th percentiles and the minimum stand in results.csv. How many times as fast is the median over the turns, in each of
  which the machine was the same to both.
- vae_fast makes the gradient of a scalar loss in the forward pass: forward alone is longer for it, backward shorter.
- Graphs are compared with graphs, calls with calls. Every contender of torch.compile gets static shapes.
- The floor is the fewest bytes: 8 elements a latent for sample and KL, 2p + 1 for p parameters of a likelihood. What
  eager moves is counted op by op, inputs and outputs; a hidden pass inside one of PyTorch's kernels may be missing.
"""


def write(rows: list[Row], folder: Path, traffic: bool = True) -> Path:
    """Write report.md and the figures into `folder`; returns the path of the first.

    traffic: count the kernels' traffic, which takes some minutes and is the same on every machine. Otherwise what an
    earlier report there says of it stays, if it says at which commit it was counted.
    """
    drawn = {path.stem for path in charts.draw(rows, folder)}
    counted = _traffic() if traffic else _earlier_traffic(folder) or TRAFFIC_COMMAND
    text = "\n\n".join(section.strip() for section in _sections(rows, drawn, counted) if section) + "\n"
    with atomic_path(folder / REPORT) as path:
        path.write_text(text, encoding="utf-8")
    return folder / REPORT


def _sections(rows, drawn, traffic) -> Iterable[str]:
    yield f"# vae_fast on {rows[0].device}"
    yield _origin(rows)
    yield _overview(rows)
    yield _losses(rows)
    yield _listed("Without figures", tables.unmeasured(rows))
    yield _listed("Notes", tables.notes(rows))
    yield "\n\n".join(f"![{text}]({name}.png)\n\n*{text}*" for name, text in FIGURES.items() if name in drawn)
    yield _every_case(rows)
    yield _overheads(rows)
    yield f"{TRAFFIC_TITLE}{traffic}"
    method = GPU_METHOD if rows[0].kind == "cuda" else CPU_METHOD
    yield f"{METHOD_TITLE}{METHOD}{method}"
    yield "## The cases\n\n" + markdown(("case", "why this one"), _reasons(rows), words=("why this one",))


def _origin(rows):
    """Where the figures come from, and when."""
    first = rows[0]

    def said_of(name):
        return " and ".join(sorted({getattr(row, name) for row in rows}))

    dates = sorted(row.date for row in rows)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    copies: dict[int | None, set[float]] = {}
    for row in rows:
        if row.copy_bandwidth:
            copies.setdefault(row.threads, set()).add(row.copy_bandwidth)
    copy = ", ".join(
        f"{' to '.join(f'{value / 1e9:,.1f}' for value in sorted({min(values), max(values)}))} GB/s"
        f"{f' on {threads} thread' + 's' * (threads > 1) if threads else ''}"
        for threads, values in copies.items()
    )
    lines = [
        f"{when}; " + ", ".join(f"{name} {said_of(name)}" for name in ("torch", "triton", "vae_fast", "commit"))
        + (f", driver {said_of('driver')}, CUDA {said_of('cuda')}" if first.kind == "cuda" else "")
        + f". A copy within the device: {copy or 'not measured'}, bytes read and written.",
    ]  # fmt: skip
    quick = {row.case for row in rows if row.quick}
    if quick:
        whole = len(quick) == len({row.case for row in rows})
        which = "" if whole else f" (in {len(quick)} cases)"
        lines.append(f"Measured in the quick form{which}: eager and vae_fast only, few sizes, few rounds.")
    if first.kind == "cpu":
        lines.append(CPU_NOTE)
    busy = tables.busy(rows)
    if busy:
        lines.append(f"**{busy}**")
    return "\n\n".join(lines)


def markdown(header: tuple[str, ...], lines: list[tuple[str, ...]], words: tuple[str, ...] = ()) -> str:
    """A Markdown table. words: the columns besides the first that are no numbers."""
    header, lines = tables.without_empty(header, lines)
    rule = ["---" if name in (*header[:1], *words) else "--:" for name in header]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *lines))


def _overview(rows):
    lines = tables.overview(rows)
    table, note = _with_note(tables.OVERVIEW, lines, tables.OVERVIEW_MEANINGS)
    return f"## In ten seconds\n\n{table}\n\n*{note}.*" if lines else ""


def _with_note(header, lines, meanings):
    """The table, and what stands in the columns that it has."""
    return markdown(header, lines), tables.note(tables.without_empty(header, lines)[0], meanings)


def _losses(rows):
    """Of whole calls, those of the device first, where it has times of its own; then of each direction by itself."""
    found = [_losses_by(rows, over, where) for where, over in ((" on the device", tables.ON_DEVICE), ("", tables.OVER))]
    for phase in ("forward", "backward"):
        on_device = _losses_by(rows, tables.ON_DEVICE, f" on the device, {phase} alone,", (phase,))
        found.append(on_device or _losses_by(rows, tables.OVER, f", {phase} alone,", (phase,)))
    return "\n\n".join(filter(None, found))


def _losses_by(rows, over, where, phases=WHOLE):
    compared = [ratio for row in tables.ours(rows, phases) for ratio in tables.ratios(row, over).values()]
    if not compared:
        return ""
    listed = "".join(f"\n- {line}" for line in tables.losses(rows, over, phases))
    counts = f"{sum(map(tables.is_loss, compared))} of {len(compared)} comparisons"
    return f"**Slower{where} by more than {tables.NOISE - 1:.0%} in {counts}.**\n{listed}".rstrip()


def _listed(title, lines):
    return f"**{title}:**\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""


def _every_case(rows):
    lines = tables.cases(rows, lambda text, ratio: f"**{text}**" if tables.is_loss(ratio) else text)
    table, note = _with_note((*tables.HEADER, *tables.MORE), lines, tables.MEANINGS)
    return f"## Every case, forward and backward\n\n{table}\n\n*{note}. Losses are bold.*" if lines else ""


def _overheads(rows):
    lines = tables.overheads(rows)
    return f"## Overhead\n\n{markdown(tables.OVERHEAD, lines)}\n\n*{tables.OVERHEAD_NOTE}*" if lines else ""


def _traffic():
    """The bytes that the kernels move, counted in Triton's interpreter: the same on every machine."""
    try:
        counted = traffic_table.traffic_table()
    except RuntimeError as error:
        return f"Not counted: {error}"
    ops: dict[str, list] = {}
    for row in counted:
        ops.setdefault(row.op, []).append(row)
    lines = []
    for op, own in ops.items():
        worst = max(own, key=lambda row: row.ratio)
        lines.append((op, str(len(own)), f"{min(row.ratio for row in own):.3f}", f"{worst.ratio:.3f}", worst.variant))
    problems = "".join(f"\n- {row.name}: {problem}" for row in counted for problem in row.problems)
    header = ("op", "calls", "least", "most", "which")
    note = f"{TRAFFIC_NOTE} {COUNTED_AT} {machine.commit()}."
    return f"{note}\n\n{markdown(header, lines, words=('which',))}\n\n{problems or NO_PROBLEMS}"


def _earlier_traffic(folder):
    try:
        text = (folder / REPORT).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    section = text.partition(TRAFFIC_TITLE)[2].partition(METHOD_TITLE)[0]
    return section if COUNTED_AT in section else ""  # or nobody could tell which kernels it is of


def _reasons(rows):
    return [(name, CASES[name].why) for name in dict.fromkeys(row.case for row in rows) if name in CASES]


def main(arguments=None):
    parser = argparse.ArgumentParser("python -m vae_fast.benchmarks.report", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help=f"where {Results.JSON} is, such as benchmarks/results/nvidia-h200")
    folder = parser.parse_args(arguments).folder
    try:
        rows = load(folder / Results.JSON)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(write(rows, folder))


if __name__ == "__main__":
    main()
