"""What is changed in Triton's interpreter: it refuses an int32 that wraps, and gives no 0 for what is not loaded."""

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from vae_fast.benchmarks.launches import record_launches

pytestmark = pytest.mark.interpreter_only


@triton.jit
def calculate(out, a, b, OPERATION: tl.constexpr):
    if OPERATION == "add":
        c = a + b
    elif OPERATION == "sub":
        c = a - b
    else:
        c = a * b
    tl.store(out, c)


@pytest.mark.parametrize(
    ("operation", "a", "b", "value"),
    [("add", 2**31 - 2, 1, 2**31 - 1), ("sub", -(2**31) + 1, 1, -(2**31)), ("mul", 2**16, -(2**15), -(2**31))],
)
def test_what_wraps_is_refused_and_what_fits_is_not(operation, a, b, value):
    out = torch.zeros(1, dtype=torch.int32)
    calculate[(1,)](out, a, b, operation)
    assert out.item() == value
    beyond = {"add": (a, b + 1), "sub": (a, b + 1), "mul": (-a, b)}[operation]
    with pytest.raises(InterpreterError, match=f"int32 {operation} wraps"):
        calculate[(1,)](out, *beyond, operation)


def test_unsigned_numbers_wrap():
    out = torch.zeros(1, dtype=torch.uint32)
    calculate[(1,)](out, 2**31 + 5, 2**31 + 7, "add")
    assert out.item() == 12


def test_wider_ones_have_room():
    out = torch.zeros(1, dtype=torch.int64)
    calculate[(1,)](out, 2**40, 2**20, "mul")
    assert out.item() == 2**60


@triton.jit
def copy(out, x, count, OTHER: tl.constexpr):
    lane = tl.arange(0, 4)
    tl.store(out + lane, tl.load(x + lane, mask=lane < count, other=OTHER))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64], ids=str)
def test_what_is_masked_is_any_number_unless_it_is_given(dtype):
    x, out = torch.ones(4, dtype=dtype), torch.full((4,), 5, dtype=dtype)
    copy[(1,)](out, x, 3, 0)
    assert out.tolist() == [1, 1, 1, 0]
    copy[(1,)](out, x, 4, None)
    assert out.tolist() == [1, 1, 1, 1]
    copy[(1,)](out, x, 3, None)
    assert out[:3].tolist() == [1, 1, 1]
    assert out[3].isnan() or out[3] == 2**63 - 1


def test_launches_are_not_recorded_in_it():
    with pytest.raises(RuntimeError, match="needs compiled kernels: unset TRITON_INTERPRET"), record_launches():
        pass
