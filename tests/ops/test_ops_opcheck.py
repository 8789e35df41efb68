"""The raw ops as torch.library sees them: schema, fake outputs and strides, AOT dispatch."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree

import vae_fast  # noqa: F401 (registers the ops)
from tests.ops.raw_calls import CALLS, LAYOUTS, call_id


def overload(name):
    return getattr(torch.ops.vae_fast, name).default


def test_every_raw_op_is_checked():
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("vae_fast::")}
    assert registered == {f"vae_fast::{op}" for op, *_ in CALLS}


@pytest.mark.parametrize("call", CALLS, ids=call_id)
def test_opcheck(call, backend):
    op, arguments, options = call
    torch.library.opcheck(overload(op), arguments("chunk", backend, **options))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", [c for c in CALLS if not c[0].endswith("_")], ids=call_id)
def test_fake_outputs_have_the_shape_dtype_and_strides_of_real_ones(call, layout, backend):
    op, arguments, options = call
    arguments = arguments(layout, backend, **options)
    real = overload(op)(*arguments)
    mode = FakeTensorMode()
    with mode:
        fake = overload(op)(*pytree.tree_map_only(torch.Tensor, mode.from_tensor, arguments))
    assert [(t.shape, t.dtype, t.stride()) for t in fake] == [(t.shape, t.dtype, t.stride()) for t in real]


@pytest.mark.parametrize("call", CALLS, ids=call_id)
def test_a_raw_op_gives_the_same_bits_twice(call, backend):
    op, arguments, options = call
    first, second = (overload(op)(*arguments("padded", backend, **options)) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
