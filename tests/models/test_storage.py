"""Saving and loading: what comes back is what was saved, and every bad file is named."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from vae_fast import Constant
from vae_fast.extras import MissingExtra
from vae_fast.models import VAE

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="files do not depend on the backend")


def mlp(**options):
    return VAE((4, 5), 2, (7, 6), **options)


def own_modules():
    return {"encoder": nn.Linear(4, 6), "decoder": nn.Linear(3, 4)}


@pytest.fixture
def saved(tmp_path):
    mlp().save(tmp_path / "model")
    return tmp_path / "model"


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "options", [{}, {"likelihood": "gaussian", "beta": 0.5}, {"likelihood": "mse"}], ids=["default", "gaussian", "mse"]
)
def test_an_mlp_comes_back(tmp_path, options):
    model = mlp(**options)
    model.save(tmp_path / "new" / "folder")
    with torch.device("meta"):  # as torch.set_default_device makes another the default
        loaded = VAE.load(tmp_path / "new" / "folder")
    x = torch.rand(3, 4, 5)
    torch.testing.assert_close(tuple(loaded.loss(x, seed=1)), tuple(model.loss(x, seed=1)), rtol=0, atol=0)
    assert (loaded.likelihood, loaded.beta) == (model.likelihood, model.beta)
    assert files(tmp_path / "new" / "folder") == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("beta", [torch.tensor(0.5), np.float32(0.5)], ids=["tensor", "numpy"])
def test_a_beta_that_was_annealed_is_saved_as_a_number(tmp_path, beta):
    model = mlp()
    model.beta = beta  # as `elbo_loss` takes it
    model.save(tmp_path)
    assert VAE.load(tmp_path).beta == 0.5
    model.beta = Constant(1.0)
    with pytest.raises(TypeError, match="^beta is Constant: expected a number$"):
        model.save(tmp_path)


def test_dtype_comes_back(tmp_path):
    model = mlp().double()
    model.save(tmp_path)
    torch.testing.assert_close(VAE.load(tmp_path).state_dict(), model.state_dict(), rtol=0, atol=0)


def test_path_may_be_a_string(tmp_path):
    mlp().save(str(tmp_path))
    assert isinstance(VAE.load(str(tmp_path)), VAE)


def test_saving_again_replaces(saved):
    model = mlp(beta=3)
    model.save(saved)
    assert VAE.load(saved).beta == 3
    torch.testing.assert_close(VAE.load(saved).state_dict(), model.state_dict(), rtol=0, atol=0)


def test_both_files_have_the_permissions_of_a_new_file(saved):
    (saved / "new").touch()
    wanted = (saved / "new").stat().st_mode
    assert {(saved / name).stat().st_mode for name in ("config.json", "model.safetensors")} == {wanted}


def test_own_modules_come_back_into_modules_of_the_same_kind(tmp_path):
    model = VAE(**own_modules(), latent_dim=3)
    model.save(tmp_path)
    loaded = VAE.load(tmp_path, **own_modules())
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert loaded.latent_shape == (3,)


def test_tied_weights_come_back(tmp_path):
    encoder = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6))
    tied = nn.Sequential(nn.Linear(3, 4), encoder[0])
    VAE(encoder=encoder, decoder=tied).save(tmp_path)
    again = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6))
    loaded = VAE.load(tmp_path, encoder=again, decoder=nn.Sequential(nn.Linear(3, 4), again[0]))
    torch.testing.assert_close(loaded.encoder[0].weight, encoder[0].weight, rtol=0, atol=0)


def test_own_modules_must_be_given_to_load(tmp_path):
    VAE(**own_modules()).save(tmp_path)
    message = r"its author's own modules, whose code is not saved: expected VAE.load\(path, encoder=..., decoder=...\)"
    for modules in ({}, {"encoder": nn.Linear(4, 6)}):
        with pytest.raises(ValueError, match=message):
            VAE.load(tmp_path, **modules)


def test_own_modules_of_another_kind(tmp_path):
    VAE(**own_modules()).save(tmp_path)
    with pytest.raises(
        ValueError, match=r"model.safetensors does not fit the model: [\s\S]*size mismatch for encoder.weight"
    ):
        VAE.load(tmp_path, encoder=nn.Linear(5, 6), decoder=nn.Linear(3, 4))
    with pytest.raises(
        ValueError, match=r"model.safetensors does not fit the model: [\s\S]*Missing key.*encoder.0.bias"
    ):
        VAE.load(tmp_path, encoder=nn.Sequential(nn.Linear(4, 6)), decoder=nn.Linear(3, 4))


def test_an_mlp_takes_no_modules(saved):
    with pytest.raises(ValueError, match="holds a built-in MLP: expected neither"):
        VAE.load(saved, **own_modules())


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="nowhere: expected a folder that VAE.save wrote, but config.json cannot"
    ):
        VAE.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_missing_or_a_folder(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"but {name} cannot be read"):
        VAE.load(saved)
    (saved / name).mkdir()
    with pytest.raises(IsADirectoryError, match=f"but {name} cannot be read"):
        VAE.load(saved)


def test_a_path_that_is_a_file(saved):
    with pytest.raises(NotADirectoryError, match="expected a folder that VAE.save wrote"):
        VAE.load(saved / "config.json")


BAD_CONFIGS = [
    (b"{", "config.json is not valid JSON"),
    (b"\xff\xfe\x00", "config.json is not valid JSON"),
    (b"[]", 'config.json does not say "format": "vae_fast.VAE"'),
    (b'{"model_type": "bert"}', 'config.json does not say "format": "vae_fast.VAE"'),
    (b'{"format": "vae_fast.VAE", "version": 99}', "config.json has version 99: this release reads version 1"),
    (b'{"format": "vae_fast.VAE"}', "config.json has version None"),
]


@pytest.mark.parametrize(("content", "message"), BAD_CONFIGS)
def test_a_foreign_or_broken_config(saved, content, message):
    (saved / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        VAE.load(saved)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("latent_dim", -1, "latent_dim is -1"),
        ("latent_dim", 10**15, "memory: you tried to allocate"),
        ("likelihood", "foreign", "likelihood is 'foreign'"),
        ("beta", "high", "beta is str"),
        ("dropout", 0.5, "dropout"),
        ("dtype", "float31", "float31"),
        ("dtype", "int64", "dtype"),
        ("dtype", 7, "dtype|attribute name must be string"),
    ],
)
def test_a_config_that_does_not_describe_a_vae(saved, key, value, message):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ValueError, match=f"config.json does not describe a VAE: .*({message})"):
        VAE.load(saved)


@pytest.mark.parametrize("keep", [0, 4, 100, -1], ids=["empty", "in its header's size", "in its header", "in its data"])
def test_truncated_weights(saved, keep):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ValueError, match="model.safetensors is not a whole safetensors file"):
        VAE.load(saved)


def test_weights_that_are_a_pickle(saved):
    torch.save({"a": torch.zeros(2)}, saved / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors is not a whole safetensors file"):
        VAE.load(saved)


def test_weights_of_something_else(saved):
    safetensors.torch.save_file({"a": torch.zeros(2)}, saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors does not fit the model: [\s\S]*Unexpected key.*\"a\""):
        VAE.load(saved)


def test_saving_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="path is .*file/model: expected a folder that can be written"):
        mlp().save(tmp_path / "file" / "model")
    with pytest.raises(FileExistsError, match="path is .*file: expected a folder that can be written"):
        mlp().save(tmp_path / "file")


def test_saving_without_permission(tmp_path, monkeypatch):
    def deny(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", deny)
    with pytest.raises(
        PermissionError, match=r"path is .*: expected a folder that can be written \(Permission denied\)"
    ):
        mlp().save(tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_failure_while_saving_leaves_the_old_files_and_no_others(saved, error, monkeypatch):
    before = {name: (saved / name).read_bytes() for name in files(saved)}

    def breaks_off(model, path):
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(safetensors.torch, "save_model", breaks_off)
    with pytest.raises(type(error)):
        mlp(beta=9).save(saved)
    assert {name: (saved / name).read_bytes() for name in files(saved)} == before


def test_two_may_save_into_one_folder_at_once(saved, monkeypatch):
    """Of one process, or of two that have one number, as in containers: either's files are whole."""
    first, second, save_model = mlp(), mlp(), safetensors.torch.save_model

    def interleaved(model, path):
        if model is first:
            second.save(saved)
        save_model(model, path)

    monkeypatch.setattr(safetensors.torch, "save_model", interleaved)
    first.save(saved)
    assert files(saved) == ["config.json", "model.safetensors"]
    torch.testing.assert_close(VAE.load(saved).state_dict(), first.state_dict(), rtol=0, atol=0)


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(MissingExtra, match=r'safetensors.* is not installed: pip install -e "\.\[app\]"$'):
        mlp().save(tmp_path)


def test_weights_that_cannot_be_written_are_an_os_error(tmp_path, monkeypatch):
    """safetensors has an error of its own for a full disk."""

    def full(model, path):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_model", full)
    with pytest.raises(OSError, match="the weights could not be written: I/O error: No space left on device"):
        mlp().save(tmp_path)
    assert list(tmp_path.iterdir()) == []
