"""What each call costs in launches, and that no intermediate as large as the data is allocated."""

import pytest
import torch

from tests.kernels.outputs import LIKELIHOODS, Case
from tests.kernels.recording import Operators
from tests.support.environment import Backend
from vae_fast import (
    SoftClamp,
    elbo_loss,
    gaussian_kl,
    reconstruction_loss,
    reparameterize,
    sample_kl,
    sample_kl_packed,
    use_backend,
)
from vae_fast.kernels import elbo as elbo_kernels
from vae_fast.kernels import gaussian, reconstruction, tiling

CPU = Backend("triton", "cpu")
LIMIT = tiling.MAX_COLUMNS
UP_TO_LIMIT = [(1, 1), (3, LIMIT), (1, LIMIT), (2, 4, 32, 32), (500, 3)]
BEYOND = [(2, LIMIT + 1), (1, LIMIT + 1), (2, 5, 32, 32)]


@pytest.fixture
def launched():
    """function -> (the kernels that it launches, in order; its result)."""
    from vae_fast.benchmarks.traffic import count_traffic

    def count(function):
        with count_traffic() as traffic:
            result = function()
        return traffic.kernels, result

    with use_backend("triton"):
        yield count


def leaf(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype, requires_grad=True)


def backward(outputs, inputs):
    outputs = [o for o in outputs if o.requires_grad]
    return lambda: torch.autograd.grad(outputs, inputs, [torch.ones_like(o) for o in outputs])


@pytest.mark.interpreter_only
@pytest.mark.parametrize("shape", [*UP_TO_LIMIT, *BEYOND], ids=str)
def test_sample_kl(shape, launched):
    for reduction in ("none", "sample"):
        mu, logvar = leaf(*shape), leaf(*shape)
        kernels, outputs = launched(lambda m=mu, v=logvar, r=reduction: sample_kl(m, v, reduction=r, seed=0))
        second = ["_sum_partials"] if reduction == "sample" and shape in BEYOND else []
        assert kernels == ["_forward", *second]
        assert launched(backward(outputs, (mu, logvar)))[0] == ["_backward"]


