"""Files that are written whole or not at all, and folders for them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what was written there becomes `path` on success, and is removed on failure."""
    temporary = _hidden(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno and error.filename is None:  # as of a write to a full disk
            error.filename = str(path)
        raise


def writable_folder(path: str | os.PathLike, name: str = "path") -> Path:
    """Create the folder `path` if it is not there, and make sure that files can be written in it.

    Raises:
        OSError: it cannot be created or written; the subclass is the operating system's own. `name` is the argument
            that the message names.
    """
    folder = Path(path)
    probe = _hidden(folder / "probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            error.errno, f"{name} is {folder}: expected a folder that can be written ({error.strerror})"
        ) from error
    return folder


def _hidden(path: Path) -> Path:
    """A path beside `path` that nobody else has: threads share the process's number, and two containers may, too."""
    return path.with_name(f".{path.name}.{uuid4().hex}.tmp")
