"""Checks that a bad argument is refused: with which exception and words, and before anything runs."""

import contextlib
import re

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

FLOATS = "float32, bfloat16, float16 or float64"


class NothingRuns(TorchDispatchMode):
    """Raises where an operator of ours is called, or noise or a seed is made."""

    FORBIDDEN = ("vae_fast", "aten.randint", "aten.full", "aten.normal", "aten.empty")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if str(function).startswith(self.FORBIDDEN):
            raise AssertionError(f"{function} ran before the arguments were checked")
        return function(*args, **(kwargs or {}))


def refuses(exception, message, call, *args, **kwargs):
    """call(*args, **kwargs) raises exactly this exception with exactly this message, before anything runs."""
    for listener in (NothingRuns(), contextlib.nullcontext()):  # the short ways are for where nothing listens
        with listener, pytest.raises(exception, match=f"^{re.escape(message)}$") as caught:
            call(*args, **kwargs)
        assert type(caught.value) is exception


def zeros(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


def not_tensors():
    """(value, what an error calls it) of things that users pass for tensors."""
    return [(None, "NoneType"), (1.0, "float"), ([[0.0] * 3] * 4, "list"), (np.zeros((4, 3)), "ndarray")]


def not_floats():
    """(dtype, what an error calls it) of tensors that hold no floats that we take."""
    kinds = (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)
    return [(dtype, str(dtype).removeprefix("torch.")) for dtype in kinds]
