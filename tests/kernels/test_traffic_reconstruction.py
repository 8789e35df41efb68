"""The bytes that the reconstruction kernels really load and store, by the exact formula of each argument."""

import pytest
import torch

from tests.kernels.outputs import LIKELIHOODS, Case
from tests.kernels.recording import bytes_moved, second_stage
from tests.support.environment import Backend
from vae_fast import elbo_loss, reconstruction_loss, use_backend
from vae_fast.kernels import likelihoods, tiling, upstreams

pytestmark = pytest.mark.interpreter_only

CPU = Backend("triton", "cpu")
VIEWS = [
    "the smallest",
    "MNIST",
    "primes",
    "full tiles",
    "one long row",
    "channels_last",
    "chunks of images",
    "channels_last target",  # the two layouts share no order
    "the batch innermost",
]


@pytest.fixture(autouse=True)
def _triton():
    with use_backend("triton"):
        yield


def grads_of(loss, case, upstream=None):
    return bytes_moved(lambda: torch.autograd.grad(loss, case.params, upstream))[0]


def names(argument, count):
    """Tensor k of a tuple of operands, each a pair of the tensor and its strides."""
    return [f"{argument}[{k}][0]" for k in range(count)]


def first_stage(case, partials=0, grads=True, **others):
    """The floor: parameters and target in, gradients out, each element once; the partial sums; others (kind, bytes)."""
    p, size = len(case.params), case.params[0].numel() * case.params[0].element_size()
    table = {("_reconstruct", name, "load"): size for name in names("parameters", p)}
    table["_reconstruct", "target[0]", "load"] = case.target.numel() * case.target.element_size()
    if grads:
        table |= {("_reconstruct", name, "store"): size for name in names("grads", p)}
    if partials:
        table["_reconstruct", "partials", "store"] = partials
    return table | {("_reconstruct", name, kind): count for name, (kind, count) in others.items()}


def programs(case):
    view, _ = tiling.view([*case.params, case.target], by_sample=False)
    return tiling.tiles(view, portion=likelihoods.portion(case.likelihood, case.params[0].dtype, False)).programs


def scalar(case):
    return 8 if case.params[0].dtype == torch.float64 else 4


def scaling(case, factor):
    """`_scale` reads the upstream gradient; unless that is 1, it reads and writes each gradient once."""
    table = {("_scale", "scalars[1]", "load"): scalar(case) * scaling_programs(case)}
    if factor != 1:
        size = case.params[0].numel() * case.params[0].element_size()
        for k in range(len(case.params)):
            table |= {("_scale", f"grads[{k}]", "load"): size, ("_scale", f"grads[{k}]", "store"): size}
    return table


