"""The workloads in which options meet: each two of the options, layouts and dtypes, in each two of their values.

What costs nothing by itself can cost registers together, so the machine code of pairs is looked at too. Left out are
packed moments, whose kernels are those of chunks; the whole loss, whose kernel is that of the reconstruction; and, for
the many likelihoods, layouts that differ from one of those below in strides alone.
"""

import torch

from vae_fast import checks
from vae_fast.benchmarks.formulas import CLAMP
from vae_fast.benchmarks.latent_workloads import SAMPLES, SCALES, latent_call
from vae_fast.benchmarks.layouts import CLASS_LAYOUTS, LAYOUTS, ORDINARY
from vae_fast.benchmarks.output_workloads import SHARED, WEIGHTS, reconstruction_call
from vae_fast.benchmarks.pairs import covering
from vae_fast.benchmarks.workload import COMMON
from vae_fast.likelihoods import LIKELIHOODS

LATENT = {
    "layout": tuple(LAYOUTS),
    "scale": ("logvar", *SCALES),
    "reduction": checks.LATENT_REDUCTIONS,
    "dtype": checks.FLOATS,
    "beside": (None, *COMMON),
    "prior": ("", "fixed prior", "learned prior", "prior of one row"),
    "op": ("sample_kl", "gaussian_kl", "reparameterize"),
    "used": (None, 0, 1),
    "kl": checks.KLS,
    "clamp": (None, CLAMP),
    "samples": (None, SAMPLES),
    "eps": (False, True),
}
OF_OTHERS = {  # options that the ops beside sample_kl lack, or that say nothing there: each stays at this value
    "gaussian_kl": {"used": None, "kl": "closed_form", "samples": None, "eps": False},
    "reparameterize": {"used": None, "kl": "closed_form", "prior": "", "reduction": "sample"},
}

OUTPUT = {  # beside the likelihoods
    "reduction": checks.REDUCTIONS,
    "weight": ("", *WEIGHTS),
    "dtype": checks.FLOATS,
}
ELEMENTWISE = {
    "layout": (
        ORDINARY,
        "chunks of images",
        "chunks of channels_last",
        "long rows",
        "784 columns",
        "primes",
        "transposed",
    ),
    **OUTPUT,
    "target": (None, torch.float32, torch.uint8, torch.int32),
    "shared": ("", *SHARED),
    "beside": (None, *COMMON),
    "grads": (None, 0, 1, 2),
    "scale": (None, 0.5),
    "binarize": (False, True),
}
CLASSES = {
    "layout": (ORDINARY, "chunks of images", *CLASS_LAYOUTS),
    **OUTPUT,
    "target": (None, torch.int32),
    "grads": (None, 0),
}


def combined_workloads():
    classes, elementwise = [], []
    for name, row in LIKELIHOODS.items():
        (classes if row.domain == "classes" else elementwise).append(name)
    yield from (latent_call(**chosen) for chosen in covering(LATENT, _is_latent_call))
    yield from (
        reconstruction_call(**chosen)
        for chosen in covering({"likelihood": elementwise, **ELEMENTWISE}, _is_elementwise_call)
    )
    yield from (reconstruction_call(**chosen) for chosen in covering({"likelihood": classes, **CLASSES}))


def _is_latent_call(chosen):
    if _is_of_one_dtype(chosen):
        return False
    if chosen.get("clamp") and chosen.get("scale", "logvar") != "logvar":
        return False
    if chosen.get("used") == 0 and chosen.get("prior") in ("learned prior", "prior of one row"):
        return False  # z alone gives a prior no gradient
    fixed = OF_OTHERS.get(chosen.get("op"), {})
    return all(chosen.get(name, value) == value for name, value in fixed.items())


def _is_of_one_dtype(chosen):
    """Whether the others' dtype is the first one's after all, or cannot stand beside it."""
    return chosen.get("beside") is not None and chosen.get("dtype") in (torch.float64, chosen["beside"])


def _is_elementwise_call(chosen):
    if _is_of_one_dtype(chosen):
        return False
    if "likelihood" not in chosen:
        return True
    if chosen.get("layout") == "long rows" and chosen.get("shared") == "a number a channel":
        return False  # thousands of programs, which the traffic table interprets one by one
    count = len(LIKELIHOODS[chosen["likelihood"]].parameters)
    if (chosen.get("grads") or 0) >= count or (count == 1 and (chosen.get("shared") or chosen.get("beside"))):
        return False
    return not chosen.get("binarize") or chosen["likelihood"] == "bernoulli"
