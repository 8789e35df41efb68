"""The calls that users make, in the options, dtypes and layouts for which a launcher chooses another kernel.

One list for two tools: the audit records the launches of these calls, and the traffic table interprets them. So the
variants of a kernel come from its launchers, and a new row in the table of likelihoods is audited without a word here.
Each option is varied by itself, in two dtypes, and so is each layout; then two by two (`combined_workloads`).
"""

import itertools

import torch

from vae_fast.benchmarks.combined_workloads import combined_workloads
from vae_fast.benchmarks.latent_workloads import latent_workloads
from vae_fast.benchmarks.output_workloads import elbo_workloads, reconstruction_workloads, target_workloads
from vae_fast.likelihoods import LIKELIHOODS


def workloads():
    """All of them; where two lists name the same call, once."""
    lists = latent_workloads, reconstruction_workloads, target_workloads, elbo_workloads, combined_workloads
    found = {}
    for workload in itertools.chain.from_iterable(listed() for listed in lists):
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
