"""The list of calls from which variants and traffic come: nothing is missing, a new likelihood appears by itself."""

import pytest
import torch

import vae_fast
from vae_fast import checks, likelihoods
from vae_fast.benchmarks.combined_workloads import combined_workloads
from vae_fast.benchmarks.formulas import CLAMP
from vae_fast.benchmarks.latent_workloads import SAMPLES, SCALES, latent_workloads
from vae_fast.benchmarks.layouts import CLASS_LAYOUTS, LAYOUTS
from vae_fast.benchmarks.output_workloads import WEIGHTS, reconstruction_workloads, target_workloads
from vae_fast.benchmarks.workloads import workloads
from vae_fast.likelihoods import LIKELIHOODS

pytest.importorskip("triton")

OPS = {"sample_kl", "sample_kl_packed", "reparameterize", "gaussian_kl", "reconstruction_loss", "elbo_loss"}


def test_each_call_is_listed_once_and_every_op_is_there():
    found = workloads()
    names = [str(workload) for workload in found]
    assert len(set(names)) == len(names)
    assert {workload.op for workload in found} == OPS
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


def test_tensors_lie_as_their_layout_says():
    assert all(tensor.data_ptr() % 16 for tensor in LAYOUTS["unaligned"](torch.float32, 3))
    *alike, last = LAYOUTS["transposed"](torch.float32, 3)
    assert all(tensor.is_contiguous() and not last.is_contiguous() for tensor in alike)
    for name in (name for name in LAYOUTS if name.startswith("chunks")):
        first, second = LAYOUTS[name](torch.float32, 2)
        assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr(), name
        assert (first.stride(1) == 1) == (name == "chunks" or "channels_last" in name), name


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
            "WAY",
            "AXES",
            "SCALARS",
            "REDUCTION",
            "HALVINGS",
            "LOW",
            "SCALED",
            "WEIGHT",
            "SCALE",
            "EPSILON",
            "KL",
            "MANY",
            "PASSES",
        )
    }
    assert flags == {
        "WIDE": {False, True},
        "WAY": {"quads", "octs", "unaligned", "lanes"},
        "AXES": {"rows", "columns", "both"},
        "SCALARS": {False, True},
        "REDUCTION": {None, "none", "sample", "latent", "sum", "mean", "batchmean"},
        "HALVINGS": {2, 3},
        "LOW": {None, CLAMP[0]},
        "SCALED": {False, True},
        "WEIGHT": {None, "none", "sample", "latent"},
        "SCALE": {"logvar", "logstd", "std", "softplus", "soft_clamp"},
        "EPSILON": {0.0, 1e-4, 0.01},  # of softplus, and of NVAE's
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


def words(listed):
    return {word for workload in listed for word in workload.options.split(", ")}


def test_what_is_varied_by_itself_meets_the_other_options_too():
    latents, outputs = [], []
    for workload in combined_workloads():
        (outputs if workload.op == "reconstruction_loss" else latents).append(workload)
    assert words(latents) == words(latent_workloads())
    assert words(outputs) == words([*reconstruction_workloads(), *target_workloads()])


def test_the_words_of_a_call_are_its_arguments(monkeypatch):
    """An option that got lost on the way would be audited under its name, as the call without it."""
    for op in OPS:
        monkeypatch.setattr(vae_fast, op, lambda *tensors, **options: (tensors, options))
    for workload in workloads():
        leaves, constants = workload.make()
        tensors, given = workload.function(*leaves, *constants)
        facts = (_of_outputs if "likelihood" in given or "target_scale" in given else _of_latents)(tensors, given)
        facts |= {"only z used": workload.used == 0 and workload.op == "sample_kl", "only kl used": workload.used == 1}
        for word, is_so in facts.items():
            assert is_so == (f", {word}," in f", {workload.options},"), (str(workload), word)


def _of_latents(tensors, given):
    prior, (mu, *others) = given.get("prior"), tensors
    learned, row = prior is not None and prior[0].requires_grad, prior is not None and len(prior[0]) == 1
    return {
        "fixed prior": prior is not None and not learned,
        "learned prior": learned and not row,
        "prior of one row": learned and row,
        "clamp": given["logvar_clamp"] == CLAMP,
        **{str(scale): given["scale"] == scale for scale in SCALES},
        "monte_carlo": given.get("kl") == "monte_carlo",
        f"{SAMPLES} samples": given.get("num_samples") == SAMPLES,
        "eps": "eps" in given,
        **_beside(mu, [*others, *(prior or ())], "mu"),
        **{name: given.get("reduction") == name for name in checks.LATENT_REDUCTIONS},
    }


def _beside(first, others, name):
    """Which dtype all the others have beside the first, if any."""
    dtypes = {t.dtype for t in others}
    assert len(dtypes) <= 1
    return {f"{checks.dtype_name(d)} beside {name}": dtypes == {d} != {first.dtype} for d in checks.FLOATS}


def _of_outputs(tensors, given):
    output, target, other = tensors
    first, *others = output if isinstance(output, tuple) else (output,)
    learned, count, weight = sum(t.requires_grad for t in (first, *others)), 1 + len(others), given.get("weight")
    kinds = {name: (dtype, shape(target.shape)) for name, (dtype, shape) in WEIGHTS.items()}
    weights = [name for name, kind in kinds.items() if weight is not None and kind == (weight.dtype, weight.shape)]
    facts = {
        **{name: {"likelihood": other, **given}["likelihood"] == name for name in LIKELIHOODS},
        **{f"{k} of {count} gradients": learned == k for k in range(count)},
        **{f"{name} target": target.dtype == getattr(torch, name) != first.dtype for name in ("uint8", "int32")},
        **{name: name in weights for name in WEIGHTS if len(weights) < 2},  # a shape may be that of two
        "binarize": "seed" in given,
        "one number": any(t.dim() == 0 for t in others),
        **_beside(first, others, "the first"),
    }
    if "likelihood" in given:
        return {**facts, "beta tensor": isinstance(given["beta"], torch.Tensor), "averaged kl": other.dim() == 0}
    return {
        **facts,
        "target_scale": given["target_scale"] == 0.5,
        **{name: given["reduction"] == name for name in checks.REDUCTIONS},
    }


@pytest.mark.compiled_only
def test_each_elementwise_kernel_is_recorded_for_offsets_of_64_bits():
    from vae_fast.benchmarks.audit_table import recorded

    found = {entry.call for entry in recorded() if "more than 2^31 elements" in entry.call}
    names = [name for name, row in LIKELIHOODS.items() if row.domain != "classes"]
    calls = ["sample_kl, sample", *(f"reconstruction_loss, {name}, batchmean" for name in names)]
    ways = ("forward", "backward")
    assert found == {f"{call}, more than 2^31 elements: {way}" for call in calls for way in ways}
