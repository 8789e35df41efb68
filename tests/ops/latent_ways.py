"""Small latents computed both by the short way of the CPU and by the long one."""

import pytest
import torch

from tests.ops.cases import tupled, values
from vae_fast.ops import small_latents

LAYOUTS = {
    "rows": lambda t: t,
    "halves": lambda t: torch.cat((t, t), 1).chunk(2, 1)[0],
    "transposed": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
}
SHAPE = (4, 3, 5)


def pair(layout="rows", dtype=torch.float32, shape=SHAPE, seed=1):
    tensors = (LAYOUTS[layout](values(*shape, dtype=dtype, seed=seed + k) - 0.5) for k in range(2))
    return [t.detach().requires_grad_() for t in tensors]


def is_small(output):
    return output.grad_fn.name() == "_LatentBackward"


def both_ways(call):
    """The outputs of the short way and of the long one, with the same numbers drawn."""
    torch.manual_seed(0)
    small = tupled(call())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_latents, "compute", lambda *_: None)
        torch.manual_seed(0)
        long = tupled(call())
    assert is_small(small[0])
    assert not is_small(long[0])
    return small, long


def differentiated(outputs, inputs, used):
    """Gradients for an upstream gradient that is not 1."""
    wanted = [outputs[k] for k in used]
    return torch.autograd.grad(wanted, inputs, [torch.full_like(o, 1.5) for o in wanted], allow_unused=True)


def assert_alike(ways, inputs, used=None, in_layout=True):
    """The numbers of both ways and their gradients, and the layouts of all, unless of gradients not `in_layout`."""
    used = range(len(ways[0])) if used is None else used
    gradients = [differentiated(outputs, inputs, used) for outputs in ways]
    for k, (a, b) in enumerate(zip((*ways[0], *gradients[0]), (*ways[1], *gradients[1]), strict=True)):
        torch.testing.assert_close(a, b)
        if a is not None and (in_layout or k < len(ways[0])):
            assert a.stride() == b.stride()
            assert a.dtype == b.dtype
