"""`vae-fast bench`: measure against eager PyTorch and torch.compile, show the table, write results and report."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vae_fast.app.options import BACKEND, INTERRUPTED, WIDTH, argument, console, say, trainable_device
from vae_fast.benchmarks import cases, machine, measure, tables
from vae_fast.benchmarks.results import Results, Row
from vae_fast.extras import import_extra
from vae_fast.ops import backend

RESULTS = Path("benchmarks/results")
NAMED = ("case", "threads")  # the columns that say what is measured
GAP, EDGE = 1, 1  # between columns, and around the table where no gap is


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Eager and vae_fast only, few sizes.")] = False,
    case: Annotated[list[str] | None, typer.Option(help="An op or a case; repeat it for more. [all]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>.")] = "auto",
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to write; other cases in it stay. [benchmarks/results/<device>, or <device>-quick]"),
    ] = None,
) -> None:
    """Measure speed and memory against eager PyTorch and torch.compile, and write the results with a report.

    Exits with 1 where vae_fast's own result is wrong, or it failed.
    """
    names = tuple(case or ())
    chosen = argument("--case", cases.select, names, quick)
    target = _device(device)
    description = machine.describe(target)
    folder = output or RESULTS / (machine.folder_name(description) + ("-quick" if quick else ""))
    results = argument("--output", Results, folder, description["device"])
    say(f"{len(chosen)} cases on {description['device']}; results in {folder}/")
    report = import_extra("vae_fast.benchmarks.report")
    measured = None
    try:
        measured = measure.run(chosen, target, results, say, quick=quick, named=names)
    except KeyboardInterrupt:
        say("interrupted: what was measured is kept")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        if results.rows:
            _show(results.rows)
            count_traffic = measured is not None and not (quick or names)
            say(f"written to {report.write(results.rows, folder, traffic=count_traffic)}")
    faulty = tables.own_faults(measured)
    if faulty:
        say(f"vae_fast is wrong, or failed: {', '.join(faulty)}")
        raise typer.Exit(1)


def _device(name: str) -> torch.device:
    """The device, where what is timed there is what its users run."""
    device = trainable_device(name)
    if device.type == "cuda" and backend.choose(torch.empty(0, device=device)) != "triton":
        why = "it is 'eager'" if backend.HAS_TRITON else "triton is not installed (pip install triton)"
        raise typer.BadParameter(f"{why}: vae_fast would be timed without its kernels", param_hint=BACKEND)
    if backend.interpreting():
        raise typer.BadParameter("it is set: Triton's interpreter would be timed", param_hint="'TRITON_INTERPRET'")
    return device


def _show(rows: list[Row]) -> None:
    """The table; where vae_fast is slower; what has no figures."""
    columns, lines = tables.without_empty(tables.HEADER, tables.cases(rows, _colored))
    say("forward and backward, or a whole training step")
    room = console.width if console.is_terminal else WIDTH
    for part in _parts(columns, lines, room):
        _print_part([columns[k] for k in part], [[line[k] for k in part] for line in lines])
    say(tables.note(columns, tables.MEANINGS))
    if tables.busy(rows):
        say(tables.busy(rows))
    for title, faults in (
        ("slower on the device:", tables.losses(rows, tables.ON_DEVICE)),
        ("slower:", tables.losses(rows)),
        ("without figures:", tables.unmeasured(rows)),
    ):
        if faults:
            say("\n  ".join((title, *faults)))


def _parts(columns: list[str], lines: list[list[str]], room: int) -> Iterator[list[int]]:
    """The columns of each table: as many as the room takes whole, behind those that say what is measured."""
    named = [k for k, name in enumerate(columns) if name in NAMED]
    used = before = EDGE + sum(_width(columns, lines, k) + GAP for k in named)
    part = list(named)
    for k in (k for k in range(len(columns)) if k not in named):
        width = _width(columns, lines, k) + GAP
        if used + width > room and part != named:
            yield part
            part, used = list(named), before
        part.append(k)
        used += width
    yield part


def _width(columns: list[str], lines: list[list[str]], k: int) -> int:
    """That of the longest figure, or word in the head."""
    cells = [text for line in lines for text in (_op_and_size(line[0]) if k == 0 else [line[k]])]
    return max(cell_len(text) for text in (*columns[k].split(), *(Text.from_markup(cell).plain for cell in cells)))


def _op_and_size(case: str) -> tuple[str, str]:
    """A case's two lines in the table: the op stands once above its sizes."""
    op, _, size = case.partition("/")
    return f"[bold]{op}[/]", f" {size}"


def _print_part(columns: list[str], lines: list[list[str]]) -> None:
    """In a window that is too narrow for one column of figures, lines wrap."""
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for k, name in enumerate(columns):
        table.add_column(name, justify="right" if k else "left", width=_width(columns, lines, k), overflow="fold")
    before = None
    for name, *figures in lines:
        op, size = _op_and_size(name)
        if op != before:
            table.add_row(op)
            before = op
        table.add_row(size, *figures)
    Console(width=max(console.width, WIDTH), highlight=False).print(table)


def _colored(text: str, ratio: float) -> str:
    return f"[red]{text}[/]" if tables.is_loss(ratio) else f"[green]{text}[/]" if tables.is_win(ratio) else text
