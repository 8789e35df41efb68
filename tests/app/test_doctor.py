"""The doctor: it runs every op, says which backend it ran on and why, and fails on NaN."""

import math
import os

import numpy as np
import pytest
import torch

import vae_fast
from vae_fast.app import doctor
from vae_fast.benchmarks import machine
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.ops import backend

CPU = torch.device("cpu")
interpreted = os.environ.get("TRITON_INTERPRET") == "1"


def test_every_op_is_checked_and_passes():
    name = "triton" if interpreted else "eager"
    with vae_fast.use_backend(name):
        checks = list(doctor.run_checks(CPU))
    ops = {"sample_kl", "sample_kl_packed", "reparameterize", "gaussian_kl"}
    losses = {f"{op} {likelihood}" for op in ("reconstruction_loss", "elbo_loss") for likelihood in LIKELIHOODS}
    assert {check.op for check in checks} == ops | losses
    assert [check for check in checks if not check.passed] == []
    assert any(check.error > 0 for check in checks)
    for op, what in (
        ("sample_kl", ["z", "kl", "d mu", "d logvar", "d prior mu", "d prior logvar"]),
        ("elbo_loss gaussian", ["total", "reconstruction", "kl", "d mean", "d logvar", "d kl"]),
    ):
        assert [check.what for check in checks if check.op == op] == what


@pytest.mark.skipif(interpreted or torch.cuda.is_available(), reason="there the kernels run")
def test_kernels_that_cannot_run_here_fail_each_check_and_say_why():
    with vae_fast.use_backend("triton"):
        checks = list(doctor.run_checks(CPU))
    assert not any(check.passed for check in checks)
    assert checks[0].what.startswith("RuntimeError: ")


def test_nan_fails():
    assert not doctor.Check("op", "what", float("nan")).passed


@pytest.mark.parametrize("off", [0.01, -0.01])
def test_an_error_of_either_sign_fails(off):
    ours, right = torch.tensor([1.0, off - 2.0]), np.array([1.0, -2.0])
    (check,) = doctor._compare("op", ["z"], [ours], [right])
    assert check.error == pytest.approx(0.005, rel=1e-4)
    assert not check.passed


def test_an_op_that_raises_fails_and_the_others_still_run(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(vae_fast.functional, "gaussian_kl", broken)
    checks = list(doctor.run_checks(CPU))
    (failed,) = (check for check in checks if not check.passed)
    assert (failed.op, failed.what) == ("gaussian_kl", "RuntimeError: no kernel image")
    assert checks[-1].op.startswith("elbo_loss")


def test_environment_names_versions_and_device():
    values = dict(doctor.environment(CPU))
    assert list(values) == ["vae_fast", "python", "torch", "triton", "numpy", "lightning", "device", "backend"]
    assert values["vae_fast"] == vae_fast.__version__
    assert values["torch"] == torch.__version__
    assert values["device"].startswith("cpu (")


def test_a_missing_package_is_said_to_be_missing():
    assert machine.versions("no-such-package")["no-such-package"] == "not installed"


@pytest.mark.parametrize(
    ("device", "has_triton", "expected"),
    [
        ("cpu", True, "eager: tensors are on the CPU, and Triton compiles for GPUs"),
        ("cuda", True, "triton: tensors are on a GPU"),
        ("cuda", False, "eager: triton is not installed"),
    ],
)
def test_the_backend_and_its_reason(monkeypatch, device, has_triton, expected):
    monkeypatch.delenv("VAE_FAST_BACKEND", raising=False)
    monkeypatch.setattr(backend, "HAS_TRITON", has_triton)
    monkeypatch.setattr(torch, "empty", lambda size, device: _On(device))
    assert doctor._backend(torch.device(device)) == expected


def test_a_forced_backend_and_one_that_cannot_run(monkeypatch):
    monkeypatch.setenv("VAE_FAST_BACKEND", "eager")
    with vae_fast.use_backend("eager"):
        assert doctor._backend(CPU) == "eager: VAE_FAST_BACKEND is eager"
    monkeypatch.setattr(backend, "HAS_TRITON", False)
    with vae_fast.use_backend("triton"):
        assert doctor._backend(CPU).startswith('none: backend is "triton", but ')


class _On:
    """As much of a tensor as the choice of a backend asks for."""

    def __init__(self, device):
        self.device = device
        self.is_cuda = device.type == "cuda"


def test_of_kernels_the_last_call_is_compared(monkeypatch):
    errors = iter([*[math.nan] * (doctor.CALLS - 1), 0.0])
    check = {"op": lambda op, inputs: [doctor.Check(op, "z", next(errors))]}
    monkeypatch.setattr(doctor, "_checks", lambda: check)
    monkeypatch.setattr(doctor.backend, "launches", lambda tensor: True)
    (found,) = doctor.run_checks(CPU)
    assert found.passed
