"""What a run says of its machine, and the folder named after it."""

import os

import pytest
import torch

from vae_fast.benchmarks import machine

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


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ({"kind": "cuda", "device": "NVIDIA H200"}, "nvidia-h200"),
        ({"kind": "cpu", "device": "Intel(R) Xeon(R) Processor, 2 cores"}, "cpu-intel-xeon-processor-2-cores"),
    ],
)
def test_names_of_folders(description, name):
    assert machine.folder_name(description) == name
