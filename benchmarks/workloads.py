"""The calls that users make, in the options, dtypes and layouts for which a launcher chooses another kernel.

One list for two tools: the audit records the launches of these calls, and the traffic table interprets them. So the
variants of a kernel come from its launchers, and a new row in the table of likelihoods is audited without a word here.
Each option is varied by itself, in two dtypes, and so is each layout: options are compiled in or out independently.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch

import vae_fast
from vae_fast import checks
from vae_fast.benchmarks.class_layouts import CLASS_LAYOUTS
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.ops import backend

COMMON = (torch.float32, torch.bfloat16)
SEED = 2**40 + 1
CLAMP = (-30.0, 20.0)  # that of diffusers


@dataclass(frozen=True)
class Workload:
    """A call of one public function: `function(*leaves, *constants)`, for the (leaves, constants) that `make` gives.

    leaves: tensors that require a gradient, or that do not where there is no backward pass to measure; constants: the
    other tensors that are read. used: the output that the backward pass starts from, or None for all of them. main:
    whether `make test` audits it too, in both versions of Triton.
    """

    op: str
    options: str
    dtype: str
    layout: str
    make: Callable
    function: Callable
    used: int | None = None
    main: bool = False

    def __str__(self):
        return _joined_words((self.op, self.options, self.dtype, self.layout))

    def run(self, observe=lambda direction: contextlib.nullcontext()):
        """Call and differentiate with Triton's kernels, each direction inside `observe(direction)`.

        Returns (leaves, constants, outputs, upstream gradients, gradients). The direction "again" is a second backward
        pass, which recomputes what the first one took from forward. CPU tensors are let through to the launchers, so
        launches must be interpreted, or recorded and not made.
        """
        leaves, constants = self.make()
        with vae_fast.use_backend("triton"), patch.object(backend, "_check_triton", lambda tensor: None):
            with observe("forward"):
                outputs = self.function(*leaves, *constants)
            outputs = tuple(outputs) if isinstance(outputs, tuple) else (outputs,)
            used = outputs if self.used is None else outputs[self.used : self.used + 1]
            upstream = [torch.ones_like(output) for output in used]
            gradients, wanted = (), [leaf for leaf in leaves if leaf.requires_grad]
            for direction in ("backward", "again") if wanted else ():
                with observe(direction):
                    gradients = torch.autograd.grad(used, wanted, upstream, retain_graph=True)
        return leaves, constants, outputs, upstream, gradients


def workloads():
    """All of them; where two lists below name the same call, once."""
    found = {}
    for workload in (*latent_workloads(), *reconstruction_workloads(), *elbo_workloads()):
        found.setdefault(str(workload), workload)
    return list(found.values())


def run_wide(observe):
    """Launch the kernels for tensors whose offsets need 64 bits, inside `observe(name)`.

    Only "meta" tensors are that large without memory, and autograd does not hand those to the kernels.
    """
    from vae_fast.kernels import categorical, gaussian, reconstruction

    def meta():
        return torch.empty(2**16, 2**15, device="meta")

    seed, kl, scalar = (torch.empty(size, device="meta") for size in (1, 2**16, ()))
    with observe("sample_kl, sample, more than 2^31 elements: forward"):
        gaussian.forward(meta(), meta(), seed=seed.long(), reduction="sample")
    with observe("sample_kl, sample, more than 2^31 elements: backward"):
        gaussian.backward(meta(), kl, meta(), meta(), seed=seed.long(), reduction="sample")
    with observe("reconstruction_loss, categorical, batchmean, more than 2^31 logits: forward"):
        categorical.forward(meta(), meta()[:, 0].long(), None, "batchmean", True)
    for name, row in [(name, row) for name, row in LIKELIHOODS.items() if row.domain != "classes"]:
        params = [meta() for _ in row.parameters]
        wanted = [True for _ in params]
        with observe(f"reconstruction_loss, {name}, batchmean, more than 2^31 elements: forward"):
            reconstruction.forward(params, meta(), name, "batchmean", wanted)
        with observe(f"reconstruction_loss, {name}, batchmean, more than 2^31 elements: backward"):
            reconstruction.scale_(params, scalar)


# Each makes `count` tensors of one layout, with two full tiles or more, so that the path without masks is there.
def contiguous(*shape):
    return lambda dtype, count: [_filled(dtype, *shape) for _ in range(count)]


def chunks(*shape, memory_format=torch.contiguous_format):
    """The parts of one tensor along dimension 1, each of `shape`."""

    def make(dtype, count):
        whole = _filled(dtype, shape[0], count * shape[1], *shape[2:])
        return list(whole.to(memory_format=memory_format).chunk(count, 1))

    return make


def unaligned(*shape):
    """One element after an address that is a multiple of 16 bytes."""
    size = torch.Size(shape).numel()
    return lambda dtype, count: [_filled(dtype, size + 1)[1:].view(shape) for _ in range(count)]


def mixed(*shape):
    """The last tensor is transposed against the others."""
    return lambda dtype, count: [
        *(_filled(dtype, *shape) for _ in range(count - 1)),
        _filled(dtype, *reversed(shape)).permute(*reversed(range(len(shape)))),
    ]


LAYOUTS = {
    "rows": contiguous(32, 256),
    "chunks": chunks(32, 256),
    "chunks of images": chunks(8, 4, 16, 16),
    "chunks of channels_last": chunks(8, 4, 16, 16, memory_format=torch.channels_last),  # latents of Stable Diffusion
    "chunks of 16 channels_last": chunks(2, 16, 16, 16, memory_format=torch.channels_last),  # of Flux
    "20 columns": contiguous(512, 20),  # latents of a small VAE: as rows no tile is full
    "long rows": contiguous(2, 8192),  # one sample takes several programs
    "784 columns": contiguous(12, 784),  # MNIST: as rows no tile is full
    "primes": contiguous(257, 31),
    "unaligned": unaligned(32, 256),
    "transposed": mixed(32, 256),
}
ORDINARY = "rows"
MASKED = [(torch.float32, layout) for layout in ("784 columns", "primes", "transposed")]


def latent_workloads():
    """Sample and KL."""
    ops = ("sample_kl", "reparameterize", "gaussian_kl")
    for dtype in checks.FLOATS:
        yield from (_latent(op, dtype=dtype, main=op == "sample_kl") for op in ops)
    for dtype in COMMON:
        for layout in LAYOUTS:
            yield _latent("sample_kl", dtype=dtype, layout=layout, main=(dtype, layout) in MASKED)
            yield _latent("gaussian_kl", dtype=dtype, layout=layout)
            if "chunks" in layout:
                yield _latent("sample_kl_packed", dtype=dtype, layout=layout, main=layout == "chunks")
        for prior in ("fixed prior", "learned prior", "prior of one row"):
            yield from (_latent(op, prior=prior, dtype=dtype) for op in ("sample_kl", "gaussian_kl"))
        yield _latent("sample_kl", prior="learned prior", clamp=CLAMP, dtype=dtype, main=dtype == torch.float32)
        yield from (_latent(op, clamp=CLAMP, dtype=dtype) for op in ops)
        yield from (_latent(op, eps=True, dtype=dtype) for op in ops[:2])
        workload = _latent("sample_kl", dtype=dtype)
        for output, used in (("only z used", 0), ("only kl used", 1)):
            yield replace(workload, options=f"{workload.options}, {output}", used=used)
    for reduction in checks.LATENT_REDUCTIONS:
        yield from (_latent(op, reduction, main=reduction == "latent") for op in ("sample_kl", "gaussian_kl"))
    yield _latent("sample_kl", "batchmean", dtype=torch.bfloat16)
    yield _latent("sample_kl", "batchmean", layout="primes")


def _latent(op, reduction=None, *, prior="", clamp=None, eps=False, dtype=torch.float32, layout=ORDINARY, main=False):
    """`reduction` None: that of the op's default."""
    options = {"logvar_clamp": clamp}
    if op != "reparameterize":
        options["reduction"] = reduction or ("batchmean" if op == "gaussian_kl" else "sample")

    def make():
        pair = LAYOUTS[layout](dtype, 2)
        shape = pair[0].shape
        posterior = [_joined(pair)] if op == "sample_kl_packed" else pair
        priors = [_filled(dtype, *((1, *shape[1:]) if "row" in prior else shape)) for _ in range(2)] if prior else []
        noise = [] if op == "gaussian_kl" else [_filled(dtype, *shape) if eps else torch.tensor([SEED])]
        learned = prior != "fixed prior"
        leaves = [_leaf(t) for t in (*posterior, *(priors if learned else ()))]
        return leaves, [*(() if learned else priors), *noise]

    def function(*tensors):
        tensors, given = list(tensors), dict(options)
        if op != "gaussian_kl":
            given["eps" if eps else "seed"] = tensors.pop()
        if prior:
            given["prior"] = tensors.pop(-2), tensors.pop(-1)
        return getattr(vae_fast, op)(*tensors, **given)

    words = (options.get("reduction"), prior, clamp and "clamp", eps and "eps")
    return Workload(op, _joined_words(words), _name(dtype), layout, make, function, main=main)


