"""What interpreted Triton kernels really load and store, to the byte.

Needs Triton's interpreter: TRITON_INTERPRET=1 in the environment before Triton is imported. On any kernel of your own:

    from vae_fast.benchmarks.traffic import count_traffic

    with count_traffic() as traffic:
        my_kernel[(4,)](x, y, n, BLOCK=1024)
    assert traffic.moved(kind="load") == 4 * n        # bytes
    assert traffic.moved(arg="y", kind="store") == 4 * n
    assert not traffic.overwrites                     # no address was stored twice in one launch

Lanes whose mask is true are counted; a number that two programs load counts twice. That is what a kernel asks of the
memory system, so the floor of a memory-bound kernel is met when it equals the sizes of its inputs and outputs. What two
arguments have in common, as in a kernel that works in place, is counted as the first one's. An overwrite is a race on a
GPU, unless one program makes both stores, or a lock puts them in order: programs run one after another here.
"""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest.mock import patch

import numpy as np
import triton
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

from vae_fast import checks
from vae_fast.benchmarks.launches import without_autotuning


class OutOfBounds(RuntimeError):
    """An unmasked lane fell outside every tensor argument of its launch."""


@dataclass
class Traffic:
    """Counts of one `count_traffic` block. A tensor inside a tuple argument is called `name[0]`, `name[0][1]`, ..."""

    kernels: list[str] = field(default_factory=list)  # one entry a launch, in order
    programs: int = 0
    bytes: Counter = field(default_factory=Counter)  # by (kernel, argument, "load" | "store" | "atomic")
    overwrites: Counter = field(default_factory=Counter)  # addresses stored again in one launch, by (kernel, argument)
    gaps: Counter = field(default_factory=Counter)  # lanes between the elements of a strided view, keys as of `bytes`

    @property
    def launches(self):
        return len(self.kernels)

    def moved(self, kernel=None, arg=None, kind=None):
        """Bytes moved, of one kernel, argument or kind where given. An argument's name stands for its whole tuple."""
        if kind is not None:
            checks.choice("kind", kind, ("load", "store", "atomic"))
        return sum(
            count
            for (k, a, what), count in self.bytes.items()
            if kernel in (None, k) and kind in (None, what) and (arg in (None, a) or a.startswith(f"{arg}["))
        )

    def __str__(self):
        """One line a launch name, then one for each of its arguments that was touched."""
        lines = [f"{name}: {count} launches" for name, count in Counter(self.kernels).items()]
        lines += [f"  {kernel}.{arg}: {kind} {n} bytes" for (kernel, arg, kind), n in sorted(self.bytes.items())]
        return "\n".join([*lines, f"{self.launches} launches, {self.programs} programs, {self.moved()} bytes"])


@contextlib.contextmanager
def count_traffic(bounds: bool = True) -> Iterator[Traffic]:
    """Count launches, programs and bytes of all interpreted kernels run inside the block; yields a `Traffic`.

    With `bounds` (the default) a lane outside every tensor argument raises OutOfBounds before memory is touched; a view
    reaches from its first element to its last, and what falls between its elements is counted in `gaps`. Without, such
    a lane is let through and not counted: as of a kernel that is given a table of pointers.
    """
    if not triton.knobs.runtime.interpret:
        raise RuntimeError("count_traffic needs Triton's interpreter: set TRITON_INTERPRET=1 before Triton is imported")
    counter = _Counter(bounds)
    with without_autotuning(), contextlib.ExitStack() as hooks:
        for owner, name, hook in counter.hooks():
            hooks.enter_context(patch.object(owner, name, hook))
        yield counter.traffic


