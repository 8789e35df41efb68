"""The same tables in pytest-benchmark: a real run of the smallest case."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="speed is that of compiled code")

SPEED = Path(__file__).parents[2] / "vae_fast" / "benchmarks" / "test_speed.py"


def test_what_is_selected_is_compared(tmp_path):
    tests = [f"{SPEED}::test_speed[kl/1x32/float32-{contender}]" for contender in ("eager", "vae_fast")]
    command = [sys.executable, "-m", "pytest", "-q", *tests, f"--benchmark-json={tmp_path / 'speed.json'}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    eager, ours = json.loads((tmp_path / "speed.json").read_text())["benchmarks"]
    assert eager["group"] == ours["group"] == "kl/1x32/float32"
    rows = ours["extra_info"]["rows"]
    assert {row["contender"] for row in rows} == {"vae_fast"}
    assert all(row["over_eager"] > 0 and row["over_compile"] is None and not row["quick"] for row in rows)
