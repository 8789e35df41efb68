"""Rows and their folder: whole files or none, kept rows, and what is said of a folder that is something else."""

import csv
import dataclasses
import json
import os
from pathlib import Path

import pytest

from tests.benchmarks.bench_rows import FAKE_CPU, FAKE_GPU, fake_rows
from vae_fast.benchmarks import results
from vae_fast.benchmarks.results import FIELDS, Results, Row

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="speed is that of compiled code")

DEVICE = FAKE_GPU["device"]


def of_case(name):
    return [row for row in fake_rows(ops=["mse"]) if row.case == name]


FIRST, SECOND = of_case("mse/1x32/float32"), of_case("mse/128x784/float32")


def test_both_files_hold_every_row(tmp_path):
    folder = Results(tmp_path / "new", DEVICE)
    folder.put(FIRST)
    folder.put(SECOND)
    written = results.load(tmp_path / "new" / Results.JSON)
    assert [row.case for row in written] == [row.case for row in FIRST + SECOND]
    for row, read in zip(FIRST + SECOND, written):
        for field in FIELDS:
            expected = getattr(row, field)
            rounded = pytest.approx(expected, rel=1e-4) if isinstance(expected, float) else expected
            assert getattr(read, field) == rounded, field
    with (tmp_path / "new" / Results.CSV).open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == FIELDS
    assert [float(line["time"]) for line in table] == [row.time for row in written]
    assert {line["device"] for line in table} == {DEVICE}
    assert table[0]["threads"] == ""


def test_a_case_measured_again_replaces_its_rows_alone(tmp_path):
    Results(tmp_path, DEVICE).put(FIRST)
    Results(tmp_path, DEVICE).put(SECOND)
    Results(tmp_path, DEVICE).put([FIRST[0]])
    kept = results.load(tmp_path / Results.JSON)
    assert [(row.case, row.contender) for row in kept] == [(r.case, r.contender) for r in (*SECOND, FIRST[0])]


def test_two_runs_at_once_keep_the_rows_of_both(tmp_path):
    one, other = Results(tmp_path, DEVICE), Results(tmp_path, DEVICE)
    one.put(FIRST)
    other.put(SECOND)
    assert {row.case for row in results.load(tmp_path / Results.JSON)} == {FIRST[0].case, SECOND[0].case}
    (tmp_path / Results.JSON).unlink()  # as where both write at the same moment: the next row brings it back
    other.put([])
    assert results.load(tmp_path / Results.JSON) == other.rows == other.own


def test_a_report_is_of_the_digits_that_are_written(tmp_path):
    """Or one that is written again from the file says other numbers."""
    folder = Results(tmp_path, DEVICE)
    folder.put([dataclasses.replace(FIRST[0], over_eager=1.3649996)])
    assert folder.rows == results.load(tmp_path / Results.JSON)


def test_figures_stay_where_a_case_is_skipped(tmp_path):
    """Another environment lacks a package, or another program has the memory; a result that is wrong does replace."""
    skipped = dataclasses.replace(FIRST[0], contender="", status="skipped: scvi is not installed", time=None)
    Results(tmp_path, DEVICE).put([skipped])
    Results(tmp_path, DEVICE).put(FIRST)
    Results(tmp_path, DEVICE).put([skipped])
    assert [row.status for row in results.load(tmp_path / Results.JSON)] == ["ok"] * len(FIRST)
    wrong = dataclasses.replace(FIRST[0], status="wrong: z", time=None)
    Results(tmp_path, DEVICE).put([wrong])
    assert [row.status for row in results.load(tmp_path / Results.JSON)] == ["wrong: z"]


@pytest.mark.parametrize("writer", ["write_text", "csv"])
def test_a_write_that_fails_leaves_both_old_files(tmp_path, monkeypatch, writer):
    folder = Results(tmp_path, DEVICE)
    folder.put(FIRST)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if writer == "write_text":
        monkeypatch.setattr(Path, "write_text", full)
    else:
        monkeypatch.setattr(csv.DictWriter, "writerows", full)
    with pytest.raises(OSError, match="No space"):
        folder.put(SECOND)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_results_of_another_device_stay_apart(tmp_path):
    Results(tmp_path, DEVICE).put(FIRST)
    with pytest.raises(ValueError, match="holds results of Fake GPU 9000: expected a folder for those of Fake CPU"):
        Results(tmp_path, FAKE_CPU["device"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other", "rows": []}', '{"format": 1}', "not JSON"])
def test_a_file_that_is_something_else(tmp_path, text):
    (tmp_path / Results.JSON).write_text(text)
    with pytest.raises(ValueError, match="does not hold results of this release: expected what a benchmark wrote"):
        Results(tmp_path, DEVICE)


def test_a_row_with_an_unknown_field(tmp_path):
    content = {"format": results.FORMAT, "rows": [{"case": "a", "colour": "red"}]}
    (tmp_path / Results.JSON).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="does not hold results"):
        results.load(tmp_path / Results.JSON)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="expected a folder that can be written"):
        Results(tmp_path / "file" / "folder", DEVICE)


def test_names_of_rows():
    row = Row("a", "a", "1", 1, "bfloat16", "float32", "step", "eager", False, threads=2)
    assert (row.precision, row.on_threads) == ("bfloat16+float32", ", 2 threads")
    row = Row("a", "a", "1", 1, "float32", "float32", "step", "eager", False)
    assert (row.precision, row.on_threads) == ("float32", "")
    row.target_dtype = "int64"
    assert row.precision == "float32"


def test_a_case_of_which_one_contender_is_skipped_is_replaced(tmp_path):
    Results(tmp_path, DEVICE).put(FIRST)
    skipped = dataclasses.replace(FIRST[0], status="skipped: it ran out of memory", time=None)
    Results(tmp_path, DEVICE).put([skipped, *FIRST[1:]])
    kept = results.load(tmp_path / Results.JSON)
    assert [row.status for row in kept] == [skipped.status] + ["ok"] * len(FIRST[1:])


def test_only_figures_are_kept_from_a_case_that_is_skipped_now(tmp_path):
    for reason in ("wrong: z", "skipped: scvi is not installed", "skipped: it ran out of memory"):
        Results(tmp_path, DEVICE).put([dataclasses.replace(FIRST[0], status=reason, time=None)])
        assert [row.status for row in results.load(tmp_path / Results.JSON)] == [reason]
