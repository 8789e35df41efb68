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
from vae_fast.benchmarks.layouts import LAYOUTS, MASKED, ORDINARY, filled
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.ops import backend

COMMON = (torch.float32, torch.bfloat16)
CORE = ("bernoulli", "mse", "gaussian")  # with a logarithm, without, and with two parameters
SEED = 2**40 + 1
CLAMP = (-30.0, 20.0)  # that of diffusers
SAMPLES = 5  # of Burda et al. 2016
SCALES = ("logstd", "std", "softplus", vae_fast.SoftClamp(5.0), vae_fast.SoftClamp(5.0, epsilon=0.01))  # beside logvar


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
    for workload in (*latent_workloads(), *reconstruction_workloads(), *target_workloads(), *elbo_workloads()):
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
        for scale in SCALES:
            yield from (_latent(op, scale=scale, dtype=dtype, main=op == "sample_kl") for op in ops)
            yield _latent("sample_kl", prior="learned prior", scale=scale, dtype=dtype)
            yield _latent("sample_kl", scale=scale, kl="monte_carlo", dtype=dtype)
        for prior in ("", "learned prior"):
            yield _latent("sample_kl", prior=prior, kl="monte_carlo", dtype=dtype, main=not prior)
        yield _latent("sample_kl", prior="learned prior", scale="softplus", kl="monte_carlo", dtype=dtype)
        yield _latent("sample_kl_packed", scale="softplus", kl="monte_carlo", dtype=dtype, layout="chunks")
        for kl in checks.KLS:
            yield _latent("sample_kl", kl=kl, samples=SAMPLES, dtype=dtype, main=kl == "monte_carlo")
        yield _latent("sample_kl", prior="learned prior", kl="monte_carlo", samples=SAMPLES, dtype=dtype)
        yield from (_latent("reparameterize", samples=SAMPLES, eps=eps, dtype=dtype) for eps in (False, True))
    for reduction in checks.LATENT_REDUCTIONS:
        yield from (_latent(op, reduction, main=reduction == "latent") for op in ("sample_kl", "gaussian_kl"))
    yield _latent("sample_kl", "batchmean", dtype=torch.bfloat16)
    yield _latent("sample_kl", "batchmean", layout="primes")


def _latent(
    op,
    reduction=None,
    *,
    prior="",
    clamp=None,
    scale="logvar",
    kl="closed_form",
    samples=None,
    eps=False,
    dtype=torch.float32,
    layout=ORDINARY,
    main=False,
):
    """`reduction` None: that of the op's default."""
    options = {"logvar_clamp": clamp, "scale": scale}
    if op.startswith("sample_kl"):
        options["kl"] = kl
    if op != "gaussian_kl":
        options["num_samples"] = samples
    if op != "reparameterize":
        options["reduction"] = reduction or ("batchmean" if op == "gaussian_kl" else "sample")

    def make():
        pair = LAYOUTS[layout](dtype, 2)
        shape = pair[0].shape
        posterior = [_joined(pair)] if op == "sample_kl_packed" else pair
        lead = () if samples is None else (samples,)
        priors = [filled(dtype, *((1, *shape[1:]) if "row" in prior else shape)) for _ in range(2)] if prior else []
        noise = [] if op == "gaussian_kl" else [filled(dtype, *lead, *shape) if eps else torch.tensor([SEED])]
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

    named = (str(scale) if scale != "logvar" else "", kl if kl != "closed_form" else "")
    words = (
        options.get("reduction"),
        prior,
        clamp and "clamp",
        *named,
        samples and f"{samples} samples",
        eps and "eps",
    )
    return Workload(op, _joined_words(words), _name(dtype), layout, make, function, main=main)


def reconstruction_workloads():
    """Each likelihood: those that span what a kernel can be in every option, the others where their formula counts."""
    for name, row in LIKELIHOODS.items():
        if row.domain == "classes":
            yield from _class_workloads(name)
            continue
        for dtype in COMMON:
            yield _reconstruction(name, dtype=dtype, main=True)
            yield _reconstruction(name, "sample", dtype=dtype, main=name in CORE)
            yield _reconstruction(name, "none", dtype=dtype)
            for grads in range(len(row.parameters)):
                yield _reconstruction(name, grads=grads, dtype=dtype)
        yield _reconstruction(name, dtype=torch.float64)
        yield _reconstruction(name, layout="784 columns", main=name in CORE)
        if len(row.parameters) > 1:
            yield _reconstruction(name, shared=True)
    for name in CORE:
        yield _reconstruction(name, dtype=torch.float16)
        yield _reconstruction(name, dtype=torch.bfloat16, target=torch.float32)
        for dtype in COMMON:
            for layout in LAYOUTS:
                yield _reconstruction(name, dtype=dtype, layout=layout, main=(dtype, layout) in MASKED)
            for layout in ("chunks", "784 columns", "long rows", "primes"):
                yield _reconstruction(name, "sample", dtype=dtype, layout=layout)
        for reduction in checks.REDUCTIONS:
            yield _reconstruction(name, reduction)


def _class_workloads(name):
    for dtype in checks.FLOATS:
        yield _reconstruction(name, dtype=dtype, main=dtype in COMMON)
    yield _reconstruction(name, dtype=torch.bfloat16, target=torch.int32)
    for dtype in COMMON:
        for layout in LAYOUTS:
            yield _reconstruction(name, dtype=dtype, layout=layout)
        for layout in CLASS_LAYOUTS:
            yield _reconstruction(name, dtype=dtype, layout=layout, main=layout != "32768 classes")
        yield _reconstruction(name, grads=0, dtype=dtype)
    for reduction in checks.REDUCTIONS:
        yield _reconstruction(name, reduction)


