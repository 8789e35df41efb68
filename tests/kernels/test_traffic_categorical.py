"""The bytes that the categorical kernel really loads and stores, by the exact formula of each argument."""

import pytest
import torch

from tests.kernels.classes import LAYOUTS, case, classes
from tests.kernels.latents import drawer
from tests.kernels.recording import bytes_moved, second_stage
from tests.support.environment import Backend
from vae_fast import Categorical, elbo_loss, reconstruction_loss, use_backend
from vae_fast.kernels import categorical, packed_rows, tiling, upstreams

pytestmark = pytest.mark.interpreter_only

CPU = Backend("triton", "cpu")
LONG = categorical.MAX_CLASSES + 5


@pytest.fixture(autouse=True)
def _triton():
    with use_backend("triton"):
        yield


def size(tensor):
    return tensor.numel() * tensor.element_size()


def is_packed(logits):
    least = packed_rows.MOST // (2 if logits.dtype == torch.float64 else 1)
    return 1 < logits.shape[-1] < least and logits.shape[-1] % 16 != 0 and logits.is_contiguous()


def kernel(logits, target, reads=1, grads=True, **others):
    """Logits read `reads` times, and the targets' own once more but in packed rows; the target once, the gradient
    written once; others (kind, bytes)."""
    own = 0 if is_packed(logits) else target.numel() * logits.element_size()
    table = {
        ("_categorical", "logits[0]", "load"): reads * size(logits) + own,
        ("_categorical", "target", "load"): size(target),
    }
    if grads:
        table["_categorical", "grad[0]", "store"] = size(logits)
    return table | {("_categorical", name, kind): count for name, (kind, count) in others.items()}


