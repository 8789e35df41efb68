"""The wheel and the sdist hold the kernels and the benchmarks, and what they hold can be imported from anywhere."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from vae_fast.extras import MissingExtra, import_extra

pytest.importorskip("build")
pytest.importorskip("setuptools")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="packages do not depend on the backend"
)

ROOT = Path(__file__).parents[2]
LINKED = ("kernels", "benchmarks")  # top folders that are links within the package
OWN = {path for path in (ROOT / "vae_fast").rglob("*.py") if path.relative_to(ROOT / "vae_fast").parts[0] not in LINKED}
FILES = {str(path.relative_to(ROOT)) for path in OWN} | {"vae_fast/py.typed"}
SOURCES = FILES | {f"vae_fast/{name}/{path.name}" for name in LINKED for path in (ROOT / name).glob("*.py")}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist, and a wheel made from it, both from a copy: setuptools leaves its marks where it builds."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("vae_fast", *LINKED):
        shutil.copytree(ROOT / name, folder / name, symlinks=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "dist"


def test_the_commands_use_the_benchmarks_and_not_the_other_way():
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py")}
    assert [name for name, text in sources.items() if "vae_fast.app" in text] == []


def test_the_wheel_holds_every_source_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert not any(info.external_attr >> 16 & 0o170000 == 0o120000 for info in archive.infolist())
    assert names == SOURCES


def test_the_sdist_holds_the_linked_folders_as_files(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert SOURCES.issubset(files)


def test_the_wheel_works_away_from_the_sources(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import vae_fast, vae_fast.app.cli, importlib.util, torch\n"
        "print(vae_fast.__file__, importlib.util.find_spec('vae_fast.kernels.gaussian').origin)\n"
        "print(vae_fast.gaussian_kl(torch.zeros(4, 2), torch.zeros(4, 2)).item())\n"
        "print(importlib.util.find_spec('kernels'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    found = f"{tmp_path}/vae_fast/__init__.py {tmp_path}/vae_fast/kernels/gaussian.py"
    assert (result.stdout.splitlines(), result.stderr) == ([found, "0.0", "None"], "")


@pytest.mark.parametrize("name", LINKED)
def test_a_link_is_relative(name):
    link = ROOT / "vae_fast" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name


def test_a_missing_module_of_ours_is_no_extra():
    with pytest.raises(ModuleNotFoundError) as caught:
        import_extra("vae_fast.nothing")
    assert not isinstance(caught.value, MissingExtra)


@pytest.mark.parametrize(
    "error", ["ModuleNotFoundError('its own words')", "ImportError('its own words', name='typer')"]
)
def test_what_a_package_says_of_its_own_needs_stays(error, monkeypatch, tmp_path):
    (tmp_path / "needs_another.py").write_text(f"raise {error}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="^its own words$"):
        import_extra("needs_another")
