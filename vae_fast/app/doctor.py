"""What `vae-fast doctor` shows: the environment, and each op against the float64 reference on this device."""

import math
import os
import platform
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vae_fast import functional, reference
from vae_fast.benchmarks import correctness
from vae_fast.benchmarks.formulas import as_output
from vae_fast.benchmarks.machine import versions
from vae_fast.likelihoods import LIKELIHOODS, Likelihood
from vae_fast.ops import backend

LATENTS = (64, 37)
IMAGES = (64, 3, 15, 16)
SEED = 2**40 + 1
CLAMP = (-2.0, 2.0)
BETA = 0.5

# float32 rounding, and the noise contract's 2e-6, on numbers of size 1; anything wrong is far above it.
ALLOWED = 5e-6
CALLS = correctness.WARM_UP + 1


class Check(NamedTuple):
    """One result of one op. error: largest difference to the reference, over the reference's largest magnitude."""

    op: str
    what: str
    error: float

    @property
    def passed(self) -> bool:
        return self.error <= ALLOWED


def environment(device: torch.device) -> list[tuple[str, str]]:
    """Names and values: versions, the device, and which backend its tensors take."""
    return [
        *versions("triton", "numpy", "lightning").items(),
        ("device", torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({platform.machine()})"),
        ("backend", _backend(device)),
    ]


def run_checks(device: torch.device) -> Iterator[Check]:
    """Run every op, forward and backward, in float32 on `device`, and compare with the reference.

    An op that raises gives one failed check, which says what was raised, and the others still run. Of kernels the last
    of some calls is compared: the launches that a training loop makes are the recorded ones, from the fourth at latest.
    """
    inputs = _Inputs(device)
    calls = CALLS if backend.launches(torch.empty(0, device=device)) else 1
    for op, check in _checks().items():
        try:
            for _ in range(calls):
                found = list(check(op, inputs))
            yield from found
        except Exception as error:  # a doctor is for what nobody foresaw
            yield Check(op, f"{type(error).__name__}: {error}", math.nan)


def _checks() -> dict[str, Callable[[str, "_Inputs"], Iterator[Check]]]:
    checks = {
        "sample_kl": _check_sample_kl,
        "sample_kl_packed": _check_sample_kl_packed,
        "reparameterize": _check_reparameterize,
        "gaussian_kl": _check_gaussian_kl,
    }
    for name in LIKELIHOODS:
        checks[f"reconstruction_loss {name}"] = partial(_check_reconstruction_loss, likelihood=name)
        checks[f"elbo_loss {name}"] = partial(_check_elbo_loss, likelihood=name)
    return checks


class _Inputs:
    """Random tensors on a device, always the same."""

    def __init__(self, device: torch.device):
        self.device = device
        self.random = np.random.default_rng(0)

    def normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.random.standard_normal(shape, dtype=np.float32)).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.random.random(shape, dtype=np.float32)).to(self.device)

    def leaves(self, count: int, *shape: int) -> list[Tensor]:
        return [self.normal(*shape).requires_grad_() for _ in range(count)]

    def parameters(self, row: Likelihood, *shape: int) -> list[Tensor]:
        return [t.requires_grad_() for t in row.linked([self.normal(*shape) for _ in row.parameters])]


def _check_sample_kl(op: str, inputs: _Inputs) -> Iterator[Check]:
    leaves = inputs.leaves(4, *LATENTS)
    mu, logvar, *prior = leaves
    upstream = inputs.normal(*LATENTS), inputs.normal(LATENTS[0])
    ours = functional.sample_kl(mu, logvar, prior=tuple(prior), logvar_clamp=CLAMP, seed=SEED)
    torch.autograd.backward(ours, upstream)

    arrays = _arrays(leaves)
    options = {"prior": arrays[2:], "seed": SEED, "clamp": CLAMP, "reduction": "sample"}
    right = reference.gaussian.forward(*arrays[:2], **options)
    gradients = reference.gaussian.backward(*_arrays(upstream), *arrays[:2], **options)
    yield from _compare(op, ("z", "kl"), ours, right)
    yield from _compare(op, ("d mu", "d logvar", "d prior mu", "d prior logvar"), _grads(leaves), gradients)


def _check_sample_kl_packed(op: str, inputs: _Inputs) -> Iterator[Check]:
    rows, columns = LATENTS
    (moments,) = inputs.leaves(1, rows, 2 * columns)
    upstream = inputs.normal(*LATENTS), inputs.normal(rows)
    ours = functional.sample_kl_packed(moments, dim=1, seed=SEED)
    torch.autograd.backward(ours, upstream)

    halves = np.split(*_arrays([moments]), 2, axis=1)
    options = {"seed": SEED, "reduction": "sample"}
    right = reference.gaussian.forward(*halves, **options)
    gradients = reference.gaussian.backward(*_arrays(upstream), *halves, **options)
    yield from _compare(op, ("z", "kl"), ours, right)
    yield from _compare(op, ("d moments",), _grads([moments]), [np.concatenate(gradients[:2], axis=1)])


