"""The categorical likelihood weighted: by sample, by element, by what broadcasts, and by masks that hide anything."""

import pytest
import torch

from tests.kernels.classes import LAYOUTS, WEIGHTS, case, check, classes, weight_of
from tests.kernels.latents import DTYPES, drawer
from vae_fast import Categorical, elbo_loss, reconstruction_loss

# NumPy's, in the interpreter
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|divide by zero|invalid value):RuntimeWarning")

INF, NAN = float("inf"), float("nan")
REDUCTIONS = ["none", "sample", "sum", "mean", "batchmean"]


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize(("shape", "count"), [((4, 6), 10), ((5,), 256), ((2, 3), 20_000)], ids=str)
def test_values_and_gradients(shape, count, kind, backend):
    logits, target = case(shape, count, backend)
    for reduction in REDUCTIONS:
        check(logits, target, reduction, weight=weight_of(kind, target), ignore_index=target.flatten()[0].item())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["per sample", "a mask"])
def test_every_dtype(kind, dtype, backend):
    logits, target = case((4, 5), 10, backend, dtype)
    for reduction in ("none", "sample", "batchmean"):
        check(logits, target, reduction, weight=weight_of(kind, target))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, backend):
    logits = LAYOUTS[layout](drawer(backend.device, torch.float32), 37).detach().requires_grad_()
    target = classes(logits.shape[:-1], 37, backend.device)
    for kind in WEIGHTS:
        check(logits, target, "batchmean", weight=weight_of(kind, target))


@pytest.mark.parametrize("count", [10, 20_000])
def test_a_weight_of_0_hides_anything(count, backend):
    logits, target = case((4, 6), count, backend)
    weight = torch.ones(4, 6, device=backend.device)
    weight[1, 2:], weight[3], target[1, 2], target[3, 0] = 0, 0, -1, count
    with torch.no_grad():
        logits[1, 2:] = NAN
        logits[3, :3], logits[3, 3:] = INF, -INF
    for given in (weight, weight.bool()):
        for reduction in REDUCTIONS:
            loss, grad = check(logits, target, reduction, weight=given)
            assert loss.isfinite().all()
            assert not grad[weight == 0].any()
            _, grad = check(logits, target, reduction, weight=given, ignore_index=target[0, 0].item())
            assert grad.isfinite().all()


def test_a_weight_that_is_nan_shows(backend):
    logits, target = case((4,), 10, backend)
    weight = torch.tensor([1.0, NAN, 0.0, 1.0], device=backend.device)
    loss, grad = check(logits, target, "none", weight=weight)
    assert loss.isnan().tolist() == grad.isnan().all(-1).tolist() == [False, True, False, False]


def test_a_mask_is_what_ignore_index_is(backend):
    logits, target = case((4, 6), 10, backend)
    for reduction in REDUCTIONS:
        ignored = reconstruction_loss(logits, target, Categorical(ignore_index=3), reduction=reduction)
        masked = reconstruction_loss(logits, target, "categorical", reduction=reduction, weight=target != 3)
        assert torch.equal(masked, ignored)


def test_in_the_whole_loss(backend):
    logits, target = case((4, 6), 10, backend)
    weight, kl = weight_of("per sample", target), torch.ones(4, device=backend.device)
    losses = elbo_loss(logits, target, kl, likelihood="categorical", weight=weight)
    nll = reconstruction_loss(logits, target, "categorical", weight=weight)
    assert torch.equal(losses.reconstruction, nll)
    torch.testing.assert_close(losses.total, nll + 1)
