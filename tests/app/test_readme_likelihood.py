"""The likelihood that the README adds: its very lines, at the end of the files they name, in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ["kernels/likelihoods.py", *(f"vae_fast/{room}likelihoods.py" for room in ("eager/", "reference/", ""))]


def parts():
    """By file, the lines of the README's example for it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"Cauchy errors, for instance:\n\n```python\n(.*?)```", text, flags=re.S)
    assert len(example.splitlines()) <= 30
    pieces = re.split(r"^# (\S+\.py):.*\n", example, flags=re.M)[1:]
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


@pytest.fixture
def package(tmp_path):
    """A copy of the package, with the example added."""
    for name in ("vae_fast", "kernels", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignored)
    assert list(parts()) == FILES
    for name, code in parts().items():
        with (tmp_path / name).open("a", encoding="utf-8") as file:
            file.write("\n\n" + code)
    return tmp_path


@pytest.mark.parametrize("backend", ["eager", pytest.param("triton", marks=pytest.mark.interpreter_only)])
def test_the_doctor_finds_it_right(package, backend):
    environment = {**os.environ, "PYTHONPATH": str(package), "VAE_FAST_BACKEND": backend, "COLUMNS": "200"}
    code = (
        "import torch, vae_fast; from vae_fast.app import doctor\n"
        f"assert vae_fast.__file__.startswith({str(package)!r})\n"
        "ops = {op: check for op, check in doctor._checks().items() if 'cauchy' in op}\n"  # all take a minute
        "doctor._checks = lambda: ops\n"
        "checks = list(doctor.run_checks(torch.device('cpu')))\n"
        "print([(c.op, c.error) for c in checks])\n"
        "assert len(checks) == 7 and all(c.error < 5e-6 for c in checks)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=package, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
