"""The workloads of what a decoder gives: the reconstruction loss of each likelihood, and the whole loss."""

import itertools

import torch

import vae_fast
from vae_fast import checks
from vae_fast.benchmarks.formulas import as_output
from vae_fast.benchmarks.layouts import CLASS_LAYOUTS, LAYOUTS, MASKED, ORDINARY
from vae_fast.benchmarks.workload import COMMON, SEED, Workload, joined_words, leaf
from vae_fast.likelihoods import LIKELIHOODS

CORE = ("bernoulli", "mse", "gaussian")  # with a logarithm, without, and with two parameters


def reconstruction_workloads():
    """Each likelihood: those that span what a kernel can be in every option, the others where their formula counts."""
    for name, row in LIKELIHOODS.items():
        if row.domain == "classes":
            yield from _class_workloads(name)
            continue
        for dtype in COMMON:
            yield reconstruction_call(name, dtype=dtype, main=True)
            yield reconstruction_call(name, "sample", dtype=dtype, main=name in CORE)
            yield reconstruction_call(name, "none", dtype=dtype)
            for grads in range(len(row.parameters)):
                yield reconstruction_call(name, grads=grads, dtype=dtype)
        yield reconstruction_call(name, dtype=torch.float64)
        yield reconstruction_call(name, layout="784 columns", main=name in CORE)
        if len(row.parameters) > 1:
            for shared in ("one number", "a number a feature"):
                yield reconstruction_call(name, shared=shared)
            for shared in ("", "a number a feature"):
                yield reconstruction_call(name, dtype=torch.bfloat16, beside=torch.float32, shared=shared)
    yield reconstruction_call("gaussian", beside=torch.bfloat16)
    yield from _shared_workloads()
    for name in CORE:
        yield reconstruction_call(name, dtype=torch.float16)
        yield reconstruction_call(name, dtype=torch.bfloat16, target=torch.float32)
        for reduction in checks.REDUCTIONS:
            yield reconstruction_call(name, reduction)
    for name, dtype in itertools.product(("bernoulli", "gaussian"), COMMON):  # with one parameter, and with two
        for layout in LAYOUTS:
            yield reconstruction_call(name, dtype=dtype, layout=layout, main=(dtype, layout) in MASKED)
        for layout in ("chunks", "784 columns", "long rows", "primes"):
            yield reconstruction_call(name, "sample", dtype=dtype, layout=layout)


def _shared_workloads():
    """Where a parameter's numbers are shared by whole tiles, by rows, by some neighbours, and by both."""
    mixed = {"dtype": torch.bfloat16, "beside": torch.float32, "layout": "chunks of images"}
    for shared in SHARED:
        yield reconstruction_call("gaussian", **mixed, shared=shared, main=shared == "a number a channel")
    for dtype in COMMON:
        for shared in SHARED:
            main = shared == "a number a channel"
            yield reconstruction_call("gaussian", dtype=dtype, layout="chunks of images", shared=shared, main=main)
            yield reconstruction_call("gaussian", dtype=dtype, layout="chunks of channels_last", shared=shared)
        for layout in ("chunks", "long rows", "784 columns"):
            yield reconstruction_call("gaussian", dtype=dtype, layout=layout, shared="a number a feature")
        for reduction in ("sample", "none"):
            yield reconstruction_call("gaussian", reduction, dtype=dtype, shared="a number a feature")


def _class_workloads(name):
    for dtype in checks.FLOATS:
        yield reconstruction_call(name, dtype=dtype, main=dtype in COMMON)
    yield reconstruction_call(name, dtype=torch.bfloat16, target=torch.int32)
    for dtype in COMMON:
        for layout in LAYOUTS if dtype == torch.float32 else ():
            yield reconstruction_call(name, dtype=dtype, layout=layout)
        for layout in CLASS_LAYOUTS:
            yield reconstruction_call(name, dtype=dtype, layout=layout, main=layout in ("classes second", "10 classes"))
        yield reconstruction_call(name, grads=0, dtype=dtype)
        for weight in WEIGHTS:
            yield reconstruction_call(name, dtype=dtype, weight=weight, main=weight == "weight a sample")
    for layout in ("chunks of images", *CLASS_LAYOUTS):
        yield reconstruction_call(name, layout=layout, weight="weight a sample", main=layout == "10 classes")
        yield reconstruction_call(name, "sample", layout=layout, weight="mask")
    for reduction in checks.REDUCTIONS:
        yield reconstruction_call(name, reduction)


def target_workloads():
    """What may be done to a target: read in its own dtype, scaled, weighted, sampled."""
    for name in CORE:
        yield reconstruction_call(name, dtype=torch.bfloat16, target=torch.uint8, main=True)
        yield reconstruction_call(name, target=torch.uint8)
        yield reconstruction_call(name, dtype=torch.bfloat16, target=torch.int32)
        yield reconstruction_call(name, scale=0.5)
        for weight in WEIGHTS:
            yield reconstruction_call(name, weight=weight, main=weight == "weight a sample")
        yield reconstruction_call(name, "sample", dtype=torch.bfloat16, weight="mask")
        yield reconstruction_call(name, "none", weight="weight a sample")
        yield _elbo(name, weight="weight a sample")
    for layout in ("rows", "chunks", "784 columns", "primes", "transposed"):
        yield reconstruction_call("bernoulli", layout=layout, binarize=True, main=layout == "rows")
    yield reconstruction_call("bernoulli", dtype=torch.bfloat16, target=torch.uint8, binarize=True)
    yield reconstruction_call("bernoulli", "sample", binarize=True, weight="mask")


