"""The machine code of the main variants, compiled with no GPU: no spills, no local memory, 16-byte accesses."""

import re

import pytest
import torch

from vae_fast.kernels import elbo, gaussian, reconstruction, reductions

pytestmark = pytest.mark.compiled_only

TARGETS = ["sm_90", "gfx942"]
SEED = torch.zeros(1, dtype=torch.int64)


def latents(dtype=torch.float32, columns=64):
    return torch.empty(512, columns, dtype=dtype)


def images(dtype=torch.float32, columns=3072):
    return torch.empty(64, columns, dtype=dtype)


def forward(m, v, **options):
    return lambda: gaussian.forward(m, v, **{"seed": SEED, "reduction": "sample"} | options)


def backward(m, v, **options):
    kl = torch.empty(len(m))
    return lambda: gaussian.backward(m, kl, m, v, **{"seed": SEED, "reduction": "sample"} | options)


def reconstruct(likelihood, *params, reduction="batchmean"):
    return lambda: reconstruction.forward(params, params[0], likelihood, reduction, [True] * len(params))


def whole_elbo(output):
    return lambda: elbo.forward((output,), output, torch.empty(len(output)), None, 1.0, "bernoulli", [True])


halves = torch.empty(512, 128).chunk(2, 1)

# name -> (kernel, the launcher's call, how many accesses of a thread may be narrow). A thread takes 16 elements. Narrow
# are the seed (1, or 2 of 32 bits), the kl's upstream gradients (one a row: up to 4) and the partial sums (1).
MAIN = {
    "sample and KL, float32": ("_forward", forward(latents(), latents()), 2),
    "sample and KL, bfloat16": ("_forward", forward(latents(torch.bfloat16), latents(torch.bfloat16)), 2),
    "sample and KL of packed moments": ("_forward", forward(*halves), 2),
    "sample and KL backward, float32": ("_backward", backward(latents(), latents()), 6),
    "sample and KL backward, bfloat16": ("_backward", backward(latents(torch.bfloat16), latents(torch.bfloat16)), 6),
    "sample and KL backward of packed moments": ("_backward", backward(*halves), 6),
    "bernoulli, float32": ("_reconstruct", reconstruct("bernoulli", images()), 1),
    "bernoulli, bfloat16": ("_reconstruct", reconstruct("bernoulli", images(torch.bfloat16)), 1),
    "mse": ("_reconstruct", reconstruct("mse", images()), 1),
    "gaussian": ("_reconstruct", reconstruct("gaussian", images(), images()), 1),
    "bernoulli a sample": ("_reconstruct", reconstruct("bernoulli", images(), reduction="sample"), 2),
    # an odd number of elements: only the last program is masked
    "bernoulli of odd size": ("_reconstruct", reconstruct("bernoulli", images(columns=3071)), 1),
    "scaling": ("_scale", lambda: reconstruction.scale_((images(),), torch.empty(())), 1),
}

# Rarer variants: the same, but for the width of their accesses.
OTHERS = {
    "the second stage of the ELBO": ("_total", whole_elbo(images())),
    "partial sums": (
        "_sum_partials",
        lambda: reductions.sum_partials(
            torch.empty(3000), torch.empty(()), outer=1, count=3000, strides=(0, 1), divisor=64
        ),
    ),
    "partial sums a latent": ("_sum_partials", forward(latents(), latents(), reduction="latent")),
    "odd latents": ("_forward", forward(latents(columns=63), latents(columns=63))),
    "odd latents backward": ("_backward", backward(latents(columns=63), latents(columns=63))),
    "float64 latents": ("_forward", forward(latents(torch.float64), latents(torch.float64))),
    "float64 latents backward": ("_backward", backward(latents(torch.float64), latents(torch.float64))),
    "a prior and a clamp": (
        "_backward",
        backward(latents(), latents(), prior=(latents(), latents()), clamp=(-10.0, 5.0), prior_grad=True),
    ),
    "images in another layout than their target": (
        "_reconstruct",
        lambda: reconstruction.forward(
            (torch.empty(8, 3, 32, 32).to(memory_format=torch.channels_last),), torch.empty(8, 3, 32, 32),
            "bernoulli", "batchmean", [True],
        ),
    ),
    "float64 gaussian": ("_reconstruct", reconstruct("gaussian", images(torch.float64), images(torch.float64))),
}  # fmt: skip


def recorded(kernel, call):
    from vae_fast.benchmarks.launches import record_launches

    with record_launches() as launches:
        call()
    (launch,) = [launch for launch in launches if launch.name == kernel]
    return launch


def audited(launch, target):
    from vae_fast.benchmarks.audit import audit

    return audit(launch, target, elements=("ROWS", "COLUMNS") if "ROWS" in launch.arguments else 4096)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", MAIN)
def test_the_main_path_is_wide_and_in_registers(name, target):
    from vae_fast.benchmarks.audit import Budget, check

    kernel, call, narrow = MAIN[name]
    report = audited(recorded(kernel, call), target)
    assert check(report, Budget(narrow=narrow)) == [], str(report)
    assert report.loads[128] > 0, str(report)
    assert report.stores[128] > 0, str(report)


@pytest.mark.parametrize("name", OTHERS)
def test_other_variants_stay_in_registers(name):
    report = audited(recorded(*OTHERS[name]), "sm_90")
    assert report.resources.spilled == 0, str(report)
    assert report.resources.local == 0, str(report)


def float64_code(kernel, call):
    """The kernel in Triton's own intermediate language, before constants are folded any further."""
    from vae_fast.benchmarks.audit import compile_launch

    return compile_launch(recorded(kernel, call), "sm_90").asm["ttir"]


def float64_call(likelihood, count):
    output = images(torch.float64)
    kl, one = torch.empty(64, dtype=torch.float64), torch.empty((), dtype=torch.float64)
    params = (output,) * count
    return {
        "_reconstruct": reconstruct(likelihood, *params),
        "_total": lambda: elbo.forward(params, output, kl, None, 0.1, likelihood, [True] * count),
        "_scale": lambda: elbo.scale_(params, one, None, one, kl, None, 0.1),
    }


@pytest.mark.parametrize("kernel", ["_reconstruct", "_total", "_scale"])
def test_a_float64_loss_has_no_float32_in_it(kernel):
    """A number that Triton passes or keeps as float32 loses eight digits; the interpreter does not always show it."""
    code = float64_code(kernel, float64_call("gaussian", 2)[kernel])
    assert not re.findall(r"%\w+: f32\b", code)  # an argument
    assert not re.findall(r"arith.extf .*", code)  # a number kept on the way


def test_the_gaussian_likelihoods_constant_has_all_digits_in_float64():
    code = float64_code("_reconstruct", float64_call("gaussian", 2)["_reconstruct"])
    constants = [float(number) for number in re.findall(r"dense<([-+.\de]+)> : tensor<\d+x\d+xf64>", code)]
    log_2pi = 1.8378770664093454836
    assert min(abs(c - value) for c in constants for value in (log_2pi / 2, log_2pi)) < 1e-15
