"""`vae-fast audit`: the machine code of every kernel, compiled with no GPU present, as a table that can fail."""

import importlib
from types import ModuleType
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from vae_fast.app.options import WIDTH, console
from vae_fast.ops import backend

COLUMNS = (
    "kernel", "call", "registers", "spilled", "local", "loads", "stores", "issued", "of", "integer", "special", "bytes",
    "bound by",
)  # fmt: skip
CAPTION = (
    "A thread: registers, bytes spilled and in local memory, global loads and stores (number x bits) on the main path. "
    "An element: instructions issued, of the number beside the kernel (sm_90 alone must keep it), integer and special "
    "ones, and bytes. Bound by: memory, or the instructions that take longer, and the share of the memory's time."
)


def audit(
    target: Annotated[list[str] | None, typer.Option(help="sm_80, sm_90, sm_100 or gfx942; repeat it. [all]")] = None,
    kernel: Annotated[str, typer.Option(help="Part of a kernel's name, such as forward. [all]")] = "",
    card: Annotated[
        list[str] | None,
        typer.Option(help="h200, h100, a100, b200 or mi300x, for its target; repeat it. [one of each]"),
    ] = None,
    main: Annotated[bool, typer.Option("--main", help="The main variants alone, as `make test` does.")] = False,
    jobs: Annotated[int, typer.Option(help="Processes that compile.", min=1)] = 2,
) -> None:
    """Compile every kernel for four GPUs, in each option, dtype and layout and pairs of them; check the code.

    A row fails where the compiler does, where code spills (a masked tail may have 16 bytes), where accesses are narrow
    that could be wide, and, on sm_90, where more instructions are issued than the number beside the kernel.
    """
    tool = _tool()
    targets = _choices("--target", target or list(tool.TARGETS), tool.TARGETS)
    cards = _cards(_choices("--card", card or [], tool.CARDS), targets, tool.CARDS)
    todo = tool.tasks(targets, kernel, main)
    if not todo:
        names = ", ".join(sorted({_name(entry.launch.name) for entry in tool.recorded(main)}))
        raise typer.BadParameter(f"{kernel!r} is part of none of {names}", param_hint="'--kernel'")
    running = tool.audit_rows(todo, cards, jobs)
    progress = Console(stderr=True)
    rows = list(track(running, "compiling", len(todo), console=progress, transient=True))
    for name in targets:
        _show(name, [row for row in rows if row.target == name])
    console.print(CAPTION, soft_wrap=True)
    failures = [f"{row.call}: {failure}" for row in rows for failure in row.failures]
    for failure in failures:
        console.print(f"[red]FAILED[/] {escape(failure)}", soft_wrap=True)
    console.print(f"{len(failures)} failures in" if failures else "no failures in", f"{len(rows)} compilations")
    raise typer.Exit(1 if failures else 0)


def _tool() -> ModuleType:
    """The module that compiles: it needs Triton, and not its interpreter."""
    if not backend.HAS_TRITON:
        raise typer.BadParameter("triton is not installed: pip install triton (Linux)", param_hint="audit")
    if backend.interpreting():
        raise typer.BadParameter("the audit compiles kernels: unset it", param_hint="TRITON_INTERPRET")
    return importlib.import_module("vae_fast.benchmarks.audit_table")


def _choices(option: str, names: list[str], known: dict) -> list[str]:
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint=f"'{option}'")
    return list(dict.fromkeys(names))


def _cards(names: list[str], targets: list[str], known: dict) -> list[str]:
    """The names, if each is the one card of a target that is asked for."""
    taken: dict[str, str] = {}
    for name in names:
        target = known[name].target
        if target not in targets:
            raise typer.BadParameter(f"{name!r} is for --target {target}, which is left out", param_hint="'--card'")
        if target in taken:
            raise typer.BadParameter(f"{taken[target]!r} and {name!r} are both for {target}", param_hint="'--card'")
        taken[target] = name
    return names


def _show(target: str, rows: list) -> None:
    table = Table(title=f"{target}, on a {rows[0].card}", box=box.SIMPLE_HEAD)
    for name in COLUMNS:
        words = name in ("kernel", "call", "loads", "stores", "bound by")
        table.add_column(name, justify="left" if words else "right", no_wrap=name != "call", overflow="fold")
    for row in rows:
        table.add_row(*_cells(row), style="red" if row.failures else "")
    (console if console.is_terminal else Console(width=WIDTH, highlight=False)).print(table)


def _cells(row) -> tuple[str, ...]:
    if not row.compiled:
        return _name(row.kernel), row.call
    limit = "" if row.limit is None else f"{row.limit:.1f}"
    resources = (row.registers, row.spilled, row.local)
    counts = (f"{row.issued:.1f}", limit, f"{row.integer:.1f}", f"{row.special:.2f}", f"{row.bytes:.4g}")
    bound = f"{row.bound}, {row.load:.0%}"
    return _name(row.kernel), row.call, *map(str, resources), row.loads, row.stores, *counts, bound


def _name(kernel: str) -> str:
    return kernel.lstrip("_")
