"""What a run says of its machine, and the folder named after it."""

import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

from vae_fast.benchmarks import machine, memory

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="speed is that of compiled code")


def test_the_machine_is_described(monkeypatch):
    monkeypatch.setenv("VAE_FAST_COMMIT", "abc123")
    said = machine.describe(torch.device("cpu"))
    assert said["commit"] == "abc123"
    assert said["torch"] == torch.__version__
    assert all(said[name] for name in ("date", "device", "python", "triton", "vae_fast", "driver", "cuda"))
    monkeypatch.delenv("VAE_FAST_COMMIT")
    monkeypatch.setattr(machine, "HERE", "/")
    assert machine.describe(torch.device("cpu"))["commit"] == "unknown"


@pytest.mark.skipif(not shutil.which("git"), reason="asks git")
def test_the_commit_of_the_source(tmp_path, monkeypatch):
    def git(*command):
        by = "-c", "user.name=a", "-c", "user.email=a@b"
        return subprocess.run(["git", "-C", tmp_path, *by, *command], check=True, capture_output=True, text=True).stdout

    monkeypatch.delenv("VAE_FAST_COMMIT", raising=False)
    folder, results = tmp_path / "benchmarks", tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    for path in (source := folder / "machine.py", row := results / "row.json", tmp_path / "other.py"):
        path.write_text("1")
    git("init")
    monkeypatch.setattr(machine, "HERE", str(folder))
    assert machine.commit() == "unknown"  # a package installed within somebody's repository
    git("add", ".")
    git("commit", "-m", "a")
    git("tag", "a-tag")
    commit = git("rev-parse", "--short=12", "HEAD").strip()
    row.write_text("2")
    assert machine.commit() == commit
    source.write_text("2")
    assert machine.commit() == f"{commit}-dirty"


def test_an_amd_card(monkeypatch):
    """It calls itself "cuda" too, has no nvidia-smi, and a cache that PyTorch does not tell of."""
    card = SimpleNamespace(gcnArchName="gfx942:sramecc+:xnack-", L2_cache_size=4 * 2**20)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "6.4.1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(machine, "_text", {"/sys/module/amdgpu/version": "6.12.12\n"}.get)
    said = machine.describe(torch.device("cuda"))
    assert (said["device"], said["cuda"], said["driver"]) == ("gfx942:sramecc+:xnack-", "HIP 6.4.1", "6.12.12")
    monkeypatch.setattr(machine, "_text", lambda path: "")
    assert machine.describe(torch.device("cuda"))["driver"].startswith("Linux ")
    assert memory.cache_bytes(torch.device("cuda")) >= 256 * 10**6


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ({"kind": "cuda", "device": "NVIDIA H200"}, "nvidia-h200"),
        ({"kind": "cpu", "device": "Intel(R) Xeon(R) Processor, 2 cores"}, "cpu-intel-xeon-processor-2-cores"),
    ],
)
def test_names_of_folders(description, name):
    assert machine.folder_name(description) == name
