"""What `vae-fast train` hands on: its options, the images that are tested on, and errors of the disk."""

import errno
import io
import os
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import vae_fast.app
from vae_fast import VAE
from vae_fast.app import cli
from vae_fast.app.data import digits, split
from vae_fast.files import atomic_path

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="commands are the same on any backend"
)


HISTORY = [{"test_negative_elbo": 1.0}]


def run(*arguments):
    return CliRunner().invoke(cli.app, ["train", *map(str, arguments), "--device", "cpu"])


def test_options_reach_the_training_and_the_comparison(tmp_path, monkeypatch):
    trained, compared = [], []
    monkeypatch.setattr(cli, "fit", lambda *given, **options: trained.append((*given, options)) or HISTORY)
    monkeypatch.setattr(cli, "_write", lambda *_: None)
    monkeypatch.setattr(cli, "compare", lambda *given: compared.append(given[2:]) or [])
    options = {"epochs": 7, "batch-size": 5, "learning-rate": 0.25, "seed": 3, "latent-dim": 2, "hidden-dim": 4}
    given = [text for name, value in options.items() for text in (f"--{name}", value)]
    result = run(*given, "--beta", 0.5, "--likelihood", "mse", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    ((model, data, given),) = trained
    assert torch.equal(data, digits().train)
    assert torch.equal(given.pop("test_data"), digits().test)
    assert given == {"epochs": 7, "batch_size": 5, "learning_rate": 0.25, "seed": 3, "device": "cpu"}
    torch.manual_seed(3)
    torch.testing.assert_close(model.state_dict(), VAE((8, 8), 2, (4,)).state_dict(), rtol=0, atol=0)
    assert (model.beta, model.likelihood) == (0.5, "mse")
    assert compared == [(5, 0.25)]


def test_images_that_are_tested_on_are_checked_too(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "fit", lambda *_, **__: pytest.fail("trained"))
    images = np.zeros((10, 3, 3))
    images[int(split(torch.arange(10)).test[0])] = 16
    np.save(tmp_path / "a.npy", images)
    result = run("--data", tmp_path / "a.npy", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "'--data': test data is 16 at [0, 0, 0]: " in result.output


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOENT])
def test_an_error_of_the_disk_is_one_line_and_any_other_is_raised(number, monkeypatch):
    def app():
        raise OSError(number, "why", "curves.png")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(FileNotFoundError if number == errno.ENOENT else SystemExit, match="why: 'curves.png'$"):
        vae_fast.app.main()


def test_a_write_that_fails_names_the_file(tmp_path):
    """The system itself names one only where a file is opened."""
    with pytest.raises(OSError, match="No space") as raised, atomic_path(tmp_path / "metrics.csv"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename == str(tmp_path / "metrics.csv")


def test_training_that_diverges_writes_nothing(tmp_path):
    result = run("--learning-rate", "1e30", "--epochs", 1, "--output", tmp_path)
    assert result.exit_code == 1
    assert "training diverged: the negative ELBO is nan, and nothing was written\n" in result.output
    assert "learning_rate is 1e+30, beta 1.0: try a smaller --learning-rate\n" in result.output
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_writing_says_what_is_missing(tmp_path, monkeypatch):
    def write(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "fit", lambda *_, **__: HISTORY)
    monkeypatch.setattr(cli, "_write", write)
    result = run("--output", tmp_path)
    said = f"interrupted: some files of this training are missing in {tmp_path}/\n"
    assert (result.exit_code, result.output) == (130, said)


@pytest.mark.parametrize("size", [10**15, 10**17, 10**30])
@pytest.mark.parametrize("option", ["--latent-dim", "--hidden-dim"])
def test_a_model_that_is_too_large(option, size, tmp_path):
    result = run(option, size, "--output", tmp_path)
    assert result.exit_code == 2
    assert f"{size}" in result.output
    assert ": expected a model that fits in memory\n" in result.output


def test_a_batch_of_more_than_there_is_is_all_of_it(tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(cli, "fit", lambda *_, **options: compared.append(options["batch_size"]) or HISTORY)
    monkeypatch.setattr(cli, "_write", lambda *_: None)
    monkeypatch.setattr(cli, "compare", lambda *given: compared.append(given[2]) or [])
    result = run("--batch-size", 10**30, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert compared == [len(digits().train)] * 2


def test_what_a_terminal_cannot_show_ends_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    monkeypatch.setattr(cli, "app", lambda: print("training \u2026"))
    vae_fast.app.main()
    sys.stdout.seek(0)
    assert sys.stdout.read() == "training ?\n"
