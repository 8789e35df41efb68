"""The tables of cases and contenders, their names, what is said of a name that is not there; the tables of results."""

import dataclasses
import os

import pytest
import torch

from tests.benchmarks.bench_rows import FAKE_CPU, fake_rows
from vae_fast.benchmarks import cases, tables
from vae_fast.benchmarks.contenders import CONTENDERS
from vae_fast.benchmarks.formulas import OPS, draw_inputs
from vae_fast.benchmarks.usual import FORMULAS
from vae_fast.likelihoods import LIKELIHOODS

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="speed is that of compiled code")

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def named(name):
    return cases.CASES[name]


def test_every_likelihood_with_a_formula_is_a_case():
    assert {name for name in LIKELIHOODS if name in FORMULAS} <= set(OPS)
    assert {"bernoulli", "mse", "gaussian", "categorical"} <= set(OPS)


def test_sizes_go_from_overhead_to_2_gb_in_every_precision():
    for op in ("bernoulli", "mse", "gaussian", "loss"):
        own = [case for case in cases.CASES.values() if case.op == op]
        assert (128, 784) in {case.shape for case in own}
        assert max(case.elements * case.dtype.itemsize for case in own) >= 2**31
        precisions = {(str(case.dtype), str(case.target_dtype)) for case in own}
        bf16 = "torch.bfloat16"
        assert precisions == {("torch.float32", "torch.float32"), (bf16, bf16), (bf16, "torch.float32")}


def test_every_case_says_why_and_every_op_has_a_quick_one():
    assert all(len(case.why) > 10 for case in cases.CASES.values())
    assert {case.op for case in cases.select(quick=True)} == {*OPS, "step_mlp"}


def test_names():
    case = named("bernoulli/128x784/bfloat16+float32")
    assert (case.op, case.shape, case.dtype, case.target_dtype) == (
        "bernoulli", (128, 784), torch.bfloat16, torch.float32
    )  # fmt: skip
    assert named("step_conv/256x3x64x64/float32").shape == (256, 3, 64, 64)


def test_select_by_op_and_by_name():
    assert {case.op for case in cases.select(["kl", "mse"])} == {"kl", "mse"}
    assert [case.name for case in cases.select(["kl/128x784/bfloat16"])] == ["kl/128x784/bfloat16"]
    assert len(cases.select()) == len(cases.CASES)


def test_quick_keeps_a_case_that_was_named():
    assert [case.op for case in cases.select(["step_conv"], quick=True)] == ["step_conv"]
    chosen = cases.select(["kl/131072x4096/float32", "mse"], quick=True)
    assert "kl/131072x4096/float32" in [case.name for case in chosen]
    assert all(case.quick for case in chosen if case.op == "mse")


def test_an_unknown_case_is_an_error_that_names_the_choices():
    with pytest.raises(
        ValueError, match=r"case is 'klx': expected one of 'sample_kl', .*'step_conv', .*, or one of theirs"
    ):
        cases.select(["kl", "klx"])


@pytest.mark.parametrize(
    ("name", "forward", "both"),
    [
        ("sample_kl/128x784/float32", 3 * 128 * 784 * 4, 8 * 128 * 784 * 4),
        ("sample_kl/128x784/bfloat16", 3 * 128 * 784 * 2, 8 * 128 * 784 * 2),
        ("kl/128x784/float32", 2 * 128 * 784 * 4, 4 * 128 * 784 * 4),
        ("bernoulli/128x784/float32", None, 3 * 128 * 784 * 4),
        ("bernoulli/128x784/bfloat16+float32", None, 128 * 784 * (2 + 4 + 2)),
        ("gaussian/128x784/bfloat16", None, 5 * 128 * 784 * 2),
        ("categorical/4096x256/float32+int64", None, 2 * 4096 * 256 * 4 + 4096 * 8),
        ("loss/128x784/float32", None, 3 * 128 * 784 * 4 + 8 * 128 * 20 * 4),
        ("step_mlp/128x784/float32", None, None),
    ],
)
def test_floors(name, forward, both):
    floor = named(name).floor
    assert (floor.get("forward"), floor.get("forward+backward")) == (forward, both)


@pytest.mark.parametrize("op", OPS)
def test_inputs_are_what_the_case_says(op):
    case = next(case for case in cases.CASES.values() if case.op == op)
    inputs, others = draw_inputs(case, CPU), draw_inputs(case, CPU, seed=1)
    assert all(leaf.requires_grad and leaf.is_leaf and leaf.dtype == case.dtype for leaf in inputs.leaves)
    assert not torch.equal(inputs.leaves[0], others.leaves[0])
    assert torch.equal(inputs.leaves[0], draw_inputs(case, CPU).leaves[0])
    if inputs.target is not None:
        assert inputs.target.shape == (case.shape[:-1] if op == "categorical" else case.shape)
        assert inputs.target.dtype == case.target_dtype
    if op in LIKELIHOODS and LIKELIHOODS[op].domain == "[0, 1]":
        assert 0 <= inputs.target.min() <= inputs.target.max() <= 1
    if op == "categorical":
        assert 0 <= inputs.target.min() < inputs.target.max() < case.shape[-1]