def reconstruction_workloads():
    """Each likelihood."""
    for name, row in LIKELIHOODS.items():
        for dtype in checks.FLOATS:
            yield _reconstruction(name, dtype=dtype, main=dtype in COMMON)
        yield _reconstruction(
            name, dtype=torch.bfloat16, target=torch.int32 if row.domain == "classes" else torch.float32
        )
        for dtype in COMMON:
            for layout in LAYOUTS:
                yield _reconstruction(name, dtype=dtype, layout=layout, main=(dtype, layout) in MASKED)
            for layout in ("rows", "chunks", "784 columns", "long rows", "primes"):
                yield _reconstruction(name, "sample", dtype=dtype, layout=layout, main=layout == ORDINARY)
            yield _reconstruction(name, "none", dtype=dtype)
            for grads in range(len(row.parameters)):
                yield _reconstruction(name, grads=grads, dtype=dtype)
        for reduction in checks.REDUCTIONS:
            yield _reconstruction(name, reduction)
        for layout in CLASS_LAYOUTS if row.domain == "classes" else ():
            for dtype in COMMON:
                yield _reconstruction(name, dtype=dtype, layout=layout, main=layout != "32768 classes")


def _reconstruction(
    likelihood, reduction="batchmean", *, grads=None, dtype=torch.float32, target=None, layout=ORDINARY, main=False
):
    """grads: how many of the parameters, the first ones, require a gradient; None for all."""
    count = len(LIKELIHOODS[likelihood].parameters)

    def make():
        return _outputs(likelihood, layout, dtype, target, grads)

    def function(*tensors):
        return vae_fast.reconstruction_loss(_output(tensors[:-1]), tensors[-1], likelihood, reduction=reduction)

    words = (target and f"{_name(target)} target", None if grads is None else f"{grads} of {count} gradients")
    options = _joined_words((likelihood, reduction, *words))
    return Workload("reconstruction_loss", options, _name(dtype), layout, make, function, main=main)


