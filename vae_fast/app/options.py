"""What the commands share: values of options, checked, and the terminal."""

from collections.abc import Callable
from typing import Any

import torch
import typer
from rich.console import Console

from vae_fast.app.training import resolve_device
from vae_fast.ops import backend

BACKEND = "'VAE_FAST_BACKEND'"
INTERRUPTED = 130  # what a shell reports after Ctrl-C
WIDTH = 190  # of a table where there is no terminal
console = Console(highlight=False)


def say(line: str) -> None:
    """A line as it is, paths in it too: neither broken into several nor read as Rich's markup."""
    console.print(line, markup=False, soft_wrap=True)


def argument(option: str, function: Callable, *values: Any) -> Any:
    """Call `function`; what it finds wrong is said of `option`."""
    try:
        return function(*values)
    except (OSError, TypeError, ValueError, MemoryError) as error:
        message = f"{_file(error)}{error.strerror}" if isinstance(error, OSError) else str(error)
        raise typer.BadParameter(message, param_hint=f"'{option}'") from error


def _file(error: OSError) -> str:
    """The file that the system's own errors are of; ours have it in their message."""
    return f"{error.filename}: " if error.filename else ""


def trainable_device(name: str) -> torch.device:
    """The device of --device, whose tensors the chosen backend takes."""
    device = argument("--device", resolve_device, name)
    try:
        backend.choose(torch.empty(0, device=device))
    except RuntimeError as error:
        raise typer.BadParameter(str(error), param_hint=BACKEND) from error
    return device
