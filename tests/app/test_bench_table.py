"""The table of `vae-fast bench` in a terminal: whatever the width, every figure is whole."""

from pathlib import Path

import pytest
from rich.console import Console

from vae_fast.app import bench
from vae_fast.benchmarks import results, tables

FOLDER = Path(__file__).parents[2] / "benchmarks" / "results"
COMMITTED = [FOLDER / name / "results.json" for name in ("nvidia-h200", "cpu-amd-epyc-2-cores-quick")]


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
