"""What really happens in a call: bytes moved by our kernels, PyTorch's own operators, memory allocated."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

# Operators that give a view, or memory as it is: nothing runs on the device.
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_", "detach", "alias"}


class Operators(TorchDispatchMode):
    """Records each operator that reaches the device as its name, and the size in bytes of every new tensor.

    Our own operators appear as one; use it around a launcher of `vae_fast.kernels` to see what they do inside.
    """

    def __init__(self):
        super().__init__()
        self.names, self.sizes = [], []
        self._storages = set()
        self._alive = []  # storages: an address that is used again must not look old, and autograd may steal the tensor

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {id_of(t) for t in tree_iter((args, kwargs or {})) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        self._storages |= known
        name = func._schema.name.partition("::")[2]
        if func.namespace == "vae_fast" or not (name in FREE or func.is_view):
            self.names.append(name)
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and id_of(tensor) not in self._storages:
                self._storages.add(id_of(tensor))
                self._alive.append(tensor.untyped_storage())
                if not tensor.is_meta:
                    self.sizes.append(tensor.untyped_storage().nbytes())
        return result


def id_of(tensor):
    return tensor.untyped_storage()._cdata


def bytes_moved(function):
    """({(kernel, argument, "load" | "store"): bytes} of a call in the interpreter, its result).

    Asserts that no address was stored twice in a launch, and that no lane fell outside its tensor or between its
    elements.
    """
    from vae_fast.benchmarks.traffic import count_traffic

    with count_traffic() as traffic:  # raises where a lane falls outside every tensor
        result = function()
    assert not traffic.overwrites
    assert not traffic.gaps
    return dict(traffic.bytes), result


def second_stage(*sums, kernel="_sum_partials"):
    """What one launch moves that adds partial sums: of each sum (the bytes of them, the bytes of the result)."""
    table = {}
    for k, (partials, out) in enumerate(sums):
        table |= {(kernel, f"sums[{k}][0]", "load"): partials, (kernel, f"sums[{k}][1]", "store"): out}
    return table
