"""The workloads of the latents: the sample, its KL, and both at once."""

import itertools

import torch

import vae_fast
from vae_fast import checks
from vae_fast.benchmarks.formulas import CLAMP
from vae_fast.benchmarks.layouts import LAYOUTS, MASKED, ORDINARY, filled
from vae_fast.benchmarks.workload import COMMON, SEED, Workload, joined_words, leaf

SAMPLES = 5  # of Burda et al. 2016
SCALES = ("logstd", "std", "softplus", vae_fast.SoftClamp(5.0), vae_fast.SoftClamp(5.0, epsilon=0.01))  # beside logvar


def latent_workloads():
    """Each option, layout and dtype."""
    ops = ("sample_kl", "reparameterize", "gaussian_kl")
    for dtype in checks.FLOATS:
        yield from (latent_call(op, dtype=dtype, main=op == "sample_kl") for op in ops)
    yield latent_call("sample_kl", clamp=CLAMP, dtype=torch.float64, main=True)  # PTX clamps float32 alone
    for dtype, beside in itertools.permutations(COMMON):
        yield from (latent_call(op, dtype=dtype, beside=beside, main=op == "sample_kl") for op in ops)
        yield latent_call("sample_kl", prior="prior of one row", dtype=dtype, beside=beside)
    for dtype in COMMON:
        for layout in LAYOUTS:
            yield latent_call("sample_kl", dtype=dtype, layout=layout, main=(dtype, layout) in MASKED)
            if dtype == torch.float32:
                yield latent_call("gaussian_kl", dtype=dtype, layout=layout)
            if "chunks" in layout:
                yield latent_call("sample_kl_packed", dtype=dtype, layout=layout, main=layout == "chunks")
        for prior in ("fixed prior", "learned prior", "prior of one row"):
            yield from (latent_call(op, prior=prior, dtype=dtype) for op in ("sample_kl", "gaussian_kl"))
        yield latent_call("sample_kl", prior="learned prior", clamp=CLAMP, dtype=dtype, main=dtype == torch.float32)
        yield from (latent_call(op, clamp=CLAMP, dtype=dtype) for op in ops)
        yield from (latent_call(op, eps=True, dtype=dtype) for op in ops[:2])
        yield from (latent_call("sample_kl", used=used, dtype=dtype) for used in (0, 1))
        for scale in SCALES:
            yield from (latent_call(op, scale=scale, dtype=dtype, main=op == "sample_kl") for op in ops)
            yield latent_call("sample_kl", prior="learned prior", scale=scale, dtype=dtype)
            yield latent_call("sample_kl", scale=scale, kl="monte_carlo", dtype=dtype)
        for prior in ("", "learned prior"):
            yield latent_call("sample_kl", prior=prior, kl="monte_carlo", dtype=dtype, main=not prior)
        yield latent_call("sample_kl", prior="learned prior", scale="softplus", kl="monte_carlo", dtype=dtype)
        yield latent_call("sample_kl_packed", scale="softplus", kl="monte_carlo", dtype=dtype, layout="chunks")
        for kl in checks.KLS:
            yield latent_call("sample_kl", kl=kl, samples=SAMPLES, dtype=dtype, main=kl == "monte_carlo")
        yield latent_call("sample_kl", prior="learned prior", kl="monte_carlo", samples=SAMPLES, dtype=dtype)
        yield from (latent_call("reparameterize", samples=SAMPLES, eps=eps, dtype=dtype) for eps in (False, True))
    for reduction in checks.LATENT_REDUCTIONS:
        yield from (latent_call(op, reduction, main=reduction == "latent") for op in ("sample_kl", "gaussian_kl"))
    yield latent_call("sample_kl", "batchmean", dtype=torch.bfloat16)
    yield latent_call("sample_kl", "batchmean", layout="primes")


def latent_call(
    op,
    reduction=None,
    *,
    prior="",
    clamp=None,
    scale="logvar",
    kl="closed_form",
    samples=None,
    eps=False,
    used=None,
    dtype=torch.float32,
    beside=None,
    layout=ORDINARY,
    main=False,
):
    """`reduction` None: that of the op's default. used: 0 for z alone, 1 for the kl alone, None for both.

    beside: the dtype of all parameters but mu, where it is another.
    """
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
        if beside:
            pair[1] = pair[1].to(beside)
        shape_of_prior = (1, *shape[1:]) if "row" in prior else shape
        priors = [filled(beside or dtype, *shape_of_prior) for _ in range(2)] if prior else []
        noise = [] if op == "gaussian_kl" else [filled(dtype, *lead, *shape) if eps else torch.tensor([SEED])]
        learned = prior != "fixed prior"
        leaves = [leaf(t) for t in (*posterior, *(priors if learned else ()))]
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
        used is not None and f"only {('z', 'kl')[used]} used",
        beside and f"{checks.dtype_name(beside)} beside mu",
    )
    return Workload(op, joined_words(words), checks.dtype_name(dtype), layout, make, function, used, main)


def _joined(halves):
    """The tensor of which these are the two chunks along dimension 1."""
    first = halves[0]
    return first.as_strided((first.shape[0], 2 * first.shape[1], *first.shape[2:]), first.stride())
