"""Memory as `ptx` runs compiled code on it: what no GPU would do, or should, is a `Fault`."""

import numpy as np
import torch


class Fault(Exception):
    """What compiled code must not do."""


class Memory:
    """Runs of bytes at their addresses, each with those that may be accessed; in `data` they follow one another."""

    def __init__(self, runs, once):
        self.starts = np.array(sorted(runs))
        parts, allowed = zip(*(runs[start] for start in self.starts), strict=True)
        self.sizes = np.array([len(part) for part in parts])
        self.offsets = np.cumsum(self.sizes) - self.sizes
        self.data, self.allowed = np.concatenate(parts), np.concatenate(allowed)
        self.once, self.stored = once, np.zeros(len(self.data), bool)

    def load(self, address, width):
        return self.data[self._places(address, width)]

    def store(self, address, data):
        at = self._places(address, data.shape[1])
        if self.once and (self.stored[at].any() or len(np.unique(address)) < len(address)):
            raise Fault("a second store to an element")
        self.data[at] = data
        self.stored[at] = True
        if (self.data[at] != data).any():
            raise Fault("two threads store at one address")

    def _places(self, address, width):
        """That of each byte in `data`: [threads, width]."""
        if (address % width).any():
            raise Fault(f"an access of {width} bytes at an address that is no multiple of it")
        run = np.searchsorted(self.starts, address, "right") - 1
        inside = address - self.starts[run]
        if (run < 0).any() or (inside + width > self.sizes[run]).any():
            raise Fault("an access outside")
        at = (self.offsets[run] + inside)[:, None] + np.arange(width)
        if not self.allowed[at].all():
            raise Fault("an access between a tensor's elements")
        return at


def elements(tensors):
    """address -> (the bytes of a storage, whether each is a tensor's)."""
    runs = {}
    for tensor in tensors:
        storage, size = tensor.untyped_storage(), tensor.element_size()
        own = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        _, allowed = runs.setdefault(storage.data_ptr(), (own, np.zeros(len(own), bool)))
        first, strides = tensor.data_ptr() - storage.data_ptr(), (*(size * stride for stride in tensor.stride()), 1)
        np.lib.stride_tricks.as_strided(allowed[first:], (*tensor.shape, size), strides)[...] = True
    return runs