WEIGHTS = {  # name -> (dtype, its shape for a target's)
    "weight a sample": (torch.float32, lambda shape: shape[:1]),
    "weight an element": (torch.float32, lambda shape: shape),
    "weight a feature": (torch.float32, lambda shape: (1, *shape[1:])),
    "mask": (torch.bool, lambda shape: shape),
}


SHARED = {  # name -> the shape of the parameters beyond the first, for the first's
    "one number": lambda shape: (),
    "a number a feature": lambda shape: shape[-1:],
    "a number a channel": lambda shape: (shape[1], *(1 for _ in shape[2:])),
}


def reconstruction_call(
    likelihood, reduction="batchmean", *, grads=None, dtype=torch.float32, target=None, layout=ORDINARY, main=False,
    scale=None, weight="", binarize=False, shared="", beside=None,
):  # fmt: skip
    """grads: how many of the parameters, the first ones, require a gradient; None for all. weight: in WEIGHTS.

    shared: what the parameters beyond the first are, in SHARED; beside: their dtype, where it is another.
    """
    count = len(LIKELIHOODS[likelihood].parameters)

    def make():
        leaves, constants = _outputs(likelihood, layout, dtype, target, grads, weight, shared, beside)
        return leaves, [*constants, *([torch.tensor([SEED])] if binarize else [])]

    def function(*tensors):
        tensors, given = list(tensors), {"reduction": reduction, "target_scale": scale}
        if binarize:
            given |= {"binarize": True, "seed": tensors.pop()}
        if weight:
            given["weight"] = tensors.pop()
        return vae_fast.reconstruction_loss(as_output(tensors[:-1]), tensors[-1], likelihood, **given)

    words = (
        target and f"{checks.dtype_name(target)} target",
        None if grads is None else f"{grads} of {count} gradients",
    )
    words = (*words, scale and "target_scale", weight, binarize and "binarize", shared)
    words = (*words, beside and f"{checks.dtype_name(beside)} beside the first")
    options = joined_words((likelihood, reduction, *words))
    return Workload("reconstruction_loss", options, checks.dtype_name(dtype), layout, make, function, main=main)


def elbo_workloads():
    """The whole loss: with either kind of kl and beta, and from any of its outputs."""
    for name in CORE:
        yield from (_elbo(name, dtype=dtype, main=True) for dtype in COMMON)
        yield _elbo(name, averaged=True, used=None)
        yield _elbo(name, beta_tensor=True, used=None)
    for shared in ("one number", "a number a feature"):
        yield _elbo("gaussian", shared=shared, main=True)


def _elbo(
    likelihood, *, dtype=torch.float32, averaged=False, beta_tensor=False, weight="", shared="", used=0, main=False
):
    def make():
        leaves, constants = _outputs(likelihood, ORDINARY, dtype, None, None, weight, shared)
        kl = torch.ones(() if averaged else len(constants[0])).requires_grad_()
        return [kl, *leaves], [*constants, *([torch.tensor(0.5)] if beta_tensor else [])]

    def function(kl, *tensors):
        tensors = list(tensors)
        given = {"beta": tensors.pop() if beta_tensor else 0.5, "weight": tensors.pop() if weight else None}
        return vae_fast.elbo_loss(as_output(tensors[:-1]), tensors[-1], kl, likelihood=likelihood, **given)

    words = (likelihood, "averaged kl" if averaged else "", "beta tensor" if beta_tensor else "", weight, shared)
    options = joined_words((*words, "every output used" if used is None else ""))
    return Workload("elbo_loss", options, checks.dtype_name(dtype), ORDINARY, make, function, used, main)


def _outputs(likelihood, layout, dtype, target_dtype, grads, weight, shared, beside=None):
    """(The parameters, the target and the weight, if any). A target of classes lacks their dimension, the last."""
    row = LIKELIHOODS[likelihood]
    *params, target = {**LAYOUTS, **CLASS_LAYOUTS}[layout](dtype, len(row.parameters) + 1)
    if row.domain == "classes":
        params, target, target_dtype = [target], target[..., 0], target_dtype or torch.int64
    if shared:
        params[1:] = (torch.ones(SHARED[shared](target.shape), dtype=dtype) for _ in params[1:])
    params[1:] = (p.to(beside or dtype) for p in params[1:])
    leaves = [leaf(p) if grads is None or k < grads else p for k, p in enumerate(params)]
    weights = []
    if weight:
        kind, shape = WEIGHTS[weight]
        weights = [torch.ones(shape(target.shape), dtype=kind)]
    return leaves, [target.to(target_dtype or dtype), *weights]
