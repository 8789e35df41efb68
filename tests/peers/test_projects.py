"""What holds for every project that can be patched: nothing is imported early, and errors say what to install."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from vae_fast.integrations import diffusers, patching, pythae, scvi

PROJECTS = [(diffusers, "diffusers"), (pythae, "pythae"), (scvi, "scvi")]
NAMES = [name for _, name in PROJECTS]


@pytest.mark.parametrize(("ours", "name"), PROJECTS, ids=NAMES)
def test_a_missing_project_is_an_error_with_the_command(ours, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"is not installed: pip install [a-z-]+==\d+\.\d+\.\d+$"):
        ours.patch()
    ours.unpatch()  # nothing to do


@pytest.mark.parametrize(("ours", "name"), PROJECTS, ids=NAMES)
def test_another_version_is_refused_unless_forced(ours, name, monkeypatch):
    pytest.importorskip(name, reason=f"{name} is not installed: make test-peers", exc_type=ModuleNotFoundError)
    monkeypatch.setattr(patching, "_version", lambda package: "99.0")
    with pytest.raises(RuntimeError, match=r"is 99\.0: the patch was tested on \d+\.\d+\.\d+: install .*force=True"):
        ours.patch()
    with ours.patch(force=True) as patch:
        assert "99.0" in repr(patch)


@pytest.mark.parametrize(("ours", "name"), PROJECTS, ids=NAMES)
def test_patching_twice_is_patching_once(ours, name):
    pytest.importorskip(name, reason=f"{name} is not installed: make test-peers", exc_type=ModuleNotFoundError)
    with ours.patch() as first:
        with ours.patch() as second:
            assert first.patched == second.patched
        assert "no longer" not in repr(first)
        ours.unpatch()
        assert "no longer" in repr(first)


def test_ours_does_not_hide_theirs():
    for ours, name in PROJECTS:
        assert ours.__name__ == f"vae_fast.integrations.{name}"
        if importlib.util.find_spec(name) is not None:
            assert importlib.import_module(name) is not ours


def test_nothing_of_theirs_is_imported_before_patch():
    code = (
        "import sys, vae_fast.integrations.diffusers, vae_fast.integrations.pythae, vae_fast.integrations.scvi\n"
        "print({'diffusers', 'pythae', 'scvi'} & sys.modules.keys())"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
