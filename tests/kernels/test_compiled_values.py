"""Compiled kernels, run without a GPU by `ptx`: values and gradients against the reference, and no `Fault`.

The interpreter computes what the kernels say. Between that and a GPU are the compiler's layouts and masks, reductions
in shared memory, multiplications fused with additions, and the alignment that each launch is compiled for.
"""

import contextlib

import pytest
import torch
import triton
import triton.language as tl

from tests.kernels import classes, domains, latents, outputs, scaled, sharing
from tests.kernels import test_count_likelihoods as counting
from tests.kernels import test_elbo_accuracy as whole
from tests.kernels import test_likelihoods as every
from tests.kernels.ptx import emulated
from tests.kernels.ptx_memory import Fault
from tests.support.environment import Backend
from vae_fast import elbo_loss, gaussian_kl, reparameterize, sample_kl, sample_kl_packed

pytestmark = [
    pytest.mark.compiled_only,
    pytest.mark.skipif("nvidia" not in triton.backends.backends, reason="this Triton does not compile for NVIDIA"),
]

BACKEND = Backend("triton", "cpu")
SEED = 2**40 + 3
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True, params=["sm_90", "sm_100"])  # where two float32 are added and multiplied at once
def _emulated(request):
    with emulated(request.param):
        yield


@pytest.mark.parametrize(
    ("layout", "reduction", "dtype"),
    [
        ("the smallest", "none", torch.float32),
        ("primes", "sample", torch.bfloat16),
        ("rows of 20", "sample", torch.float32),
        ("rows of 20", "none", torch.bfloat16),
        ("chunk(2, 1)", "sample", torch.float32),
        ("full tiles", "latent", torch.float32),
        ("rows split over programs", "sum", torch.float16),
        ("chunk(2, 1) of channels_last images", "batchmean", torch.float64),
        ("the batch innermost", "mean", torch.float32),
        ("unaligned", "sample", torch.float32),
    ],
    ids=str,
)
def test_sample_kl(layout, reduction, dtype):
    p = latents.posterior(layout, BACKEND, dtype)
    z, kl = sample_kl(p.mu, p.logvar, seed=SEED, reduction=reduction)
    latents.check(p, z, kl, seed=SEED, reduction=reduction)


@pytest.mark.parametrize("clamp", [(-0.75, 0.5), (-0.5, 0.5)], ids=["clamp", "even_clamp"])  # one instruction on sm_90
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_given_noise_a_prior_and_a_clamp(dtype, clamp):
    p = latents.posterior("odd", BACKEND, dtype, prior=(3, 7))
    options = {"eps": latents.drawer("cpu", dtype, seed=4)(5, 3, 7), "reduction": "sample"}
    z, kl = sample_kl(p.mu, p.logvar, prior=p.prior, logvar_clamp=clamp, **options)
    latents.check(p, z, kl, clamp=clamp, **options)


@pytest.mark.parametrize("estimate", ["closed_form", "monte_carlo"])
@pytest.mark.parametrize("scale", ["std", "softplus", "SoftClamp of NVAE's code"])
def test_scales_and_several_samples(scale, estimate):
    options = {"scale": scaled.SCALES[scale], "seed": SEED, "num_samples": 2}
    p = scaled.scaled("images", BACKEND, options["scale"], prior=(1, 4, 1, 1))
    z, kl = sample_kl(p.mu, p.logvar, prior=p.prior, kl=estimate, **options)
    scaled.check(p, z, kl, estimate=estimate, reduction="sample", **options)


def test_a_sample_or_a_kl_alone():
    p = latents.posterior("chunk(2, 1)", BACKEND)
    latents.check(p, reparameterize(p.mu, p.logvar, seed=SEED), None, seed=SEED)
    latents.check(p, None, gaussian_kl(p.mu, p.logvar, reduction="none"), reduction="none")


def test_packed_moments():
    moments = latents.drawer("cpu", torch.float32)(9, 40).requires_grad_()
    z, kl = sample_kl_packed(moments, dim=1, seed=SEED)

    def grads(outputs, _, upstream):
        return torch.autograd.grad(outputs, moments, upstream)[0].chunk(2, 1)

    latents.check(latents.Posterior(*moments.chunk(2, 1)), z, kl, seed=SEED, reduction="sample", grads=grads)


@pytest.mark.parametrize("name", domains.REST)
def test_likelihoods(name):
    """One dtype and reduction each: these are the same code for all."""
    k = domains.REST.index(name)
    every.check(name, *every.leaves(name, (37, 99), BACKEND), ["none", "sample", "batchmean"][k % 3])
    every.check(name, *every.leaves(name, (2, 4096), BACKEND, [*HALVES, torch.float64][k % 3]), "mean")


