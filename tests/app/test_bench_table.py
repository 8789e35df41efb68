"""The table of `vae-fast bench` in a terminal: whatever the width, every figure is whole."""

from pathlib import Path

import pytest
from rich.console import Console

from tests.benchmarks.bench_rows import FAKE_CPU, fake_rows
from vae_fast.app import bench
from vae_fast.benchmarks import results, tables

FOLDER = Path(__file__).parents[2] / "benchmarks" / "results"
DEVICES = "nvidia-h200", "cpu-amd-epyc-2-cores-quick", "cpu-intel-xeon-processor-2-cores-quick"
COMMITTED = [FOLDER / name / "results.json" for name in DEVICES]


def shown(monkeypatch, capsys, path, width=None):
    if width is not None:
        monkeypatch.setattr(bench, "console", Console(width=width, force_terminal=True, color_system=None))
    bench._show(results.load(path))
    return capsys.readouterr().out


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("width", [None, 40, 80, 100, 200])
def test_every_figure_and_name_is_whole(monkeypatch, capsys, path, width):
    out = shown(monkeypatch, capsys, path, width)
    words = set(out.split())
    _, lines = tables.without_empty(tables.HEADER, tables.cases(results.load(path), lambda text, ratio: text))
    for name, *figures in lines:
        assert name.partition("/")[2].split()[0] in words
        assert {figure for figure in figures if figure} <= words
    if width in (80, 100):
        table = out[: out.index("milliseconds of a whole call, medians")]
        assert max(len(line) for line in table.splitlines()) <= width


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_in_a_pipe_it_is_one_table(monkeypatch, capsys, path):
    assert shown(monkeypatch, capsys, path).count("case ") == 1


def test_an_op_stands_once_above_its_sizes(capsys):
    bench._show(fake_rows(ops=["kl", "mse"]))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert (lines.count("kl"), lines.count("mse")) == (1, 1)


def test_losses_stand_below_the_table(capsys):
    rows = fake_rows(ops=["kl"])
    for row in tables.ours(rows):
        row.device_over_eager, row.over_compile = 0.5, 0.25
    bench._show(rows)
    out = capsys.readouterr().out
    assert "\nslower on the device:\n  kl: slower than eager on device in " in out
    assert "\nslower:\n  kl: slower than compile in " in out


def test_a_busy_machine_is_said_to_be_one(capsys):
    rows = fake_rows(FAKE_CPU, ["kl"], threads=(1, 2))
    for row in rows:
        row.load = 3.5
    bench._show(rows)
    assert "The machine was busy (load 3.5)" in capsys.readouterr().out


def test_losses_are_red_and_wins_green():
    marked = [bench._colored(str(ratio), ratio) for ratio in (0.5, 1.0, 2.0)]
    assert marked == ["[red]0.5[/]", "1.0", "[green]2.0[/]"]
