"""What the tests of the ops share."""

import pytest
import torch

from tests.support.environment import BACKENDS
from vae_fast import use_backend


@pytest.fixture
def fresh_dynamo():
    """torch.compile has no memory of other tests, and leaves none."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=[backend.device for backend in BACKENDS if backend.name == "triton"], ids=str)
def device(request):
    """That of Triton's kernels, where they run in this process, with them in use."""
    with use_backend("triton"):
        yield request.param