@pytest.mark.interpreter_only
@pytest.mark.parametrize(
    ("scale", "prior", "dtype", "most"),
    [
        ("softplus", False, torch.float32, LIMIT),
        ("std", True, torch.float32, LIMIT // 2),
        (SoftClamp(5.0, epsilon=0.01), False, torch.float32, LIMIT // 2),
        ("logvar", True, torch.float64, LIMIT // 4),
        ("std", False, torch.float64, LIMIT // 8),
    ],
)
def test_where_registers_are_dear_a_tile_takes_shorter_samples_whole(scale, prior, dtype, most, launched):
    for columns, second in ((most, []), (most + 1, ["_sum_partials"])):
        mu, v = leaf(2, columns, dtype=dtype), torch.ones(2, columns, dtype=dtype, requires_grad=True)
        options = {"scale": scale, "prior": (torch.zeros_like(mu), torch.ones_like(v)) if prior else None}
        kernels, outputs = launched(lambda m=mu, v=v, o=options: sample_kl(m, v, **o, reduction="sample", seed=0))
        assert kernels == ["_forward", *second]
        assert launched(backward(outputs, (mu, v)))[0] == ["_backward"]


@pytest.mark.interpreter_only
@pytest.mark.parametrize("reduction", ["latent", "sum", "mean", "batchmean"])
def test_sample_kl_of_the_other_reductions_takes_a_second_launch(reduction, launched):
    mu, logvar = leaf(3, 5), leaf(3, 5)
    kernels, outputs = launched(lambda: sample_kl(mu, logvar, reduction=reduction))
    assert kernels == ["_forward", "_sum_partials"]
    assert launched(backward(outputs, (mu, logvar)))[0] == ["_backward"]


@pytest.mark.interpreter_only
@pytest.mark.parametrize("prior", [False, True])
def test_every_option_of_the_latents_is_in_the_one_kernel(prior, launched):
    moments, (m, v) = leaf(3, 8), (leaf(3, 4), leaf(3, 4))
    options = {"logvar_clamp": (-3, 3), "prior": (leaf(3, 4), leaf(4)) if prior else None}
    for call, inputs in (
        (lambda: sample_kl_packed(moments, **options), (moments,)),
        (lambda: sample_kl(m, v, eps=torch.zeros(3, 4), **options), (m, v)),
        (lambda: [gaussian_kl(m, v, reduction="sample", **options)], (m, v)),
        (lambda: [reparameterize(m, v)], (m, v)),
    ):
        kernels, outputs = launched(call)
        assert kernels == ["_forward"]
        assert launched(backward(outputs, inputs))[0] == ["_backward"]


@pytest.mark.interpreter_only
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_reconstruction_loss(dtype, likelihood, launched):
    for reduction in ("none", "sample", "sum", "mean", "batchmean"):
        case = Case("MNIST", likelihood, CPU, dtype)
        kernels, loss = launched(
            lambda c=case, r=reduction: reconstruction_loss(c.output, c.target, likelihood, reduction=r)
        )
        scalar = reduction not in ("none", "sample")
        assert kernels == ["_reconstruct", *(["_sum_partials"] if scalar else [])]
        made = scalar and dtype != torch.float16
        assert launched(backward([loss], case.params))[0] == ["_scale" if made else "_reconstruct"]


@pytest.mark.interpreter_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shared", [[()], [(784,)], [(), (784,)]], ids=str)
def test_one_launch_finishes_the_loss_and_the_gradients_of_shared_parameters(shared, dtype, launched):
    likelihood = "gaussian" if len(shared) == 1 else "zero_inflated_negative_binomial"
    params = [torch.ones(shape, dtype=dtype, requires_grad=True) for shape in ((3, 784), *shared)]
    x = torch.zeros(3, 784)
    recomputed = ["_reconstruct", "_sum_partials"]
    made = recomputed if dtype == torch.float16 else ["_scale"]

    def loss(reduction):
        return launched(lambda: reconstruction_loss(tuple(params), x, likelihood, reduction=reduction))

    kernels, scalar = loss("batchmean")
    assert kernels == ["_reconstruct", "_sum_partials"]
    assert launched(backward([scalar], params))[0] == made
    for reduction in ("none", "sample"):
        kernels, losses = loss(reduction)
        assert kernels == ["_reconstruct"]
        assert launched(backward([losses], params))[0] == recomputed
    kernels, losses = launched(lambda: elbo_loss(tuple(params), x, leaf(3), likelihood=likelihood))
    assert kernels == ["_reconstruct", "_total"]
    assert launched(backward([losses.total], params))[0] == made


@pytest.mark.interpreter_only
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_elbo_loss_takes_two_launches_and_one(dtype, likelihood, launched):
    for kl in (leaf(3), leaf()):
        case = Case("MNIST", likelihood, CPU, dtype)
        kernels, losses = launched(lambda c=case, k=kl: elbo_loss(c.output, c.target, k, likelihood=likelihood))
        assert kernels == ["_reconstruct", "_total"]
        recomputes = dtype == torch.float16
        expected = ["_reconstruct" if recomputes else "_scale"]
        assert launched(backward([losses.total], [*case.params, kl]))[0] == expected


@pytest.mark.interpreter_only
@pytest.mark.parametrize(("source", "maker"), [({}, "randint"), ({"seed": 0}, "full")], ids=["drawn", "seed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_whole_loss_takes_five_launches_and_one_for_its_seed(dtype, source, maker, launched):
    moments, output = leaf(8, 64, dtype=dtype), leaf(8, 784, dtype=dtype)
    target, one = torch.zeros(8, 784, dtype=dtype), torch.ones(())

    def whole_loss():
        with Operators() as operators:
            z, kl = sample_kl_packed(moments, **source)
            # the decoder would stand here; its input's gradient stands for z's
            losses = elbo_loss(output, target, kl)
            torch.autograd.backward([losses.total, z], [one, torch.ones_like(z)])
        return operators

    kernels, operators = launched(whole_loss)
    assert sorted(kernels) == sorted(
        ["_forward", "_reconstruct", "_total", "_reconstruct" if dtype == torch.float16 else "_scale", "_backward"]
    )
    ours = ["gaussian_forward", "elbo_forward", "gaussian_backward"]
    ours.append("elbo_backward" if dtype == torch.float16 else "elbo_scale_")
    ones = ["ones_like"]  # this test's own upstream gradient
    assert sorted(operators.names) == sorted([maker, *ours, *ones])


@pytest.mark.interpreter_only
def test_what_the_ops_allocate_is_what_they_return(launched):
    """The moments' gradient, z, and the output's gradient: no other tensor is as large as the data."""
    moments, output = leaf(8, 64), leaf(8, 784)
    target = torch.zeros(8, 784)
    with Operators() as operators:
        z, kl = sample_kl_packed(moments)
        losses = elbo_loss(output, target, kl)
        torch.autograd.grad([losses.total, z], [moments, output], [torch.ones(()), torch.ones_like(z)])
    large = sorted(size for size in operators.sizes if size >= 4 * z.numel())
    upstream = 4 * z.numel()
    assert large == sorted([4 * z.numel(), upstream, 4 * moments.numel(), 4 * output.numel()])


KERNEL_CALLS = {  # launcher -> its arguments, and the elements that it returns in tensors as large as the data
    "sample and KL": (lambda m, s: gaussian.forward(m, m, seed=s, reduction="sample"), 1),
    "sample and scalar KL": (lambda m, s: gaussian.forward(m, m, seed=s, reduction="sum"), 1),
    "elementwise KL": (lambda m, s: gaussian.forward(m, m, reduction="none"), 1),
    "KL a latent": (lambda m, s: gaussian.forward(m, m, reduction="latent"), 0),
    "backward of sample and KL": (
        lambda m, s: gaussian.backward(m, m[:, 0], m, m, seed=s, reduction="sample"),
        2,
    ),
    "backward of the sample": (lambda m, s: gaussian.backward(m, None, m, m, seed=s), 1),
    "reconstruction": (lambda m, s: reconstruction.forward((m, m), m, "gaussian", "sum", [True, True]), 2),
    "reconstruction a sample": (lambda m, s: reconstruction.forward((m,), m, "mse", "sample", [False]), 0),
    "backward of reconstruction": (
        lambda m, s: reconstruction.backward(m[0, 0], (m, m), m, "gaussian", "mean", [True, True]),
        2,
    ),
    "scaling": (lambda m, s: reconstruction.scale_((m, m), m[0, 0]), 0),
    "ELBO": (lambda m, s: elbo_kernels.forward((m,), m, m[:, 0], None, 1.0, "bernoulli", [True]), 1),
}
LAYOUTS = {
    "rows": lambda: torch.empty(64, 784),
    "a chunk": lambda: torch.empty(64, 2 * 784).chunk(2, 1)[1],
    "split rows": lambda: torch.empty(64, 5000),
    "the batch innermost": lambda: torch.empty(784, 64).t(),
}


@pytest.mark.compiled_only
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", KERNEL_CALLS)
def test_launchers_allocate_their_results_and_partial_sums_alone(call, layout):
    """Recorded, not run: no operator of PyTorch computes anything, and no copy of a strided tensor is made."""
    from vae_fast.benchmarks.launches import record_launches

    launcher, results = KERNEL_CALLS[call]
    tensor, seed = LAYOUTS[layout](), torch.zeros(1, dtype=torch.int64)
    size = 4 * tensor.numel()
    with record_launches(), Operators() as operators:
        launcher(tensor, seed)
    assert not operators.names
    assert [n for n in operators.sizes if n >= size] == [size] * results
    assert sum(n for n in operators.sizes if n < size) <= size / 8  # the partial sums; 1/32 for "latent"


@pytest.mark.compiled_only
def test_products_are_added_in_one_instruction_whatever_triton_s_default(monkeypatch):
    import triton

    from vae_fast.benchmarks.launches import TARGETS, record_launches

    monkeypatch.setattr(triton.knobs.language, "default_fp_fusion", False)
    with record_launches() as launches:
        for launcher, _ in KERNEL_CALLS.values():
            launcher(torch.empty(64, 784), torch.zeros(1, dtype=torch.int64))
    assert len(launches) >= len(KERNEL_CALLS)
    assert all(each.specialize(target).options.enable_fp_fusion for each in launches for target in TARGETS.values())