def target_workloads():
    """What may be done to a target: read in its own dtype, scaled, weighted, sampled."""
    for name in CORE:
        yield _reconstruction(name, dtype=torch.bfloat16, target=torch.uint8, main=True)
        yield _reconstruction(name, target=torch.uint8)
        yield _reconstruction(name, dtype=torch.bfloat16, target=torch.int32)
        yield _reconstruction(name, scale=0.5)
        for weight in WEIGHTS:
            yield _reconstruction(name, weight=weight, main=weight == "weight a sample")
        yield _reconstruction(name, "sample", dtype=torch.bfloat16, weight="mask")
        yield _reconstruction(name, "none", weight="weight a sample")
        yield _elbo(name, weight="weight a sample")
    for layout in ("rows", "chunks", "784 columns", "primes", "transposed"):
        yield _reconstruction("bernoulli", layout=layout, binarize=True, main=layout == "rows")
    yield _reconstruction("bernoulli", dtype=torch.bfloat16, target=torch.uint8, binarize=True)
    yield _reconstruction("bernoulli", "sample", binarize=True, weight="mask")


WEIGHTS = {  # name -> (dtype, its shape for a target's)
    "weight a sample": (torch.float32, lambda shape: shape[:1]),
    "weight an element": (torch.float32, lambda shape: shape),
    "weight a feature": (torch.float32, lambda shape: (1, *shape[1:])),
    "mask": (torch.bool, lambda shape: shape),
}


def _reconstruction(
    likelihood, reduction="batchmean", *, grads=None, dtype=torch.float32, target=None, layout=ORDINARY, main=False,
    scale=None, weight="", binarize=False, shared=False,
):  # fmt: skip
    """grads: how many of the parameters, the first ones, require a gradient; None for all. weight: in WEIGHTS.

    shared: the parameters beyond the first are one number each.
    """
    count = len(LIKELIHOODS[likelihood].parameters)

    def make():
        leaves, constants = _outputs(likelihood, layout, dtype, target, grads, weight)
        leaves[1:] = (_leaf(torch.ones((), dtype=dtype)) for _ in leaves[1:]) if shared else leaves[1:]
        return leaves, [*constants, *([torch.tensor([SEED])] if binarize else [])]

    def function(*tensors):
        tensors, given = list(tensors), {"reduction": reduction, "target_scale": scale}
        if binarize:
            given |= {"binarize": True, "seed": tensors.pop()}
        if weight:
            given["weight"] = tensors.pop()
        return vae_fast.reconstruction_loss(_output(tensors[:-1]), tensors[-1], likelihood, **given)

    words = (target and f"{_name(target)} target", None if grads is None else f"{grads} of {count} gradients")
    words = (*words, scale and "target_scale", weight, binarize and "binarize", shared and "shared parameters")
    options = _joined_words((likelihood, reduction, *words))
    return Workload("reconstruction_loss", options, _name(dtype), layout, make, function, main=main)


def elbo_workloads():
    """The whole loss: with either kind of kl and beta, and from any of its outputs."""
    for name in CORE:
        yield from (_elbo(name, dtype=dtype, main=True) for dtype in COMMON)
        yield _elbo(name, averaged=True, used=None)
        yield _elbo(name, beta_tensor=True, used=None)


def _elbo(likelihood, *, dtype=torch.float32, averaged=False, beta_tensor=False, weight="", used=0, main=False):
    def make():
        leaves, constants = _outputs(likelihood, ORDINARY, dtype, None, None, weight)
        kl = torch.ones(() if averaged else len(constants[0])).requires_grad_()
        return [kl, *leaves], [*constants, *([torch.tensor(0.5)] if beta_tensor else [])]

    def function(kl, *tensors):
        tensors = list(tensors)
        given = {"beta": tensors.pop() if beta_tensor else 0.5, "weight": tensors.pop() if weight else None}
        return vae_fast.elbo_loss(_output(tensors[:-1]), tensors[-1], kl, likelihood=likelihood, **given)

    words = (likelihood, "averaged kl" if averaged else "", "beta tensor" if beta_tensor else "", weight)
    options = ", ".join(filter(None, (*words, "every output used" if used is None else "")))
    return Workload("elbo_loss", options, _name(dtype), ORDINARY, make, function, used, main)


def _outputs(likelihood, layout, dtype, target_dtype, grads, weight=""):
    """(The parameters, the target and the weight, if any). A target of classes lacks their dimension, the last."""
    row = LIKELIHOODS[likelihood]
    *params, target = {**LAYOUTS, **CLASS_LAYOUTS}[layout](dtype, len(row.parameters) + 1)
    if row.domain == "classes":
        params, target, target_dtype = [target], target[..., 0], target_dtype or torch.int64
    leaves = [_leaf(p) if grads is None or k < grads else p for k, p in enumerate(params)]
    weights = []
    if weight:
        kind, shape = WEIGHTS[weight]
        weights = [torch.ones(shape(target.shape), dtype=kind)]
    return leaves, [target.to(target_dtype or dtype), *weights]


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


def _name(dtype):
    return str(dtype).removeprefix("torch.")