@pytest.mark.parametrize("name", counting.NAMES)
def test_counts_over_their_whole_range(name):
    counting.check("kernels", name, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_derivative_in_theta_where_it_crosses_zero(dtype):
    """What is 0 as rounded is a rounding error where it is fused with the product that it is made of."""
    error = counting.error_of_dtheta_where_it_crosses_zero("kernels", dtype)
    assert error < (2e-6 if dtype == torch.float32 else 1e-8)


@pytest.mark.parametrize(
    ("layout", "dtype", "reduction", "options"),
    [
        ("MNIST", torch.float32, "batchmean", {}),
        ("unaligned", torch.float32, "none", {}),
        ("rows split over programs", torch.bfloat16, "sample", {"weight": "per sample"}),
        ("rows of 20", torch.float32, "sample", {"weight": "per sample"}),
        ("chunks of images", torch.float32, "mean", {"weight": "a mask of images"}),
        ("channels_last output", torch.bfloat16, "sum", {"target_dtype": torch.uint8}),
        ("full tiles", torch.float32, "sum", {"target_dtype": torch.int8}),  # four bytes at a time, with their signs
        ("primes", torch.float64, "mean", {"target_dtype": torch.int16, "target_scale": 1 / 3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_targets_and_weights(likelihood, layout, dtype, reduction, options):
    case = outputs.Case(layout, likelihood, BACKEND, dtype, **options)
    case.check(case.loss(reduction), reduction)


@pytest.mark.parametrize("layout", ["full tiles", "primes"])
def test_sampled_targets(layout):
    case = outputs.Case(layout, "bernoulli", BACKEND, target_dtype=torch.uint8, binarize=True, seed=SEED)
    case.check(case.loss(), "batchmean")


@pytest.mark.parametrize("layout", ["one number", "features", "channels of 7 x 7", "channels, channels_last"])
def test_shared_parameters(layout):
    case = sharing.Case(layout, BACKEND, dtype=torch.bfloat16 if layout == "features" else torch.float32)
    case.check(case.loss(), "batchmean")


@pytest.mark.parametrize(
    ("shape", "count", "dtype"),
    [
        ((3, 70), 10, torch.float32),  # packed rows
        ((3, 70), 3, torch.float64),
        ((9,), 257, torch.bfloat16),
        ((4, 16), 256, torch.float16),
        ((3,), 1000, torch.bfloat16),  # told to lie for 16-byte accesses
        ((2,), 20_000, torch.float32),  # in passes
        ((3,), 16_389, torch.bfloat16),  # with edges
    ],
    ids=str,
)
def test_classes(shape, count, dtype):
    logits, target = classes.case(shape, count, BACKEND, dtype)
    for reduction in ("none", "batchmean"):
        classes.check(logits, target, reduction)
    target[0] = -1
    classes.check(logits, target, "sample", ignore_index=-1, weight=classes.weight_of("elementwise", target))


@pytest.mark.parametrize("layout", ["classes second", "the batch innermost", "a chunk"])
def test_layouts_of_classes(layout):
    logits = classes.LAYOUTS[layout](latents.drawer("cpu", torch.float32), 10).requires_grad_()
    classes.check(logits, classes.classes((2, 3, 5), 10, "cpu"), "mean")


@pytest.mark.parametrize("weights", ["all", "kl"])
def test_the_whole_loss(weights):
    case = outputs.Case("MNIST", "gaussian", BACKEND, torch.bfloat16)
    kl = whole.make_kl(case, "a vector")
    losses = elbo_loss(case.output, case.target, kl, likelihood="gaussian", beta=0.3)
    whole.check(case, kl, 0.3, losses, whole.WEIGHTS[weights])


@triton.jit
def _shift(x, y, n, BLOCK: tl.constexpr, WHERE: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0)
    if WHERE == "within":
        tl.store(y + at, value, mask=at < n)
    elif WHERE == "beyond the end":
        tl.store(y + at, value, mask=at <= n)
    elif WHERE == "twice":
        tl.store(y + at // 2, value, mask=at < n)
    else:  # told what is not so
        tl.store(y + tl.multiple_of(at + 1, 4), value, mask=at < n)


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("within", None),
        ("beyond the end", "outside"),
        ("twice", "a second store"),
        ("at addresses that are no multiples", "no multiple"),
    ],
)
def test_what_a_gpu_would_not_do_is_a_fault(where, fault):
    x, y = torch.randn(1024), torch.empty(1024 + ("multiples" in where))
    with contextlib.nullcontext() if fault is None else pytest.raises(Fault, match=fault):
        _shift[(1,)](x, y, 1024, BLOCK=2048, WHERE=where)
    assert fault or torch.equal(x, y)


def test_what_lies_between_the_elements_of_a_tensor_is_none_of_its_kernel_s():
    x, y = torch.randn(64), torch.empty(128)[::2]
    with pytest.raises(Fault, match="between"):
        _shift[(1,)](x, y, 64, BLOCK=128, WHERE="within")
