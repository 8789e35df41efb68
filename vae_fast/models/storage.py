"""A model in a folder: written whole or not at all, and read with errors that say which file is wrong and how."""

import errno
import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from vae_fast.extras import import_extra
from vae_fast.files import atomic_path, writable_folder

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT = "vae_fast.VAE"
VERSION = 1


def save(model: nn.Module, config: dict[str, Any], path: str | os.PathLike) -> None:
    """Write the weights of `model` and `config` into the folder `path`: both whole, or neither."""
    safetensors = import_extra("safetensors.torch")
    folder = writable_folder(path)
    with atomic_path(folder / CONFIG) as config_file, atomic_path(folder / WEIGHTS) as weights_file:
        config_file.write_text(json.dumps({"format": FORMAT, "version": VERSION, **config}, indent=2) + "\n")
        try:
            safetensors.save_model(model, str(weights_file))
        except import_extra("safetensors").SafetensorError as error:  # of a full disk, say
            raise OSError(errno.EIO, f"the weights could not be written: {error}", str(folder / WEIGHTS)) from error
        weights_file.chmod(config_file.stat().st_mode)  # safetensors lets the owner alone read what it writes


def load_config(path: str | os.PathLike) -> dict[str, Any]:
    """Read the config that `save` wrote into the folder `path`."""
    file = Path(path) / CONFIG
    try:
        config = json.loads(_readable(file).read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{file} is not valid JSON ({error}): expected the file that VAE.save wrote") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f'{file} does not say "format": "{FORMAT}": expected the file that VAE.save wrote')
    if config.get("version") != VERSION:
        raise ValueError(f"{file} has version {config.get('version')}: this release reads version {VERSION}")
    return {key: value for key, value in config.items() if key not in ("format", "version")}


def load_weights(model: nn.Module, path: str | os.PathLike) -> None:
    """Copy the weights that `save` wrote into the folder `path` into `model`, on the devices it is on."""
    safetensors = import_extra("safetensors.torch")
    file = _readable(Path(path) / WEIGHTS)
    try:
        safetensors.load_model(model, file)
    except import_extra("safetensors").SafetensorError as error:
        raise ValueError(f"{file} is not a whole safetensors file ({error}): expected VAE.save's") from error
    except RuntimeError as error:
        raise ValueError(f"{file} does not fit the model: {error}") from error


def _readable(file: Path) -> Path:
    """`file`, once it is known to be one that can be opened."""
    try:
        file.open("rb").close()
    except OSError as error:
        message = f"path is {file.parent}: expected a folder that VAE.save wrote, but {file.name} cannot be read"
        raise OSError(error.errno, f"{message} ({error.strerror})") from error
    return file
