"""What the tests of the ops share."""

import pytest
import torch


@pytest.fixture
def fresh_dynamo():
    """torch.compile has no memory of other tests, and leaves none."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