def _check_reparameterize(op: str, inputs: _Inputs) -> Iterator[Check]:
    leaves = inputs.leaves(2, *LATENTS)
    upstream = inputs.normal(*LATENTS)
    z = functional.reparameterize(*leaves, seed=SEED)
    z.backward(upstream)

    right, _ = reference.gaussian.forward(*_arrays(leaves), seed=SEED)
    gradients = reference.gaussian.backward(*_arrays([upstream]), None, *_arrays(leaves), seed=SEED)
    yield from _compare(op, ("z", "d mu", "d logvar"), (z, *_grads(leaves)), (right, *gradients[:2]))


def _check_gaussian_kl(op: str, inputs: _Inputs) -> Iterator[Check]:
    leaves = inputs.leaves(2, *LATENTS)
    kl = functional.gaussian_kl(*leaves)
    kl.backward()

    _, right = reference.gaussian.forward(*_arrays(leaves), reduction="batchmean")
    gradients = reference.gaussian.backward(None, 1.0, *_arrays(leaves), reduction="batchmean")
    yield from _compare(op, ("kl", "d mu", "d logvar"), (kl, *_grads(leaves)), (right, *gradients[:2]))


def _check_reconstruction_loss(op: str, inputs: _Inputs, likelihood: str) -> Iterator[Check]:
    leaves, output, target, formula = _reconstruction_inputs(inputs, likelihood)
    loss = functional.reconstruction_loss(output, target, likelihood)
    loss.backward()

    arguments = _arrays(leaves), *_arrays([target]), formula, "batchmean"
    right = reference.reconstruction.forward(*arguments)
    gradients = reference.reconstruction.backward(1.0, *arguments)
    names = ("loss", *(f"d {name}" for name in LIKELIHOODS[likelihood].parameters))
    yield from _compare(op, names, (loss, *_grads(leaves)), (right, *gradients))


def _check_elbo_loss(op: str, inputs: _Inputs, likelihood: str) -> Iterator[Check]:
    leaves, output, target, formula = _reconstruction_inputs(inputs, likelihood)
    kl = inputs.uniform(len(target)).requires_grad_()
    loss = functional.elbo_loss(output, target, kl, likelihood=likelihood, beta=BETA)
    loss.total.backward()

    arguments = _arrays(leaves), *_arrays([target, kl]), BETA, formula
    right = reference.reconstruction.elbo_forward(*arguments)
    grad_parameters, grad_kl = reference.reconstruction.elbo_backward(1.0, None, None, *arguments)
    names = ("total", "reconstruction", "kl", *(f"d {name}" for name in LIKELIHOODS[likelihood].parameters), "d kl")
    ours = (*loss, *_grads([*leaves, kl]))
    yield from _compare(op, names, ours, (*right, *grad_parameters, grad_kl))


def _reconstruction_inputs(inputs: _Inputs, likelihood: str) -> tuple[list[Tensor], Tensor | tuple, Tensor, Callable]:
    """Parameters, the same as users pass them, a target, and the reference's formula."""
    row = LIKELIHOODS[likelihood]
    leaves = inputs.parameters(row, *IMAGES)
    target = inputs.uniform(*IMAGES)
    if row.domain == "counts":
        target = (10 * target).floor()
    elif row.domain == "classes":
        target = (IMAGES[-1] * target[..., 0]).long()
    return leaves, as_output(leaves), target, getattr(reference.likelihoods, likelihood)


def _compare(op: str, names, ours, right) -> Iterator[Check]:
    for name, value, wanted in zip(names, _arrays(ours), right):
        yield Check(op, name, float(np.abs(value - wanted).max() / np.abs(wanted).max()))


def _arrays(tensors) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().cpu().double().numpy() for tensor in tensors)


def _grads(tensors) -> list[Tensor]:
    return [tensor.grad for tensor in tensors]


def _backend(device: torch.device) -> str:
    """The backend of this device's tensors, and the reason for it."""
    try:
        name = backend.choose(torch.empty(1, device=device))
    except RuntimeError as error:
        return f"none: {error}"
    forced = os.environ.get("VAE_FAST_BACKEND", "auto")
    if forced != "auto":
        reason = f"VAE_FAST_BACKEND is {forced}"
    elif device.type == "cpu":
        reason = "tensors are on the CPU, and Triton compiles for GPUs"
    else:
        reason = "tensors are on a GPU" if name == "triton" else "triton is not installed"
    return f"{name}: {reason}"
