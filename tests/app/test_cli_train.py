"""What `vae-fast train` hands on: its options, the images that are tested on, and errors of the disk."""

import errno
import os

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import vae_fast.app
from vae_fast import VAE
from vae_fast.app import cli
from vae_fast.app.data import digits, split

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="commands are the same on any backend"
)


def run(*arguments):
    return CliRunner().invoke(cli.app, ["train", *map(str, arguments), "--device", "cpu"])


def test_options_reach_the_training_and_the_comparison(tmp_path, monkeypatch):
    trained, compared = [], []
    monkeypatch.setattr(cli, "fit", lambda *given, **options: trained.append((*given, options)) or [{}])
    monkeypatch.setattr(cli, "_write", lambda model, history, *_: history[0].update(test_negative_elbo=1.0))
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