def scaling_programs(case):
    return min(-(-case.target.numel() // tiling.FLAT_TILE), upstreams.SCALE_PROGRAMS)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("layout", VIEWS)
@pytest.mark.parametrize("reduction", ["sum", "mean", "batchmean"])
def test_forward_and_backward_move_2p_plus_1_elements(reduction, layout, likelihood):
    case = Case(layout, likelihood, CPU)
    table, loss = bytes_moved(lambda: reconstruction_loss(case.output, case.target, likelihood, reduction=reduction))
    partials = 4 * programs(case)
    assert table == first_stage(case, partials) | second_stage((partials, 4))
    assert grads_of(loss, case) == scaling(case, 1)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(
    ("dtype", "target_dtype"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.float32),
    ],
    ids=str,
)
def test_each_dtype_moves_its_own_bytes(dtype, target_dtype, likelihood):
    case = Case("MNIST", likelihood, CPU, dtype, target_dtype)
    table, loss = bytes_moved(lambda: reconstruction_loss(case.output, case.target, likelihood))
    partials = scalar(case) * programs(case)
    assert table == first_stage(case, partials) | second_stage((partials, scalar(case)))
    assert grads_of(loss, case) == scaling(case, 1)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("layout", ["MNIST", "channels_last", "one long row"])
def test_an_upstream_gradient_of_2_moves_2p_elements_more(layout, likelihood):
    case = Case(layout, likelihood, CPU)
    loss = reconstruction_loss(case.output, case.target, likelihood)
    assert grads_of(loss, case, torch.tensor(2.0)) == scaling(case, 2)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("layout", VIEWS)
def test_elementwise_losses(layout, likelihood):
    case = Case(layout, likelihood, CPU)
    size = 4 * case.target.numel()
    table, loss = bytes_moved(lambda: reconstruction_loss(case.output, case.target, likelihood, reduction="none"))
    assert table == first_stage(case, grads=False, **{"loss[0]": ("store", size)})
    assert grads_of(loss, case, torch.ones_like(loss)) == first_stage(case, **{"upstream[0]": ("load", size)})


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("layout", ["MNIST", "primes", "channels_last", "chunks of images"])
def test_losses_a_sample(layout, likelihood):
    case = Case(layout, likelihood, CPU)
    rows = 4 * len(case.target)
    table, loss = bytes_moved(lambda: reconstruction_loss(case.output, case.target, likelihood, reduction="sample"))
    assert table == first_stage(case, rows, grads=False)
    assert grads_of(loss, case, torch.ones_like(loss)) == first_stage(case, **{"upstream[0]": ("load", rows)})


def test_losses_of_long_samples_add_their_partial_sums():
    case = Case("rows split over programs", "bernoulli", CPU)
    partials = 4 * 2 * -(-4099 // tiling.ROW_TILE)
    table, _ = bytes_moved(lambda: reconstruction_loss(case.output, case.target, reduction="sample"))
    assert table == first_stage(case, partials, grads=False) | second_stage((partials, 4 * 2))


@pytest.mark.parametrize("reduction", ["sum", "batchmean"])
def test_float16_recomputes(reduction):
    case = Case("MNIST", "gaussian", CPU, torch.float16)
    table, loss = bytes_moved(lambda: reconstruction_loss(case.output, case.target, "gaussian", reduction=reduction))
    partials = 4 * programs(case)
    assert table == first_stage(case, partials, grads=False) | second_stage((partials, 4))
    assert grads_of(loss, case) == first_stage(case, **{"scalars[1]": ("load", 4 * programs(case))})


def test_without_gradients_p_plus_1_elements_move():
    case = Case("MNIST", "gaussian", CPU)
    with torch.no_grad():
        table, _ = bytes_moved(lambda: reconstruction_loss(case.output, case.target, "gaussian"))
    partials = 4 * programs(case)
    assert table == first_stage(case, partials, grads=False) | second_stage((partials, 4))


def test_a_parameter_without_a_gradient_gets_none_written():
    case = Case("MNIST", "gaussian", CPU)
    case.params[1].requires_grad_(False)
    table, _ = bytes_moved(lambda: reconstruction_loss(case.output, case.target, "gaussian"))
    assert ("_reconstruct", "grads[0][0]", "store") in table
    assert ("_reconstruct", "grads[1][0]", "store") not in table


@pytest.mark.parametrize("factor", [1.0, 2.0])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_elbo_loss(likelihood, factor):
    case = Case("MNIST", likelihood, CPU)
    kl = torch.rand(len(case.target)).requires_grad_()
    table, losses = bytes_moved(lambda: elbo_loss(case.output, case.target, kl, likelihood=likelihood))
    partials = 4 * programs(case)
    second = second_stage((partials, 4), (4 * kl.numel(), 4), kernel="_total")
    assert table == first_stage(case, partials) | second | {("_total", "total", "store"): 4}
    inputs, upstream = [*case.params, kl], torch.tensor(factor)
    table, _ = bytes_moved(lambda: torch.autograd.grad(losses.total, inputs, upstream))
    expected = scaling(case, factor)
    del expected["_scale", "scalars[1]", "load"]
    expected["_scale", "scalars[0]", "load"] = 4 * scaling_programs(case)
    expected["_scale", "scalars[4]", "store"] = 4  # the kl's gradient, a stride-0 expand
    assert table == expected
