"""What the tests of the kernels share."""

import pytest
import torch

from tests.support.environment import BACKENDS, HAS_TRITON
from vae_fast import use_backend

if not HAS_TRITON:  # macOS, Windows: what remains is the eager backend against the reference
    collect_ignore = [
        "test_approximations.py",
        "test_compiled.py",
        "test_compiled_values.py",
        "test_count_likelihoods.py",
        "test_elementary.py",
        "test_int64.py",
        "test_launching.py",
        "test_launches.py",
        "test_noise.py",
        "test_noise_in_ops.py",
        "test_plans.py",
        "test_special.py",
        "test_sums.py",
        "test_traffic_latents.py",
        "test_traffic_reconstruction.py",
        "test_traffic_shared.py",
    ]


# Seen on a busy CPU machine without any code of ours: in one process of a hundred the first torch.log, and no later
# one, is off by 1e-4 relative. These take the place of the first.
for _function in (torch.log, torch.exp, torch.expm1, torch.sin, torch.cos):
    _function(torch.full((4096,), 0.5))


@pytest.fixture
def kernels_device():
    """The device that Triton's kernels run on in this process, with them in use."""
    devices = [backend.device for backend in BACKENDS if backend.name == "triton"]
    if not devices:
        pytest.skip("kernels run in the interpreter (TRITON_INTERPRET=1) or on a GPU")
    with use_backend("triton"):
        yield devices[0]


@pytest.fixture
def played(monkeypatch):
    """How many calls have been played, of launchers that have no plans yet."""
    from tests.kernels.plays import count_plays

    return count_plays(monkeypatch)
