"""`vae-fast bench`: one real run of the smallest case, and what it says of bad input."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from tests.benchmarks.bench_rows import FAKE_CPU, fake_rows
from vae_fast.app import bench, cli
from vae_fast.benchmarks import measure, memory, report, results, timing
from vae_fast.benchmarks.formulas import OPS

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="speed is that of compiled code")

CASE = "kl/1x32/float32"


def run(*arguments):
    return CliRunner().invoke(cli.app, ["bench", *map(str, arguments)])


@pytest.fixture(autouse=True)
def _little_effort(monkeypatch):
    monkeypatch.setattr(timing, "QUICK", timing.Effort(0.0, 3, 3))
    monkeypatch.setattr(memory, "COPY_BYTES_CPU", 2**20)


def test_a_quick_run(tmp_path):
    result = run("--quick", "--case", CASE, "--device", "cpu", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert f"[1/1] {CASE}: vae_fast, 1 thread " in result.output
    assert "as fast as that" in result.output
    assert f"written to {tmp_path}/report.md" in result.output
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "bandwidth.png", "host.png", "memory.png", "report.md", "results.csv", "results.json", "speedup.png"
    ]  # fmt: skip
    rows = results.load(tmp_path / "results.json")
    assert {row.contender for row in rows} == {"eager", "vae_fast"}
    assert all(row.quick and row.kind == "cpu" and row.device.endswith("cores") for row in rows)


def test_the_folder_has_the_name_of_the_device(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("--quick", "--case", CASE, "--device", "cpu")
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "benchmarks" / "results").iterdir()
    assert folder.name.startswith("cpu-")
    assert folder.name.endswith("-quick")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--case", "nope"], "'--case': case is 'nope': expected one of 'sample_kl', "),
        (["--device", "cuda:99"], "'--device': device is 'cuda:99': PyTorch finds "),
        (["--device", "tpu"], "'--device': device is 'tpu': expected 'auto', 'cpu', 'cuda' or 'cuda:<index>'"),
        (["--nonsense"], "No such option"),
    ],
)
def test_bad_options(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("--quick", *options)
    assert result.exit_code == 2
    assert message in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none():
    result = run("--quick", "--device", "cuda")
    assert result.exit_code == 2
    assert "'--device': device is 'cuda': PyTorch finds 0 CUDA devices here" in result.output


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TRITON_INTERPRET", "1", "it is set: Triton's interpreter would be timed"),
        ("VAE_FAST_BACKEND", "nope", "VAE_FAST_BACKEND is 'nope': expected one of"),
    ],
)
def test_what_would_time_something_else(name, value, message, tmp_path):
    command = [sys.executable, "-m", "vae_fast", "bench", "--quick", "--case", CASE, "--output", tmp_path / "new"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, name: value})
    assert result.returncode == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "new").exists()


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    result = run("--quick", "--case", CASE, "--output", tmp_path / "file" / "folder")
    assert result.exit_code == 2
    folder = tmp_path / "file" / "folder"
    message = f"the folder is {folder}: expected a folder that can be written (Not a directory)"
    assert f"'--output': {message}" in result.output


def test_an_output_that_holds_something_else(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    result = run("--quick", "--case", CASE, "--output", tmp_path)
    assert result.exit_code == 2
    assert "does not hold results of this release" in result.output
    assert (tmp_path / "results.json").read_text() == "{}"


def test_an_output_whose_results_cannot_be_read(tmp_path):
    (tmp_path / "results.json").mkdir()
    result = run("--quick", "--case", CASE, "--output", tmp_path)
    assert result.exit_code == 2
    assert f"'--output': {tmp_path}/results.json: Is a directory\n" in result.output


def test_ctrl_c_keeps_what_was_measured(tmp_path, monkeypatch):
    def say(line):
        if line.startswith("[2/3]"):
            raise KeyboardInterrupt
        bench.console.print(line, markup=False, soft_wrap=True)

    monkeypatch.setattr(bench, "say", say)
    options = [f for op in ("kl", "mse", "gaussian") for f in ("--case", f"{op}/1x32/float32")]
    result = run("--quick", *options, "--device", "cpu", "--output", tmp_path)
    assert result.exit_code == bench.INTERRUPTED
    assert "interrupted: what was measured is kept" in result.output
    assert {row.op for row in results.load(tmp_path / "results.json")} == {"kl", "mse"}
    assert (tmp_path / "report.md").exists()


def test_a_case_that_does_not_fit_is_a_line_and_no_crash(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "CPU_ELEMENTS", 31)
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**10)
    result = run("--quick", "--case", CASE, "--device", "cpu", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert f"{CASE}: skipped: it takes about " in result.output


def doubled(op):
    return lambda leaves, target, noise: tuple(2 * output for output in op.eager(leaves, target, noise))


def broken(leaves, target, noise):
    raise RuntimeError("no kernel")


@pytest.mark.parametrize("fused", [doubled(OPS["kl"]), broken], ids=["wrong", "failed"])
def test_what_is_wrong_with_ours_is_an_error_of_the_run_that_found_it(fused, tmp_path, monkeypatch):
    options = ["--quick", "--device", "cpu", "--output", tmp_path, "--case"]
    with monkeypatch.context() as patched:
        patched.setitem(OPS, "kl", dataclasses.replace(OPS["kl"], fused=fused))
        result = run(*options, CASE)
    assert result.exit_code == 1, result.output
    assert f"vae_fast is wrong, or failed: {CASE}\n" in result.output
    assert (tmp_path / "report.md").exists()
    assert run(*options, "mse/1x32/float32").exit_code == 0  # of a later run it is none, though its row is still there


def test_what_is_wrong_with_eager_is_none(tmp_path, monkeypatch):
    mse = OPS["mse"]
    monkeypatch.setitem(OPS, "mse", dataclasses.replace(mse, eager=doubled(mse), oracle=mse.oracle or mse.eager))
    result = run("--quick", "--device", "cpu", "--output", tmp_path, "--case", "mse/1x32/float32")
    assert result.exit_code == 0, result.output
    assert "mse/1x32/float32, eager: wrong: " in result.output


@pytest.mark.parametrize(
    ("options", "interrupted", "counted"),
    [((), False, True), (("--quick",), False, False), (("--case", CASE), False, False), ((), True, False)],
)
def test_traffic_is_counted_after_a_whole_run_alone(options, interrupted, counted, tmp_path, monkeypatch):
    """It takes minutes, and is the same each time."""
    asked = []

    def measured(chosen, device, kept, say, **_):
        kept.put(fake_rows(FAKE_CPU, ["kl"]))
        if interrupted:
            raise KeyboardInterrupt
        return kept.rows

    monkeypatch.setattr(measure, "run", measured)
    monkeypatch.setattr(report, "write", lambda rows, folder, traffic: asked.append(traffic))
    run(*options, "--device", "cpu", "--output", tmp_path)
    assert asked == [counted]


def test_a_case_that_is_named_is_measured_at_any_size(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "CPU_ELEMENTS", 31)
    result = run("--quick", "--case", CASE, "--device", "cpu", "--output", tmp_path)
    assert f"[1/1] {CASE}: vae_fast, 1 thread " in result.output


@pytest.mark.parametrize(("has_triton", "why"), [(True, "it is 'eager'"), (False, "triton is not installed")])
def test_a_gpu_without_the_kernels(has_triton, why, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "trainable_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch, "empty", lambda size, device: None)
    monkeypatch.setattr(bench.backend, "choose", lambda tensor: "eager")
    monkeypatch.setattr(bench.backend, "HAS_TRITON", has_triton)
    result = run("--quick", "--output", tmp_path / "new")
    assert result.exit_code == 2
    assert f"'VAE_FAST_BACKEND': {why}" in result.output
    assert "vae_fast would be timed without its kernels" in result.output