class _Counter:
    """Hooks into the interpreter: every tl.load, block pointer and descriptor ends in one of these builder methods."""

    def __init__(self, bounds):
        self.traffic = Traffic()
        self.bounds = bounds
        self.kernel = None
        self.views = []
        self.stores = defaultdict(list)  # argument -> [(addresses, size in bytes)] of the current launch

    def hooks(self):
        builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
        yield builder, "create_masked_load", self._counting("load", builder.create_masked_load, pointer=0, mask=1)
        yield builder, "create_masked_store", self._counting("store", builder.create_masked_store, pointer=0, mask=2)
        yield builder, "create_atomic_rmw", self._counting("atomic", builder.create_atomic_rmw, pointer=1, mask=3)
        yield builder, "create_atomic_cas", self._counting("atomic", builder.create_atomic_cas, pointer=0, mask=None)
        yield builder, "set_grid_dim", self._counting_programs(builder.set_grid_dim)
        yield executor, "_init_args_hst", self._noting_arguments(executor._init_args_hst)
        yield executor, "__call__", self._counting_launches(executor.__call__)
        yield JITFunction, "run", _refuse

    def _counting(self, kind, access, pointer, mask):
        def hook(builder, *args, **kwargs):
            self._record(kind, args[pointer], None if mask is None else args[mask])
            return access(builder, *args, **kwargs)

        return hook

    def _counting_programs(self, set_grid_dim):
        def hook(builder, x, y, z):
            self.traffic.programs += int(x) * int(y) * int(z)  # a grid made of arguments is of Triton's tensors
            return set_grid_dim(builder, x, y, z)

        return hook

    def _noting_arguments(self, copy_to_host):
        def hook(executor, args, kwargs):
            args, kwargs = copy_to_host(executor, args, kwargs)
            named = [*zip(executor.arg_names, args), *kwargs.items()]
            self.views = [_View(name, tensor) for arg in named for name, tensor in _tensors(*arg)]
            return args, kwargs

        return hook

    def _counting_launches(self, launch):
        def hook(executor, /, *args, **kwargs):
            self.kernel = executor.fn.__name__
            self.traffic.kernels.append(self.kernel)
            try:
                return launch(executor, *args, **kwargs)
            except interpreter.InterpreterError as error:
                cause = _out_of_bounds(error)
                if cause is None:
                    raise
                raise cause from None
            finally:
                self._close_launch()

        return hook

    def _close_launch(self):
        for arg, stores in self.stores.items():
            repeats = _repeated(stores)
            if repeats:
                self.traffic.overwrites[self.kernel, arg] += repeats
        self.stores.clear()

    def _record(self, kind, pointers, mask):
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses = _unmasked(pointers, mask)
        for belongs in (_View.elements, _View.span):  # a lane between the elements of one view may be another's element
            for view in self.views:
                if not addresses.size:
                    return
                inside = belongs(view, addresses, size)
                if inside.any():
                    self._count(kind, view.name, addresses[inside], size, gap=belongs is _View.span)
                    addresses = addresses[~inside]
        if addresses.size and self.bounds:
            raise OutOfBounds(self._describe(kind, addresses))

    def _count(self, kind, arg, addresses, size, gap):
        self.traffic.bytes[self.kernel, arg, kind] += addresses.size * size
        if gap:
            self.traffic.gaps[self.kernel, arg, kind] += addresses.size
        if kind == "store":
            self.stores[arg].append((addresses, size))

    def _describe(self, kind, addresses):
        message = f"{self.kernel}: {addresses.size} unmasked lanes of {kind}s fall outside every tensor argument"
        if not self.views:
            return f"{message}: there is none"
        first = int(addresses[0])
        view = min(self.views, key=lambda v: max(v.low - first, first - v.high))
        before, after = view.low - first, max(first - view.high, 0)  # one that is half inside ends past the end
        where = f"{before} bytes before the start" if before > 0 else f"{after} bytes past the end"
        return f"{message}; the first is {where} of {view.name}, the nearest"


def _refuse(kernel, /, *args, **kwargs):
    """In place of the launch of a compiled kernel."""
    raise RuntimeError(f"{kernel.__name__} is compiled: set TRITON_INTERPRET=1 before Triton is imported to count it")


class _View:
    """Where the elements of one tensor argument lie in memory: in runs of bytes side by side, at equal distances."""

    def __init__(self, name, tensor):
        self.name, self.run = name, tensor.element_size()
        dims = [(stride * self.run, size) for stride, size in zip(tensor.stride(), tensor.shape) if size > 1 and stride]
        self.low = tensor.data_ptr()
        self.high = self.low + sum((size - 1) * stride for stride, size in dims) + self.run
        dims.sort(reverse=True)
        while dims and dims[-1][0] == self.run:
            self.run *= dims.pop()[1]
        self.dims = dims  # (bytes from one to the next, how many), the farthest first
        reach = [sum((size - 1) * stride for stride, size in dims[i + 1 :]) + self.run for i in range(len(dims))]
        self.nested = all(stride >= inner for (stride, _), inner in zip(dims, reach))  # no two runs overlap

    def span(self, addresses, size):
        """Which addresses lie between the view's first element and its last."""
        return (addresses >= self.low) & (addresses + np.uint64(size) <= self.high)

    def elements(self, addresses, size):
        """Which addresses are of the view's elements; its span where strides leave no gaps or cannot be told apart."""
        inside = self.span(addresses, size)
        if not self.dims or not self.nested or not inside.any():
            return inside
        offset = np.where(inside, addresses - np.uint64(self.low), np.uint64(0)).astype(np.int64)
        for stride, count in self.dims:
            inside &= offset // stride < count
            offset %= stride
        return inside & (offset + size <= self.run)


def _tensors(name, value):
    """(name, tensor) for each tensor in an argument, tuples and tensor descriptors included."""
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _tensors(f"{name}[{index}]", item)
        return
    value = getattr(value, "base", value)
    if hasattr(value, "untyped_storage") and value.numel():
        yield name, value


def _unmasked(pointers, mask):
    """The addresses, as one flat uint64 array, of the lanes whose mask is true."""
    addresses = np.atleast_1d(np.asarray(pointers.data)).astype(np.uint64, copy=False)
    if mask is None:
        return addresses.ravel()
    lanes = mask.data if isinstance(mask, interpreter.TensorHandle) else mask  # block pointers make plain arrays
    addresses, lanes = np.broadcast_arrays(addresses, np.asarray(lanes, dtype=bool))
    return addresses[lanes]


def _repeated(stores):
    """How many addresses were stored again; to the byte where stores of different sizes meet."""
    if len({size for _, size in stores}) > 1:
        stores = [((addresses[:, None] + np.arange(size, dtype=np.uint64)).ravel(), 1) for addresses, size in stores]
    addresses = np.concatenate([addresses for addresses, _ in stores])
    return addresses.size - np.unique(addresses).size


def _out_of_bounds(error):
    """The OutOfBounds that the interpreter wrapped, once for each device function it passed through; else None."""
    while error is not None and not isinstance(error, OutOfBounds):
        error = error.__cause__
    return error
