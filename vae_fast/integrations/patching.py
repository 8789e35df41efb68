"""Puts functions in place of another project's, for the whole process, and later the very objects that were there."""

import functools
import importlib
import importlib.metadata
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_log = logging.getLogger("vae_fast")
_ABSENT = object()


class Change(NamedTuple):
    """One attribute of a class or module. `make` takes what is there and gives what comes in its place."""

    owner: Any
    name: str
    make: Callable
    new: bool = False  # nothing needs to be there

    @property
    def dotted(self):
        owner = self.owner
        parts = (owner.__module__, owner.__qualname__) if isinstance(owner, type) else (owner.__name__,)
        return ".".join((*parts, self.name))


def wrap(owner, name, decorator):
    """Replace the function `name` by decorator(it), under its own name, signature and docstring."""
    return Change(owner, name, lambda theirs: functools.wraps(theirs)(decorator(theirs)))


def add(owner, name, value):
    """Set an attribute that need not be there."""
    return Change(owner, name, lambda theirs: value, new=True)


class Patch:
    """What `patch()` returns. It says what is patched; `unpatch()`, or leaving `with patch():`, takes it back.

    patched: the dotted names of what was replaced.
    """

    def __init__(self, project: "Project", version: str, patched: tuple[str, ...], owns: bool):
        self.patched = patched
        self._project, self._version, self._owns = project, version, owns

    def unpatch(self) -> None:
        """Put the originals back. Does nothing for a `patch()` that found the project patched: that is the first's."""
        if self._owns:
            self._owns = False
            self._project.unpatch()

    def __enter__(self) -> "Patch":
        if not self._project.is_patched:
            raise RuntimeError(f"this patch of {self._project.package} was taken back: call patch() again")
        return self

    def __exit__(self, *exception: object) -> None:
        self.unpatch()

    def __repr__(self):
        state = "patched" if self._project.is_patched else "no longer patched"
        names = "".join(f"\n  {name}" for name in self.patched)
        return f"{self._project.package} {self._version}, {state}:{names}"


@dataclass
class Project:
    """A project that can be patched: its name for pip, its module, the versions that were tested, what to change.

    changes: gives the list of `Change`; it is called once the project is known to be there.
    before_unpatch: called while the patch is still in place.
    """

    package: str
    module: str
    tested: tuple[str, ...]
    changes: Callable
    before_unpatch: Callable = lambda: None
    _originals: list = field(default_factory=list)
    _patch: Patch | None = None

    @property
    def is_patched(self):
        return self._patch is not None

    def patch(self, force=False):
        """Replace everything, or nothing if an error is raised. A second call finds it done."""
        if self._patch is not None:
            return Patch(self, self._patch._version, self._patch.patched, owns=False)
        version = self._checked_version(force)
        changes = self.changes()
        for change in changes:
            if not change.new and change.name not in vars(change.owner):
                raise RuntimeError(f"{self.package} {version} has no {change.dotted}: {self._wanted()}")
        made = [change.make(vars(change.owner).get(change.name)) for change in changes]
        self._originals = [(c.owner, c.name, vars(c.owner).get(c.name, _ABSENT)) for c in changes]
        for change, value in zip(changes, made):
            setattr(change.owner, change.name, value)
        self._patch = Patch(self, version, tuple(change.dotted for change in changes), owns=True)
        _log.info("%r", self._patch)
        return self._patch

    def unpatch(self):
        """Put the originals back, whatever stands there now; nothing to do where nothing is patched."""
        if self._patch is None:
            return
        try:
            self.before_unpatch()
        finally:
            for owner, name, value in reversed(self._originals):
                if value is _ABSENT:
                    delattr(owner, name)
                else:
                    setattr(owner, name, value)
            self._originals, self._patch = [], None
        _log.info("%s: the originals are back", self.package)

    def _checked_version(self, force):
        try:
            importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name != self.module:  # it is there, and lacks something of its own
                raise
            raise ImportError(
                f"{self.package} is not installed: pip install {self.package}=={self.tested[-1]}"
            ) from None
        version = _version(self.package)
        if version not in self.tested and not force:
            raise RuntimeError(f"{self.package} is {version}: {self._wanted()}, or patch(force=True) to try")
        return version

    def _wanted(self):
        return f"the patch was tested on {', '.join(self.tested)}: install {self.package}=={self.tested[-1]}"


def _version(package):
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:  # a source folder on the path
        return "of an unknown version"
