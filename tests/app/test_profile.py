"""`vae-fast profile`: where the time of training goes, the trace, and bad input."""

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch.profiler import record_function
from typer.testing import CliRunner

from vae_fast import VAE
from vae_fast.app import cli, profile
from vae_fast.ops.backend import interpreting

pytestmark = pytest.mark.skipif(interpreting(), reason="commands are the same on any backend")


def run(*arguments):
    return CliRunner().invoke(cli.app, ["profile", *map(str, arguments)])


def small():
    return VAE((6, 5), latent_dim=2, hidden_dims=(8,))


def test_digits_and_a_new_model_by_default(tmp_path):
    result = run("--output", tmp_path / "new", "--steps", 3, "--device", "cpu")
    assert result.exit_code == 0, result.output
    for part in profile.NOTES:
        assert f"  {part} " in result.output
    assert "samples/s without the profiler, over 3 steps of 128" in result.output
    assert sum(map(int, re.findall(r" (\d+)% ", result.output))) == pytest.approx(100, abs=3)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["trace.json"]


def test_a_saved_model_on_ones_own_images(tmp_path):
    small().save(tmp_path / "model")
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((7, 6, 5)))
    folder = tmp_path / "trace [b]" / "[/b]"  # no markup of Rich's
    options = ("--model", tmp_path / "model", "--data", tmp_path / "images.npy", "--output", folder)
    result = run(*options, "--steps", 2, "--batch-size", 100)
    assert result.exit_code == 0, result.output
    assert f"written to {folder / 'trace.json'}: open" in result.output
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"vae_fast::gaussian_forward", "vae_fast::elbo_forward", "vae_fast: data"} <= names
    assert "over 2 steps of 7" in result.output


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_saved_model_of_another_dtype(dtype, tmp_path):
    VAE((8, 8), latent_dim=2).to(dtype).save(tmp_path)
    result = run("--model", tmp_path, "--output", tmp_path, "--steps", 2, "--device", "cpu")
    assert result.exit_code == 0, result.output


def test_the_parts_are_told_apart_and_add_up(monkeypatch):
    def slow(data, batch_size, device):
        while True:
            with record_function(profile.DATA):
                time.sleep(0.02)
            yield data[:batch_size]

    monkeypatch.setattr(profile, "_batches", slow)
    start = time.perf_counter()
    found = profile.profile_training(small(), torch.rand(16, 6, 5), steps=4, batch_size=8)
    assert 0 < found.samples_per_second < 8 / 0.02
    assert 20 <= found.milliseconds[profile.WAITING] < 1e3 * (time.perf_counter() - start) / 4
    assert all(found.milliseconds[part] > 0 for part in profile.NOTES)


@pytest.mark.cuda_only
def test_the_parts_on_a_gpu():
    found = profile.profile_training(small().cuda(), torch.rand(16, 6, 5), steps=4, batch_size=8)
    assert all(found.milliseconds[part] > 0 for part in profile.NOTES)
    assert found.milliseconds[profile.OURS] < found.milliseconds[profile.HOST]  # of so small a model


