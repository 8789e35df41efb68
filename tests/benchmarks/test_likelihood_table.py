"""The table of all likelihoods."""

import pytest
import torch

from tests.benchmarks.bench_rows import FAKE_CPU, FAKE_GPU, fake_rows
from vae_fast import checks
from vae_fast.benchmarks import likelihood_table
from vae_fast.benchmarks.formulas import OPS
from vae_fast.benchmarks.results import Results, load
from vae_fast.kernels import categorical
from vae_fast.likelihoods import LIKELIHOODS


def put(folder, machine, date, ops=None):
    rows = fake_rows(machine, ops, threads=(1,))
    for row in rows:
        row.date = date
    Results(folder, machine["device"]).put(rows)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(likelihood_table, "LIKELIHOODS", {name: LIKELIHOODS[name] for name in ("mse", "categorical")})


@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if name in OPS])
def test_errors_on_the_cpu_are_those_of_the_dtype(name):
    allowed = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3, torch.float64: 1e-13}
    for dtype in checks.FLOATS:
        assert likelihood_table.error(name, dtype, "eager") < allowed[dtype]


def test_an_error_is_seen(monkeypatch):
    loss = likelihood_table.reconstruction_loss
    monkeypatch.setattr(
        likelihood_table, "reconstruction_loss", lambda *args, **options: 1.001 * loss(*args, **options)
    )
    assert likelihood_table.error("mse", torch.float32, "eager") == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.interpreter_only
def test_what_is_measured_in_the_interpreter(few):
    found = likelihood_table._measure_here()
    assert list(found) == ["mse", "categorical"]
    for measured in found.values():
        assert len(measured["errors"]) == 4
        assert all(len(pair) == 2 for pair in measured["errors"])
        assert 1 < measured["moved"] < 1.01  # the partial sums


def test_the_table(monkeypatch, tmp_path):
    monkeypatch.setattr(
        likelihood_table,
        "measured",
        lambda: {
            "mse": {"errors": [[1e-7, 2e-7]] * 4, "moved": 1.0004},
            "l1": {"errors": [[0, 0]] * 4, "moved": 1},
            "categorical": {"errors": [[0, 0]] * 4, "moved": 1},
        },
    )
    rows = fake_rows(FAKE_CPU, ops=("mse", "l1"), threads=(1,))
    for row in rows:
        row.over_eager = {"eager": None, "vae_fast": 1.5}.get(row.contender, 9.0) if row.op == "mse" else None
        row.status = "wrong: off" if (row.op, row.contender) == ("l1", "eager") else row.status
    results = Results(tmp_path, FAKE_CPU["device"])
    results.put(rows)
    lines = likelihood_table.table(tmp_path).splitlines()
    assert lines[0].startswith("| likelihood | float32 kernel | float32 eager | bfloat16 kernel |")
    assert lines[2].startswith("| mse | 1e-07 | 2e-07 |")
    assert lines[2].endswith("| 1.000 | 12 | 1.50 to 1.50 |")
    assert lines[3].endswith("| eager is wrong |")
    assert lines[4].endswith(f"| 1.000 | {categorical.ISSUED.both} | not measured |")
    assert lines[-1].endswith(f"From `make bench` on {FAKE_CPU['device']}.")
    monkeypatch.setattr(likelihood_table, "newest", lambda: tmp_path)
    assert likelihood_table.table().splitlines() == lines
    monkeypatch.setattr(likelihood_table, "newest", lambda: None)
    assert "1.50" not in likelihood_table.table()
    assert likelihood_table.table().endswith("From `make bench`, which has no results here.")


def test_the_newest_results_of_all_likelihoods_and_first_of_a_gpu(tmp_path):
    assert likelihood_table.newest(tmp_path) is None
    put(tmp_path / "some", FAKE_GPU, "2026-01-04", ops=("mse",))
    assert likelihood_table.newest(tmp_path) is None
    for name, machine, date in (("old", FAKE_CPU, "2026-01-01"), ("new", FAKE_CPU, "2026-01-03")):
        put(tmp_path / name, machine, date)
    assert likelihood_table.newest(tmp_path) == tmp_path / "new"
    put(tmp_path / "gpu", FAKE_GPU, "2026-01-02")
    assert likelihood_table.newest(tmp_path) == tmp_path / "gpu"


def test_the_committed_results_have_a_ratio_to_eager_of_every_likelihood():
    """Or say that eager is wrong."""
    rows = load(likelihood_table.newest() / Results.JSON)
    assert set(LIKELIHOODS) <= set(likelihood_table._speeds(rows))


def test_speeds_are_of_one_thread():
    rows = fake_rows(FAKE_CPU, ["mse"], threads=(1, 2))
    for row in rows:
        row.over_eager = float(row.threads)
    assert likelihood_table._speeds(rows) == {"mse": "1.00 to 1.00"}


def test_what_goes_wrong_in_the_interpreter_is_one_message(monkeypatch, capsys):
    def ask(*arguments, what):
        raise RuntimeError(f"{what} in the interpreter failed: no triton")

    monkeypatch.setattr(likelihood_table.interpreter, "ask", ask)
    with pytest.raises(SystemExit) as ended:
        likelihood_table.main([])
    assert ended.value.code == 2
    assert "in the interpreter failed: no triton" in capsys.readouterr().err
