"""What the tests of known kinds of calls share."""

import contextlib

import pytest
import torch

from tests.ops.cases import values
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.ops import kinds

CALLS = 4  # the first is checked, its launches are written down in the second of the kernels' own kind


def tensor(device, *shape, dtype=torch.float32, seed=1):
    return values(*shape, device=device, dtype=dtype, seed=seed).requires_grad_()


def likelihood(device, name, dtype=torch.float32):
    """(Parameters, target) of 5 x 7 elements."""
    row = LIKELIHOODS[name]
    drawn = [values(5, 7, device=device, dtype=torch.float32, seed=3 + k) for k in range(len(row.parameters))]
    params = tuple(p.to(dtype).requires_grad_() for p in row.linked(drawn))
    classes = row.domain == "classes"
    target = torch.arange(5, device=device) if classes else values(5, 7, device=device, seed=2).round().to(dtype)
    return params if len(params) > 1 else params[0], target


def node(output):
    return output.grad_fn.name()


@contextlib.contextmanager
def kinds_forgotten():
    """Within the block every call takes the long way."""
    find = kinds.find
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "find", lambda *call: (find(*call)[0], None))
        yield


def generator(like):
    return torch.Generator(like.device).manual_seed(3)