def elbo_workloads():
    """The whole loss: with either kind of kl and beta, and from any of its outputs."""
    for name, row in LIKELIHOODS.items():  # that of classes is composed with PyTorch's operators
        yield from (_elbo(name, dtype=dtype, main=row.domain != "classes") for dtype in COMMON)
        yield _elbo(name, averaged=True, used=None)
        yield _elbo(name, beta_tensor=True, used=None)


def _elbo(likelihood, *, dtype=torch.float32, averaged=False, beta_tensor=False, used=0, main=False):
    def make():
        leaves, constants = _outputs(likelihood, ORDINARY, dtype, None, None)
        kl = torch.ones(() if averaged else len(constants[0])).requires_grad_()
        return [kl, *leaves], [*constants, *([torch.tensor(0.5)] if beta_tensor else [])]

    def function(kl, *tensors):
        tensors = list(tensors)
        beta = tensors.pop() if beta_tensor else 0.5
        return vae_fast.elbo_loss(_output(tensors[:-1]), tensors[-1], kl, likelihood=likelihood, beta=beta)

    words = (likelihood, "averaged kl" if averaged else "", "beta tensor" if beta_tensor else "")
    options = ", ".join(filter(None, (*words, "every output used" if used is None else "")))
    return Workload("elbo_loss", options, _name(dtype), ORDINARY, make, function, used, main)


def _outputs(likelihood, layout, dtype, target_dtype, grads):
    """(The parameters, the target). Where the target is classes, the last dimension is theirs."""
    row = LIKELIHOODS[likelihood]
    *params, target = {**LAYOUTS, **CLASS_LAYOUTS}[layout](dtype, len(row.parameters) + 1)
    if row.domain == "classes":
        params, target, target_dtype = [target], target[..., 0], target_dtype or torch.int64
    leaves = [_leaf(p) if grads is None or k < grads else p for k, p in enumerate(params)]
    return leaves, [target.to(target_dtype or dtype)]


def _output(params):
    return params[0] if len(params) == 1 else tuple(params)


def _joined(halves):
    """The tensor of which these are the two chunks along dimension 1."""
    first = halves[0]
    return first.as_strided((first.shape[0], 2 * first.shape[1], *first.shape[2:]), first.stride())


def _joined_words(words):
    return ", ".join(filter(None, words))


def _leaf(tensor):
    return tensor.detach().requires_grad_()


def _filled(dtype, *shape):
    return torch.full(shape, 0.5, dtype=dtype)


def _name(dtype):
    return str(dtype).removeprefix("torch.")
