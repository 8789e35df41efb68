"""What the tests of the kernels share."""

import pytest

from tests.support.environment import BACKENDS, HAS_TRITON
from vae_fast import use_backend

if not HAS_TRITON:  # macOS, Windows: what remains is the eager backend against the reference
    collect_ignore = [
        "test_compiled.py",
        "test_elementary.py",
        "test_int64.py",
        "test_launches.py",
        "test_noise.py",
        "test_noise_in_ops.py",
        "test_traffic_latents.py",
        "test_traffic_reconstruction.py",
    ]


@pytest.fixture
def kernels_device():
    """The device that Triton's kernels run on in this process, with them in use."""
    devices = [backend.device for backend in BACKENDS if backend.name == "triton"]
    if not devices:
        pytest.skip("kernels run in the interpreter (TRITON_INTERPRET=1) or on a GPU")
    with use_backend("triton"):
        yield devices[0]
