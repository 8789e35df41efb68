"""CUDA graphs, played on CPU tensors: a capture leaves nothing done, and each replay does what it recorded."""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST_READS = ("_local_scalar_dense", "equal", "nonzero")  # the host would wait for the device, which has not begun


class PlayedGraph:
    """In place of torch.cuda.CUDAGraph. The memory that it writes to lies where the capture has seen it."""

    def __init__(self):
        self.recorded = []

    @torch.no_grad()
    def replay(self):
        for op, arguments, options, results in self.recorded:
            again = tree_leaves(op(*arguments, **options))
            for result, new in zip(tree_leaves(results), again, strict=True):
                if isinstance(new, torch.Tensor) and new.data_ptr() != result.data_ptr():
                    result.copy_(new)


@contextlib.contextmanager
def capture(graph, **options):
    """In place of torch.cuda.graph."""
    numbers = torch.get_rng_state()
    with _Recorder(graph) as recorder:
        yield
    torch.set_rng_state(numbers)
    for storage, before in recorder.written.values():
        storage.copy_(before)


class _Recorder(TorchDispatchMode):
    def __init__(self, graph):
        super().__init__()
        self.graph, self.written = graph, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.name().partition("::")[2].partition(".")[0], kwargs or {}
        if name in HOST_READS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        given = dict(zip((argument.name for argument in func._schema.arguments), args)) | kwargs
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(given.get(argument.name))
        results = func(*args, **kwargs)
        if not (func.is_view or "empty" in name):
            self.graph.recorded.append((func, args, kwargs, results))
        return results

    def _keep(self, written):
        """What is there before it is written to for the first time."""
        for tensor in tree_leaves(written):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.written.setdefault(storage.data_ptr(), (storage, storage.clone()))