def programs(logits, target):
    count, classes, double = target.numel(), logits.shape[-1], logits.dtype == torch.float64
    if is_packed(logits):
        return -(-count // packed_rows.tile(classes)[0])
    return -(-count // categorical.tile(count, classes, True, classes % 16 == 0, double)[0])


def scaling(logits, scalar=4):
    count = min(-(-logits.numel() // tiling.FLAT_TILE), upstreams.SCALE_PROGRAMS)
    return {("_scale", "scalars[1]", "load"): scalar * count}


def grads_of(loss, logits, upstream=None):
    return bytes_moved(lambda: torch.autograd.grad(loss, logits, upstream))[0]


@pytest.mark.parametrize("target_dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("shape", "count"), [((5,), 1), ((33,), 2), ((3, 7), 10), ((64,), 256), ((2, 3), 1000)], ids=str
)
def test_forward_and_backward_move_twice_the_logits_and_the_target(shape, count, dtype, target_dtype):
    logits, target = case(shape, count, CPU, dtype)
    target = target.to(target_dtype)
    table, loss = bytes_moved(lambda: reconstruction_loss(logits, target, "categorical"))
    scalar = 8 if dtype == torch.float64 else 4
    partials = scalar * programs(logits, target)
    assert table == kernel(logits, target, partials=("store", partials)) | second_stage((partials, scalar))
    assert grads_of(loss, logits) == scaling(logits, scalar)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    if layout.startswith("expanded"):
        pytest.skip("an expanded tensor is read in part of its size, and its gradient is written whole")
    for count in (16, 10):
        logits = LAYOUTS[layout](drawer("cpu", torch.float32), count).detach().requires_grad_()
        target = classes(logits.shape[:-1], count, "cpu")
        table, loss = bytes_moved(lambda x=logits, t=target: reconstruction_loss(x, t, "categorical", reduction="none"))
        assert table == kernel(logits, target, grads=False, loss=("store", size(loss)))
        expected = kernel(logits, target, upstream=("load", size(loss)))
        assert grads_of(loss, logits, torch.ones_like(loss)) == expected


def test_one_loss_a_sample():
    logits, target = case((6,), 10, CPU)
    table, loss = bytes_moved(lambda: reconstruction_loss(logits, target, "categorical", reduction="sample"))
    assert table == kernel(logits, target, grads=False, loss=("store", 4 * 6))
    assert grads_of(loss, logits, torch.ones_like(loss)) == kernel(logits, target, upstream=("load", 4 * 6))


def test_several_losses_a_sample_are_written_and_read_once_more():
    logits, target = case((6, 5), 10, CPU)
    table, loss = bytes_moved(lambda: reconstruction_loss(logits, target, "categorical", reduction="sample"))
    assert table == kernel(logits, target, grads=False, loss=("store", 4 * 30)) | second_stage((4 * 30, 4 * 6))
    assert grads_of(loss, logits, torch.ones_like(loss)) == kernel(logits, target, upstream=("load", 4 * 30))


def between_accesses(rows, count, dtype):
    """The bytes of rows that lie before the first 16-byte access, and behind the last: they are read once."""
    size = torch.finfo(dtype).bits // 8
    heads = [-row * count % (16 // size) for row in range(rows)]
    return sum(head + (count - head) % (16 // size) for head in heads) * size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [LONG, LONG + 1, LONG + 3])
def test_more_classes_than_fit_are_read_again_for_the_gradient(count, dtype):
    logits, target = case((3,), count, CPU, dtype)
    partials = 4 * 3
    table, loss = bytes_moved(lambda: reconstruction_loss(logits, target, "categorical", reduction="sum"))
    expected = kernel(logits, target, reads=2, partials=("store", partials)) | second_stage((partials, 4))
    expected["_categorical", "logits[0]", "load"] -= between_accesses(3, count, dtype)
    assert table == expected
    assert grads_of(loss, logits) == scaling(logits)
    with torch.no_grad():
        table, _ = bytes_moved(lambda: reconstruction_loss(logits, target, "categorical", reduction="sum"))
    expected = kernel(logits, target, grads=False, partials=("store", partials)) | second_stage((partials, 4))
    assert table == expected


def test_float16_recomputes():
    logits, target = case((4, 5), 10, CPU, torch.float16)
    table, loss = bytes_moved(lambda: reconstruction_loss(logits, target, "categorical"))
    partials = 4 * programs(logits, target)
    assert table == kernel(logits, target, grads=False, partials=("store", partials)) | second_stage((partials, 4))
    assert grads_of(loss, logits) == kernel(
        logits, target, upstream=("load", 4 * target.numel())
    )  # one number, for each


@pytest.mark.parametrize("kind", ["a mask", "per sample"])
def test_a_weight_is_read_once_an_element_in_its_own_dtype(kind):
    logits, target = case((6, 5), 10, CPU)
    weight = torch.ones(30 if kind == "a mask" else 6).view(target.shape if kind == "a mask" else -1)
    weight = weight.bool() if kind == "a mask" else weight
    read = "load", 30 * weight.element_size()
    table, loss = bytes_moved(lambda: reconstruction_loss(logits, target, "categorical", weight=weight))
    partials = 4 * programs(logits, target)
    assert table == kernel(logits, target, weight=read, partials=("store", partials)) | second_stage((partials, 4))
    assert grads_of(loss, logits) == scaling(logits)
    loss = reconstruction_loss(logits, target, "categorical", reduction="none", weight=weight)
    expected = kernel(logits, target, weight=read, upstream=("load", size(loss)))
    assert grads_of(loss, logits, torch.ones_like(loss)) == expected


@pytest.mark.parametrize("count", [10, 100, LONG])
def test_logits_that_are_left_out_are_not_read_unless_packed(count):
    logits, target = case((4,), count, CPU)
    weight = torch.tensor([1.0, 0.0, 0.0, 0.0])
    reads = {10: 4, 100: 1, LONG: 2}[count]  # of a row
    ignored = torch.where(weight == 0, -100, target)
    for call in (
        lambda: reconstruction_loss(logits, ignored, Categorical(ignore_index=-100)),
        lambda: reconstruction_loss(logits, target, "categorical", weight=weight),
    ):
        table, _ = bytes_moved(call)
        once = between_accesses(1, count, torch.float32) if count == LONG else 0
        assert table["_categorical", "logits[0]", "load"] == reads * 4 * count + 4 * (count > 10) - once
        assert table["_categorical", "grad[0]", "store"] == size(logits)


def test_elbo_loss_moves_what_the_reconstruction_does():
    """The kl is averaged and added by PyTorch; the total's gradient reaches the loss as 1."""
    logits, target = case((4, 5), 10, CPU)
    kl = torch.rand(4, requires_grad=True)
    table, losses = bytes_moved(lambda: elbo_loss(logits, target, kl, likelihood="categorical", beta=0.5))
    partials = 4 * programs(logits, target)
    assert table == kernel(logits, target, partials=("store", partials)) | second_stage((partials, 4))
    table, _ = bytes_moved(lambda: torch.autograd.grad(losses.total, [logits, kl]))
    assert table == scaling(logits)