BAD_OPTIONS = [
    (["--steps", "0"], "'--steps': steps is 0: expected 1 or more"),
    (["--steps", "-1"], "'--steps': steps is -1: expected 1 or more"),
    (["--batch-size", "0"], "'--batch-size': batch_size is 0: expected 1 or more"),
    (["--device", "tpu"], "'--device': device is 'tpu': expected 'auto', 'cpu', 'cuda' or 'cuda:<index>'"),
    (["--device", "cuda:99"], "'--device': device is 'cuda:99': PyTorch finds "),
    (["--data", "nothing.npy"], "'--data': nothing.npy cannot be read: No such file or directory"),
    (["--model", "nowhere"], "'--model': path is nowhere: expected a folder that VAE.save wrote"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=[" ".join(options) for options, _ in BAD_OPTIONS])
def test_bad_options(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*options)
    assert result.exit_code == 2
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


def test_images_that_the_model_cannot_take(tmp_path):
    small().save(tmp_path / "model")
    np.save(tmp_path / "images.npy", np.zeros((7, 4, 4)))
    result = run("--model", tmp_path / "model", "--data", tmp_path / "images.npy", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "'--data': x has shape [1, 4, 4]: expected [B, 6, 5]" in result.output
    np.save(tmp_path / "images.npy", np.full((7, 6, 5), 16.0))
    result = run("--model", tmp_path / "model", "--data", tmp_path / "images.npy", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert (
        "'--data': data is 16 at [0, 0, 0]: expected values that are in [0, 1], for likelihood 'bernoulli'"
        in result.output
    )
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_found_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(profile, "profile_training", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "file").touch()
    result = run("--output", tmp_path / "file" / "run")
    assert result.exit_code == 2
    assert "'--output': " in result.output
    assert "expected a folder that can be written (Not a directory)" in result.output


def test_a_trace_that_pytorch_could_not_write(tmp_path, monkeypatch):
    """It says nothing of a full disk, and leaves its own temporary file."""

    def export(self, path):
        Path(f"{path}.tmp").touch()

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", export)
    result = run("--steps", "1", "--output", tmp_path)
    assert isinstance(result.exception, OSError)
    assert "the trace could not be written" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_trace_stays_where_a_new_one_breaks_off(tmp_path, monkeypatch):
    def export(self, path):
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", export)
    (tmp_path / "trace.json").write_text("whole")
    assert run("--steps", "1", "--output", tmp_path).exit_code == 1
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"trace.json": "whole"}


@pytest.mark.cuda_only
def test_data_from_the_host_do_not_wait_for_the_step_before():
    model = VAE((1024,), 64, (8192, 8192)).cuda()
    found = profile.profile_training(model, torch.rand(8192, 1024), steps=4, batch_size=8192)
    assert found.milliseconds[profile.WAITING] < found.milliseconds[profile.NETWORK] / 2


def test_numbers_are_of_the_steps_and_samples_that_were_taken(monkeypatch):
    taken = []
    monkeypatch.setattr(profile, "_train", lambda *arguments, **options: taken.append((arguments[3], options)) or 2.0)
    others = [part for part in profile.NOTES if part != profile.HOST]
    monkeypatch.setattr(profile, "_parts", lambda events, on_gpu: dict.fromkeys(others, 1e5))
    found = profile.profile_training(small(), torch.rand(10, 6, 5), steps=30, batch_size=64)
    assert taken[:2] == [(profile.WARM_UP, {}), (30, {})]
    assert taken[2:] == [(profile.WARM_UP, {"apart": True}), (profile.TRACED, {"apart": True})]
    assert found.samples_per_second == 30 * 10 / 2.0
    assert sum(found.milliseconds.values()) == pytest.approx(2000 / profile.TRACED)
    assert found.milliseconds[profile.HOST] == pytest.approx(1600 / profile.TRACED)


def test_the_noise_is_ours_and_the_traced_steps_are_all_that_counts(monkeypatch):
    found, parts = [], profile._parts
    monkeypatch.setattr(profile, "_parts", lambda events, on_gpu: found.extend(events) or parts(events, on_gpu))
    profile.profile_training(small(), torch.rand(16, 6, 5), steps=3, batch_size=8)
    assert [profile._part(event) for event in found if event.name == "aten::normal_"] == [profile.OURS] * 3
    assert sum(event.name == profile.DATA for event in found) == 3


def test_the_profiler_starts_before_the_steps_that_it_records(monkeypatch):
    trained = []

    def train(model, optimizer, batches, steps, apart=False):
        trained.append((steps, apart, torch.autograd.profiler._is_profiler_enabled))
        return 1.0

    monkeypatch.setattr(profile, "_train", train)
    profile.profile_training(small(), torch.rand(16, 6, 5), steps=3, batch_size=8)
    assert trained[-2:] == [(profile.WARM_UP, True, False), (3, True, True)]


@pytest.mark.parametrize("apart", [False, True])
def test_steps_end_when_their_own_gpu_is_done(apart, monkeypatch):
    """Which need not be the current one."""
    events, device = [], torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "synchronize", events.append)
    model = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=device)]), loss=MagicMock())
    profile._train(model, MagicMock(), iter("xy"), 2, apart)
    assert events == [device] * (4 if apart else 2)


def test_each_number_stands_beside_its_part(capsys):
    milliseconds = dict(zip(profile.NOTES, (1.0, 2.0, 0.5, 6.0, 0.5)))
    profile._show(profile.Profile(1234.0, milliseconds), 3, 8, torch.device("cpu"))
    said = " ".join(capsys.readouterr().out.split())
    assert " our ops 1.000 10% noise, " in said
    assert " host 6.000 60% Python and autograd, " in said
    assert said.endswith("1,234 samples/s without the profiler, over 3 steps of 8")


def test_the_outermost_op_has_the_time():
    def event(name, parent=None):
        return SimpleNamespace(name=name, cpu_parent=parent)

    assert profile._part(event("aten::exp", event("vae_fast::forward"))) == profile.OURS
    assert profile._part(event("aten::add_", event("Optimizer.step#Adam.step"))) == profile.OPTIMISER
    assert profile._part(event("vae_fast::f", event("aten::linear", event("Python")))) == profile.NETWORK
