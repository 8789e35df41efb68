"""The table of cases: what is measured, at which sizes and in which dtypes, and why at these."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from vae_fast import checks
from vae_fast.benchmarks.formulas import OPS
from vae_fast.benchmarks.steps import STEPS


class Precision(NamedTuple):
    """Dtypes of what the network gives, and of the target."""

    dtype: torch.dtype
    target: torch.dtype


FLOAT32 = Precision(torch.float32, torch.float32)
BFLOAT16 = Precision(torch.bfloat16, torch.bfloat16)
MIXED = Precision(torch.bfloat16, torch.float32)  # autocast: bfloat16 logits, and images as they were loaded
INDICES = Precision(torch.float32, torch.int64), Precision(torch.bfloat16, torch.int64)  # as F.cross_entropy takes them


class Size(NamedTuple):
    """One size. `shape` is that of each tensor [B, ...]; `latents` how many a sample has beside an output of it."""

    shape: tuple[int, ...]
    why: str
    latents: int = 0
    precisions: tuple[Precision, ...] = (FLOAT32,)
    quick: tuple[Precision, ...] = ()


ALL = (FLOAT32, BFLOAT16, MIXED)
OVERHEAD = "nothing to compute: Python, the dispatcher and the launches alone"

# Sizes of a likelihood's parameters, and of the whole loss.
OUTPUTS = (
    Size((1, 32), OVERHEAD, 4),
    Size((128, 784), "MNIST in the batch of pytorch/examples: bound by launches", 20, ALL, quick=(FLOAT32,)),
    Size((256, 3, 64, 64), "images that stay in a GPU's L2", 128, ALL, quick=(FLOAT32, MIXED)),
    Size((4096, 3072), "CIFAR: about an L2 of each tensor", 256),
    Size((4099, 3067), "primes: masked tails, unaligned rows", 251),
    Size((1024, 256, 256), "256 MB a float32 tensor: main memory", 1024, ALL),
    Size((2048, 512, 512), "2 GB a float32 tensor", 4096, ALL),
)

# Sizes of mu, as a vector a sample.
VECTORS = (
    Size((1, 32), OVERHEAD),
    Size((128, 20), "the latents of an MLP on MNIST: bound by launches", quick=(FLOAT32,)),
    Size((128, 784), "bound by launches", precisions=(FLOAT32, BFLOAT16), quick=(FLOAT32,)),
    Size((1024, 1024), "stays in a GPU's L2", precisions=(FLOAT32, BFLOAT16), quick=(FLOAT32, BFLOAT16)),
    Size((4099, 3067), "primes: masked tails, unaligned rows"),
    Size((16384, 4096), "256 MB a float32 tensor: main memory", precisions=(FLOAT32, BFLOAT16)),
    Size((131072, 4096), "2 GB a float32 tensor", precisions=(FLOAT32, BFLOAT16)),
)

# Sizes of mu, as the latents of images: half the channels of a convolution's output.
MAPS = (
    Size((1, 4, 2, 4), OVERHEAD),
    Size((16, 4, 64, 64), "latent diffusion at 512 pixels: mu and logvar are strided halves", quick=(FLOAT32,)),
    Size((256, 4, 64, 64), "the same, about a GPU's L2", precisions=(FLOAT32, BFLOAT16)),
    Size((4096, 4, 64, 64), "256 MB a float32 tensor: main memory", precisions=(FLOAT32, BFLOAT16)),
    Size((32768, 4, 64, 64), "2 GB a float32 tensor", precisions=(FLOAT32, BFLOAT16)),
)

# Sizes of a likelihood beyond the core's: one bound by launches, one in main memory.
ELEMENTS = (
    Size((128, 784), "bound by launches", quick=(FLOAT32,)),
    Size((4099, 3067), "primes: masked tails, unaligned rows"),
    Size((1024, 256, 256), "256 MB a float32 tensor: main memory", precisions=(FLOAT32, BFLOAT16)),
)

# Sizes of logits, the classes last: bound by calls, by memory, and longer than a tile.
CLASSES = (
    Size((4096, 256), "a batch of tokens from a small codebook", precisions=INDICES, quick=INDICES[:1]),
    Size((64, 3072, 256), "32 x 32 x 3 subpixels of 256 levels, as PixelCNN and VDVAE have them", precisions=INDICES),
    Size((8192, 32000), "the vocabulary of a language model: rows are read in passes", precisions=INDICES),
)

CORE = dict.fromkeys(("bernoulli", "mse", "gaussian", "loss"), OUTPUTS)
LATENTS = {"sample_kl": VECTORS, "sample_kl_packed": MAPS, "kl": VECTORS}
SIZES = {**LATENTS, **CORE, "categorical": CLASSES}  # any other op: ELEMENTS


@dataclass(frozen=True)
class Case:
    """One op at one size in one precision.

    shape: of each tensor, but for targets of classes, which lack the last dimension; of a training step's batch.
    """

    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    target_dtype: torch.dtype
    why: str
    latents: int = 0
    quick: bool = False

    @property
    def name(self):
        dtypes = dict.fromkeys(checks.dtype_name(dtype) for dtype in (self.dtype, self.target_dtype))
        return f"{self.op}/{'x'.join(map(str, self.shape))}/{'+'.join(dtypes)}"

    @property
    def elements(self):
        return math.prod(self.shape)

    @property
    def is_step(self):
        return self.op in STEPS

    @property
    def project(self):
        """The other project whose step it is, None for what is ours."""
        return STEPS[self.op].project if self.is_step else None

    @property
    def floor(self):
        """The fewest bytes of each phase; nothing of a whole step, which is the network's as well."""
        return {} if self.is_step else OPS[self.op].floor(self)


def _cases():
    for op in OPS:
        for size in SIZES.get(op, ELEMENTS):
            for precision in size.precisions:
                yield Case(op, size.shape, *precision, size.why, size.latents, precision in size.quick)
    for op, step in STEPS.items():
        yield Case(op, step.shape, *FLOAT32, step.why, quick=step.quick)


CASES = {case.name: case for case in _cases()}


def select(names=(), quick=False):
    """The cases of these names or ops, all for none; `quick` keeps the few that say most in little time.

    A case that is named stays, and so do those of an op that is named and has no quick one.

    Raises ValueError, naming the choices, for a name that is neither.
    """
    ops = dict.fromkeys(case.op for case in CASES.values())
    for name in names:
        if name not in ops and name not in CASES:
            raise ValueError(
                f"case is {name!r}: expected one of {', '.join(map(repr, ops))}, or one of theirs, "
                f"such as {next(iter(CASES))!r}"
            )
    chosen = [case for case in CASES.values() if not names or case.op in names or case.name in names]
    with_quick = {case.op for case in chosen if case.quick}
    return [
        case
        for case in chosen
        if case.quick or not quick or case.name in names or (case.op in names and case.op not in with_quick)
    ]
