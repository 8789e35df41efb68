"""Registration of raw ops: functional, opaque to compilers, and looped over by vmap.

Each op takes the backend as an argument, chosen once in forward, so that the backward pass uses the same one after
`use_backend` has ended; hence one implementation for every device, which picks the room.
"""

import torch
from torch.utils import _pytree as pytree

_library = torch.library.Library("vae_fast", "DEF")


def define(schema, implementation, fake, vmap=True):
    """Register an op and return its overload. `fake` makes outputs of the right shape, dtype and strides."""
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vae_fast::{name}", fake, lib=_library)
    op = getattr(torch.ops.vae_fast, name).default
    if vmap:
        torch.library.register_vmap(op, _loop(op), lib=_library)
    return op


def _loop(op):
    """A vmap rule that calls the op once for each example."""

    def rule(info, in_dims, *args):
        flat, spec = pytree.tree_flatten(args)
        dims, _ = pytree.tree_flatten(in_dims)

        def example(i):
            leaves = [x if dim is None else x.select(dim, i) for x, dim in zip(flat, dims, strict=True)]
            return op(*pytree.tree_unflatten(leaves, spec))

        outputs = [torch.stack(same) for same in zip(*(example(i) for i in range(info.batch_size)), strict=True)]
        return outputs, [0] * len(outputs)

    return rule
