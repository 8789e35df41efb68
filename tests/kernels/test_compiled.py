"""What the compiler makes of float64, of classes, and for other GPUs; the audit itself is in test_audit_table.py."""

import re

import pytest
import torch

from vae_fast.kernels import categorical, elbo, reconstruction

pytestmark = pytest.mark.compiled_only


def images():
    return torch.empty(64, 3072, dtype=torch.float64)


def float64_code(kernel, call):
    """The kernel in Triton's own intermediate language, before constants are folded any further."""
    from vae_fast.benchmarks.audit import compile_launch
    from vae_fast.benchmarks.launches import record_launches

    with record_launches() as launches:
        call()
    (launch,) = [launch for launch in launches if launch.name == kernel]
    return compile_launch(launch, "sm_90").asm["ttir"]


def float64_call(likelihood, count):
    output = images()
    kl, one = torch.empty(64, dtype=torch.float64), torch.empty((), dtype=torch.float64)
    params = (output,) * count
    return {
        "_reconstruct": lambda: reconstruction.forward(params, output, likelihood, "batchmean", [True] * count),
        "_total": lambda: elbo.forward(params, output, kl, None, 0.1, likelihood, [True] * count),
        "_scale": lambda: elbo.scale_(params, one, None, one, kl, None, 0.1),
        "_categorical": lambda: categorical.forward(output, output[:, 0].long(), -100, "mean", True),
        "_categorical in passes": lambda: categorical.forward(
            output.view(8, -1), output[:8, 0].long(), None, "mean", True
        ),
        "_categorical backward": lambda: categorical.backward(one, output, output[:, 0].long(), None, "sum"),
    }


@pytest.mark.parametrize("kernel", float64_call("gaussian", 2))
def test_a_float64_loss_has_no_float32_in_it(kernel):
    """A number that Triton passes or keeps as float32 loses eight digits; the interpreter does not always show it."""
    code = float64_code(kernel.partition(" ")[0], float64_call("gaussian", 2)[kernel])
    assert not re.findall(r"%\w+: f32\b", code)  # an argument
    assert not re.findall(r"arith.extf .*", code)  # a number kept on the way


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("count", [10, 256, 1000, 16384, 32768, 50257])
def test_rows_of_classes_stay_in_registers(count, target):
    from vae_fast.benchmarks.audit import Budget, audit, check
    from vae_fast.benchmarks.audit_table import _without_tails
    from vae_fast.benchmarks.launches import record_launches

    with record_launches() as launches:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            logits, classes = torch.empty(64, count, dtype=dtype), torch.zeros(64, dtype=torch.int64)
            categorical.forward(logits, classes, None, "sum", True)
    for launch in launches[::2]:
        report = audit(launch, target, elements=("ROWS", "COLUMNS"))
        assert check(_without_tails(report), Budget(bits=0)) == []


@pytest.mark.parametrize(("count", "widths"), [(100, {128, 64}), (250, {64, 16}), (1000, {128}), (50257, {128})])
def test_rows_of_any_length_are_accessed_as_widely_as_they_lie(count, widths):
    """In float32 and bfloat16; what is narrower is a number of a row."""
    from vae_fast.benchmarks.audit import audit
    from vae_fast.benchmarks.launches import record_launches

    with record_launches() as launches:
        for dtype in (torch.float32, torch.bfloat16):
            logits, classes = torch.empty(64, count, dtype=dtype), torch.zeros(64, dtype=torch.int64)
            categorical.forward(logits, classes, None, "sum", True)
    stores = [audit(launch, "sm_90", elements=("ROWS", "COLUMNS")).stores for launch in launches[::2]]
    assert {max(accesses, key=lambda bits: bits * accesses[bits]) for accesses in stores} == widths


def test_the_gaussian_likelihoods_constant_has_all_digits_in_float64():
    code = float64_code("_reconstruct", float64_call("gaussian", 2)["_reconstruct"])
    constants = [float(number) for number in re.findall(r"dense<([-+.\de]+)> : tensor<\d+x\d+xf64>", code)]
    log_2pi = 1.8378770664093454836
    assert min(abs(c - value) for c in constants for value in (log_2pi / 2, log_2pi)) < 1e-15


@pytest.mark.parametrize(
    ("vendor", "architecture"),
    [
        ("cuda", 75),  # Turing, the GPUs of free notebooks
        ("cuda", 120),  # the newest GeForce
        ("hip", "gfx1100"),  # a Radeon, whose warps have 32 lanes
    ],
)
def test_main_variants_compile_for_gpus_that_are_not_audited(vendor, architecture, monkeypatch):
    from triton.backends.compiler import GPUTarget

    from vae_fast.benchmarks import audit_table, launches
    from vae_fast.benchmarks.audit import compile_launch

    monkeypatch.setitem(launches.TARGETS, "other", GPUTarget(vendor, architecture, 32))
    some = audit_table.tasks(["other"], main=True)[::20]
    entries = [audit_table.recorded(main=True)[task.index] for task in some]
    assert {entry.launch.name for entry in entries} >= {"_forward", "_reconstruct", "_categorical"}
    for entry in entries:
        compile_launch(entry.launch, "other")
