"""What `fit` says of bad arguments, devices and data."""

import contextlib
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vae_fast
from tests.app.test_training import DATA, fast, model
from vae_fast.app import training
from vae_fast.app.training import resolve_device

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="training is the model's, tested there"
)

FIRST, OF_BERNOULLI = r"\[0, 0, 0\]", r"expected values that are in \[0, 1\], for likelihood 'bernoulli'"
BAD_ARGUMENTS = [
    ({"model": torch.nn.Linear(1, 1)}, TypeError, "model is Linear: expected a vae_fast.VAE"),
    ({"data": DATA.numpy()}, TypeError, "data is ndarray: expected a tensor"),
    ({"data": DATA.to(torch.uint8)}, TypeError, "data is uint8: expected a floating point tensor"),
    ({"data": torch.rand(4)}, ValueError, r"data has shape \[4\]: expected \[N, ...\] with 1 sample or more"),
    ({"data": DATA[:0]}, ValueError, r"data has shape \[0, 8, 8\]: expected \[N, ...\] with 1 sample or more"),
    ({"data": DATA.clone().requires_grad_()}, ValueError, "data requires a gradient, which is not made"),
    ({"data": DATA * float("nan")}, ValueError, rf"data is nan at {FIRST}: {OF_BERNOULLI}"),
    ({"data": DATA / 0}, ValueError, rf"data is inf at {FIRST}: {OF_BERNOULLI}"),
    ({"data": DATA * 0 + 16}, ValueError, rf"data is 16 at {FIRST}: {OF_BERNOULLI}"),
    ({"data": DATA * 0 - 1}, ValueError, rf"data is -1 at {FIRST}: {OF_BERNOULLI}"),
    ({"data": torch.rand(4, 9)}, ValueError, r"x has shape \[4, 9\]: expected \[B, 8, 8\]"),
    ({"test_data": DATA * 0 + 2}, ValueError, rf"test_data is 2 at {FIRST}: {OF_BERNOULLI}"),
    ({"test_data": [1]}, TypeError, "test_data is list: expected a tensor"),
    ({"epochs": 0}, ValueError, "epochs is 0: expected 1 or more"),
    ({"epochs": 1.5}, TypeError, "epochs is float: expected an int"),
    ({"epochs": True}, TypeError, "epochs is bool: expected an int"),
    ({"batch_size": -1}, ValueError, "batch_size is -1: expected 1 or more"),
    ({"batch_size": "64"}, TypeError, "batch_size is str: expected an int"),
    ({"learning_rate": 0}, ValueError, "learning_rate is 0: expected a finite number > 0"),
    ({"learning_rate": 10**38}, ValueError, f"learning_rate is {10**38}: expected 1e.37 or less"),
    ({"learning_rate": float("inf")}, ValueError, "learning_rate is inf: expected a finite number > 0"),
    ({"learning_rate": "fast"}, TypeError, "learning_rate is str: expected a number"),
    ({"seed": "1"}, TypeError, "seed is str: expected an int"),
    ({"seed": 2**64}, ValueError, r"seed is 18446744073709551616: expected an int in \[-2\^63, 2\^64\)"),
    ({"device": "tpu"}, ValueError, "device is 'tpu': expected 'auto', 'cpu', 'cuda' or 'cuda:<index>'"),
    ({"device": 0}, TypeError, "device is int: expected a str"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_ARGUMENTS)
def test_bad_arguments(arguments, error, message):
    arguments = {"model": model(), "data": DATA, **arguments}
    with pytest.raises(error, match=f"^{message}"):
        fast(arguments.pop("model"), arguments.pop("data"), **arguments)


@pytest.mark.parametrize("name", ["", "cpu:", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "CPU"])
def test_devices_that_have_no_meaning(name):
    with pytest.raises(ValueError, match=f"device is '{name}': expected 'auto', 'cpu'"):
        resolve_device(name)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == resolve_device("cuda") == resolve_device("cuda:0") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cpu") == torch.device("cpu")
    there = "PyTorch finds 2 CUDA devices here, expected an index below 2"
    with pytest.raises(ValueError, match=f"device is 'cuda:2': {there}$"):
        resolve_device("cuda:2")


def test_the_current_gpu_is_after_training_what_it_was(monkeypatch):
    """Lightning changes it."""
    events = []

    @contextlib.contextmanager
    def current(device):
        events.append(device)
        yield
        events.append("back")

    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(training, "resolve_device", lambda name: torch.device(name))
    monkeypatch.setattr(training, "_place", lambda data, device: data)
    monkeypatch.setattr(training, "_own_random_state", lambda seed, device: contextlib.nullcontext())
    trainer = SimpleNamespace(fit=lambda module, loader: events.append("trained"))
    monkeypatch.setattr(training, "_trainer", lambda epochs, device: trainer)
    fast(model(), DATA, device="cuda:1")
    assert events == [torch.device("cuda", 1), "trained", "back"]


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto") == torch.device("cpu")
    there = "PyTorch finds 0 CUDA devices here, expected 'auto' or 'cpu'"
    with pytest.raises(ValueError, match=f"device is 'cuda': {there}$"):
        fast(model(), DATA, device="cuda")


WHOLE, FINITE = "whole numbers >= 0", "finite"


@pytest.mark.parametrize(
    ("likelihood", "bad", "wanted"),
    [
        ("mse", np.inf, FINITE),
        ("mse", -np.inf, FINITE),
        (vae_fast.Huber(2.0), np.nan, FINITE),
        ("poisson", -1, WHOLE),
        ("negative_binomial", 0.5, WHOLE),
        ("zero_inflated_negative_binomial", np.inf, WHOLE),
        ("discretized_logistic", -0.25, r"in \[0, 1\]"),
    ],
)
def test_one_value_that_the_likelihood_cannot_score(likelihood, bad, wanted):
    wanted = rf"expected values that are {wanted}, for likelihood {re.escape(repr(likelihood))}"
    with pytest.raises(ValueError, match=rf"^data is {bad} at \[0, 1\]: {wanted}$"):
        training.check_data("data", torch.tensor([[1.0, bad]]), likelihood)


def test_classes_are_not_trained_on():
    message = "^data is float32: likelihood 'categorical' wants class indices, which are not trained on$"
    with pytest.raises(ValueError, match=message):
        training.check_data("data", DATA, "categorical")
