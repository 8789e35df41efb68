"""The list of calls from which variants and traffic come: nothing is missing, a new likelihood appears by itself."""

import pytest
import torch

from vae_fast import likelihoods
from vae_fast.benchmarks.class_layouts import CLASS_LAYOUTS
from vae_fast.benchmarks.formulas import CLAMP
from vae_fast.benchmarks.layouts import LAYOUTS
from vae_fast.benchmarks.workloads import workloads

pytest.importorskip("triton")


def test_each_call_is_listed_once_and_every_op_is_there():
    found = workloads()
    names = [str(workload) for workload in found]
    assert len(set(names)) == len(names)
    ops = {"sample_kl", "sample_kl_packed", "reparameterize", "gaussian_kl", "reconstruction_loss", "elbo_loss"}
    assert {workload.op for workload in found} == ops
    assert {workload.dtype for workload in found} == {"float32", "bfloat16", "float16", "float64"}
    assert {workload.layout for workload in found} == {*LAYOUTS, *CLASS_LAYOUTS}
    assert {workload.dtype for workload in found if workload.main} >= {"float32", "bfloat16"}


def test_a_new_likelihood_appears_by_itself(monkeypatch):
    row = likelihoods.Likelihood("new", ("a", "b", "c"), "real", lambda a, b, c: a)
    monkeypatch.setitem(likelihoods.LIKELIHOODS, "new", row)
    found = [w for w in workloads() if w.options.startswith("new")]
    assert {w.op for w in found} == {"reconstruction_loss"}
    assert sum(w.main for w in found) == 2
    leaves, constants = found[0].make()
    assert (len(leaves), len(constants)) == (3, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_have_two_full_tiles(layout):
    from vae_fast.kernels import tiling

    first, second, third = LAYOUTS[layout](torch.float32, 3)
    assert first.shape == second.shape == third.shape
    assert first.numel() > tiling.FLAT_TILE


@pytest.mark.compiled_only
def test_every_kernel_is_launched_in_each_way():
    from vae_fast.benchmarks.audit_table import recorded

    launches = [entry.launch for entry in recorded()]
    assert {launch.name for launch in launches} == {
        "_forward", "_backward", "_reconstruct", "_categorical", "_scale", "_sum_partials", "_total"
    }  # fmt: skip
    flags = {
        name: {launch.arguments[name] for launch in launches if name in launch.arguments}
        for name in (
            "WIDE",
            "QUADS",
            "AXES",
            "SCALARS",
            "REDUCTION",
            "HALVINGS",
            "LOW",
            "SCALED",
            "WEIGHT",
            "SCALE",
            "KL",
            "MANY",
            "PASSES",
        )
    }
    assert flags == {
        "WIDE": {False, True},
        "QUADS": {False, True},
        "AXES": {"rows", "columns", "both"},
        "SCALARS": {False, True},
        "REDUCTION": {None, "none", "sample", "latent", "sum", "mean", "batchmean"},
        "HALVINGS": {2, 3},
        "LOW": {None, CLAMP[0]},
        "SCALED": {False, True},
        "WEIGHT": {None, "none", "sample", "latent"},
        "SCALE": {"logvar", "logstd", "std", "softplus", "soft_clamp"},
        "KL": {"closed_form", "monte_carlo"},
        "MANY": {False, True},
        "PASSES": {False, True},
    }


@pytest.mark.compiled_only
def test_calls_are_recorded_with_their_directions():
    from vae_fast.benchmarks.audit_table import recorded

    found = {entry.call: entry.launch.name for entry in recorded(main=True)}
    call = "reconstruction_loss, mse, batchmean, float32, rows"
    assert found[f"{call}: backward"] == "_scale"
    assert found[f"{call}: again"] == "_reconstruct"