def test_contenders():
    assert list(CONTENDERS) == [
        "eager", "eager graph", "compile", "compile graph", "compile max-autotune", "compile max-autotune graph",
        "vae_fast", "vae_fast graph",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "device", "quick", "expected"),
    [
        ("mse/128x784/float32", CPU, True, {"eager", "vae_fast"}),
        ("mse/128x784/float32", GPU, False, {"eager", "compile", "compile max-autotune", "vae_fast"}),
        ("step_mlp/128x784/float32", CPU, False, {"eager", "compile", "compile max-autotune", "vae_fast"}),
        ("step_mlp/128x784/float32", GPU, False, set(CONTENDERS)),
        ("step_mlp/128x784/float32", GPU, True, {"eager", "vae_fast"}),
        ("step_scvi/128x2000/float32", CPU, False, {"eager", "vae_fast"}),
        ("step_diffusers/8x3x32x32/float32", GPU, False, {"eager", "vae_fast"}),
    ],
)
def test_who_runs_where(name, device, quick, expected):
    assert {c.name for c in CONTENDERS.values() if c.runs(named(name), device, quick)} == expected


def test_losses_on_some_threads_alone():
    rows = fake_rows(FAKE_CPU, ["kl"], threads=(1, 2))
    for row in tables.ours(rows):
        row.over_eager = 0.5 if row.threads == 1 else 2.0
    count = len(tables.ours(rows))
    (line,) = tables.losses(rows, {"eager": "over_eager"})
    assert line.startswith(f"kl: slower than eager in {count // 2} of {count}, at worst 2.00 times as slow")
    assert line.endswith("1 thread)")


def test_a_line_compares_the_same_threads():
    rows = fake_rows(FAKE_CPU, ["kl"], threads=(1, 2))
    for row in rows:
        row.time_min = row.time * (0.5 if row.contender == "vae_fast" else 0.8)
    found = {(row.case, str(row.threads), row.contender): row for row in rows}
    for line in tables.cases(rows, lambda text, ratio: text):
        cells = dict(zip(tables.HEADER, line))
        eager, own = (found[cells["case"], cells["threads"], name] for name in ("eager", "vae_fast"))
        assert cells["eager"] == tables.milliseconds(eager.time)
        assert cells["(min)"] == f"{eager.time_min / own.time_min:.2f}"


def test_milliseconds_of_the_device_stand_beside_those_of_whole_calls():
    rows = fake_rows(ops=["kl"])
    for row in rows:
        row.device_time = None if row.contender == "eager" else row.device_time  # it waits for the device itself
    found = {(row.case, row.contender): row for row in rows}
    for line in tables.cases(rows, lambda text, ratio: text):
        cells = dict(zip(tables.HEADER, line))
        assert cells["eager"] == tables.milliseconds(found[cells["case"], "eager"].time)
        assert cells["eager device ms"] == ""
        for name in ("compile", "vae_fast"):
            assert cells[f"{name} device ms"] == tables.milliseconds(found[cells["case"], name].device_time)


def test_the_overview_is_of_float32_where_there_is_any_and_of_all_threads():
    half = [row for row in fake_rows(ops=["kl"]) if row.dtype == "bfloat16" or row.elements < 2**20]
    for row in half:
        row.share = 0.5 if row.dtype == "float32" else 0.9
    threads = fake_rows(FAKE_CPU, ["kl"], threads=(1, 2))
    for row in threads:
        row.share = 0.4 * row.threads
    for rows, share in ((half, "50%"), (threads, "80%")):
        (line,) = tables.overview(rows)
        assert dict(zip(tables.OVERVIEW, line))["of copy bandwidth"] == share


def test_the_hosts_time_is_that_of_the_smallest_size_in_float32_where_there_is_any():
    rows = [row for row in fake_rows(ops=["bernoulli"]) if row.elements > 32]
    for row in rows:
        row.host_time = 1.0 if row.elements > 128 * 784 else 0.02 if row.dtype == "bfloat16" else 0.03
    for kept, host in ((rows, "30"), ([row for row in rows if row.dtype == "bfloat16"], "20")):
        (line,) = tables.overheads(kept[::-1])
        assert line == ("bernoulli", host, host, host, "20", "7", "5")


def test_what_was_not_measured_is_blank():
    """Of a contender that did not run, that waits for the device itself, or that the profiler does not see."""
    rows = [row for row in fake_rows(ops=["kl"]) if row.contender != "compile"]
    for row in rows:
        if row.contender == "eager":
            row.host_time = row.launches = row.peak_bytes = None
    assert tables.overheads(rows) == [("kl", "", "", "40", "", "", "5")]
    assert tables.overview(rows)[0][-1] == ""
    for row in rows:
        row.peak_bytes = 8 if row.contender == "eager" else None
    assert tables.overview(rows)[0][-1] == ""


@pytest.mark.parametrize(("load", "said"), [(1.0, False), (1.1, True), (None, False)])
def test_a_busy_machine(load, said):
    rows = fake_rows(FAKE_CPU, ["kl"], threads=(1, 2))
    rows[0].load = load  # of one run among several
    assert bool(tables.busy(rows)) == said
    assert not tables.busy([dataclasses.replace(row, kind="cuda", threads=None) for row in rows])


def test_columns_that_are_empty_are_left_out():
    assert tables.without_empty(("a", "b", "c"), [("1", "", "2"), ("3", "", "")]) == (
        ["a", "c"], [["1", "2"], ["3", ""]]
    )  # fmt: skip


def test_the_note_below_a_table_is_of_its_columns():
    assert tables.note(("case", "vae_fast", "x eager", "x compile"), tables.MEANINGS) == (
        "milliseconds of a whole call, medians; x: how many times as fast as that"
    )
    assert tables.note(("op", "memory"), tables.OVERVIEW_MEANINGS).startswith("memory: the peak")


@pytest.mark.parametrize(
    ("value", "text"), [(0.012345, "0.0123"), (2.9, "2.9"), (999.4, "999"), (999.6, "1,000"), (2897.1, "2,897")]
)
def test_milliseconds(value, text):
    assert tables.milliseconds(value) == text
