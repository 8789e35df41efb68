"""The packages of the extra `app`, imported where they are needed."""

import importlib
from types import ModuleType


class MissingExtra(ImportError):
    """A package of the extra `app` is not installed; the message says how to install it."""


def import_extra(name: str) -> ModuleType:
    """Import a module that only the extra `app` installs, or one of ours that needs it.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # No package to install: a link of ours that was not checked out, or what a package says of its own needs.
        if error.name is None or error.name.partition(".")[0] == "vae_fast":
            raise
        raise MissingExtra(f'{error.name} is not installed: pip install -e ".[app]"') from error
