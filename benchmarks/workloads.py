"""The calls that users make, in the options, dtypes and layouts for which a launcher chooses another kernel.

One list for two tools: the audit records the launches of these calls, and the traffic table interprets them. So the
variants of a kernel come from its launchers, and a new row in the table of likelihoods is audited without a word here.
Each option is varied by itself, in two dtypes, and so is each layout: options are compiled in or out independently.
"""

from dataclasses import replace

import torch

import vae_fast
from vae_fast import checks
from vae_fast.benchmarks.layouts import LAYOUTS, MASKED, ORDINARY, filled
from vae_fast.benchmarks.output_workloads import elbo_workloads, reconstruction_workloads, target_workloads
from vae_fast.benchmarks.workload import COMMON, SEED, Workload, joined_words, leaf, name_of
from vae_fast.likelihoods import LIKELIHOODS

CLAMP = (-30.0, 20.0)  # that of diffusers
SAMPLES = 5  # of Burda et al. 2016
SCALES = ("logstd", "std", "softplus", vae_fast.SoftClamp(5.0), vae_fast.SoftClamp(5.0, epsilon=0.01))  # beside logvar


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
        leaves = tuple(meta() for _ in row.parameters)
        params = row.with_constants(leaves)
        wanted = [k < len(leaves) for k, _ in enumerate(params)]
        with observe(f"reconstruction_loss, {name}, batchmean, more than 2^31 elements: forward"):
            reconstruction.forward(params, meta(), name, "batchmean", wanted)
        with observe(f"reconstruction_loss, {name}, batchmean, more than 2^31 elements: backward"):
            reconstruction.scale_(leaves, scalar)


def latent_workloads():
    """Sample and KL."""
    ops = ("sample_kl", "reparameterize", "gaussian_kl")
    for dtype in checks.FLOATS:
        yield from (_latent(op, dtype=dtype, main=op == "sample_kl") for op in ops)
    yield _latent("sample_kl", clamp=CLAMP, dtype=torch.float64, main=True)  # PTX clamps float32 alone
    for dtype in COMMON:
        for layout in LAYOUTS:
            yield _latent("sample_kl", dtype=dtype, layout=layout, main=(dtype, layout) in MASKED)
            if dtype == torch.float32:
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
    )
    return Workload(op, joined_words(words), name_of(dtype), layout, make, function, main=main)


def _joined(halves):
    """The tensor of which these are the two chunks along dimension 1."""
    first = halves[0]
    return first.as_strided((first.shape[0], 2 * first.shape[1], *first.shape[2:]), first.stride())
