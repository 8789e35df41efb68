"""The categorical likelihood: value and gradient, over classes, dtypes and layouts, and what is left out."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.kernels.classes import LAYOUTS, case, check, classes, weight_of
from tests.kernels.latents import DTYPES, drawer
from vae_fast import Categorical, elbo_loss, reconstruction_loss
from vae_fast.kernels import categorical as kernels

# NumPy's, in the interpreter
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|divide by zero|invalid value):RuntimeWarning")

INF, NAN = float("inf"), float("nan")
REDUCTIONS = ["none", "sample", "sum", "mean", "batchmean"]
SIZES = [
    ((5,), 1),  # one class: nothing to learn
    ((33,), 2),  # a last program of one element
    ((3, 7), 10),
    ((9,), 257),  # grey levels and one more: the tile's tail is masked
    ((2, 3), 1000),
    ((4, 16), 256),  # grey levels: whole tiles
    ((3,), 4099),
    ((2,), 100_000),  # beyond a tile: read in passes
]


@pytest.mark.parametrize(("shape", "count"), SIZES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_values_and_gradients(reduction, shape, count, backend):
    check(*case(shape, count, backend), reduction)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "count"), [((4, 5), 10), ((3,), 257), ((2,), 20_000)], ids=str)
def test_every_dtype(shape, count, dtype, backend):
    for reduction in ("none", "sample", "batchmean"):
        check(*case(shape, count, backend, dtype), reduction)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_every_dtype_of_the_target(dtype, backend):
    logits, target = case((4, 5), 100, backend, target_dtype=dtype)
    loss, grad = check(logits, target, "sum")
    same = reconstruction_loss(logits, target.long(), "categorical", reduction="sum")
    assert torch.equal(loss, same)
    assert grad.isfinite().all()


def test_all_256_levels_of_uint8(backend):
    target = torch.arange(256, dtype=torch.uint8, device=backend.device)
    logits = drawer(backend.device, torch.float32)(256, 256).requires_grad_()
    check(logits, target, "none")
    check(logits, target, "mean", ignore_index=255)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", ["none", "sample", "batchmean"])
def test_layouts(reduction, layout, backend):
    for count in (4, 37):
        logits = LAYOUTS[layout](drawer(backend.device, torch.float32), count).detach().requires_grad_()
        check(logits, classes(logits.shape[:-1], count, backend.device), reduction, ignore_index=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [600, 601, 602])  # whose rows begin with an access of 16 bytes, or within one
@pytest.mark.parametrize("layout", ["contiguous", "classes second", "the batch innermost", "stepped", "a chunk"])
def test_layouts_of_rows_read_in_passes(layout, count, dtype, backend, monkeypatch):
    monkeypatch.setattr(kernels, "MAX_CLASSES", 16)
    monkeypatch.setattr(kernels, "PASS", 256)
    logits = LAYOUTS[layout](drawer(backend.device, dtype), count).detach().requires_grad_()
    target = classes(logits.shape[:-1], count, backend.device)
    for reduction in ("none", "batchmean"):
        check(logits, target, reduction, ignore_index=target[0, 0, 0].item())


@pytest.mark.parametrize("place", [0, 2, 3, 4, 255, 256, 257, 600])
def test_each_place_of_a_target_in_rows_with_edges(place, backend, monkeypatch):
    """Before the body, in either of its tiles, and behind it, whose bounds are others in each row."""
    monkeypatch.setattr(kernels, "MAX_CLASSES", 16)
    monkeypatch.setattr(kernels, "PASS", 256)
    logits, target = case((5,), 601, backend)
    with torch.no_grad():
        logits[1], logits[2, :4], logits[2, -4:] = -INF, 90.0, 91.0
        logits[1, place] = 0.0
    check(logits, target.fill_(place), "none")


def test_a_target_of_another_layout(backend):
    logits, target = case((4, 3, 5), 7, backend)
    other = target.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert other.stride() != target.stride()
    for reduction in ("none", "sample", "mean"):
        check(logits, other, reduction)
    check(logits, target[:1, :, :1].expand(4, 3, 5), "sample")


class TestIgnoreIndex:
    def test_elements_left_out_count_as_nothing_even_where_they_are_nan(self, backend):
        logits, target = case((4, 6), 10, backend)
        target[1, 2:], target[3] = -100, -100
        with torch.no_grad():
            logits[1, 2:] = NAN
            logits[3, :3], logits[3, 3:] = INF, -INF
        for reduction in REDUCTIONS:
            loss, grad = check(logits, target, reduction, ignore_index=-100)
            assert loss.isfinite().all()
            assert not grad[target == -100].any()

    def test_elements_left_out_may_be_of_classes_that_cannot_be(self, backend):
        """Their logits stay as they are where none is NaN or inf, and the nll of one would be inf."""
        logits, target = case((4, 6), 10, backend)
        target[2] = 0
        with torch.no_grad():
            logits[2, :, :3] = -INF
        for reduction in REDUCTIONS:
            loss, grad = check(logits, target, reduction, ignore_index=0)
            assert loss.isfinite().all()
            assert not grad[target == 0].any()

    def test_a_class_may_be_left_out(self, backend):
        logits, target = case((4, 6), 3, backend)
        nll = reconstruction_loss(logits, target, Categorical(ignore_index=0), reduction="none")
        full = reconstruction_loss(logits, target, "categorical", reduction="none")
        assert torch.equal(nll, torch.where(target == 0, 0.0, full))

    def test_a_mean_is_over_all_elements(self, backend):
        """Unlike torch's, which divides by those that are not left out."""
        logits, target = case((4, 6), 3, backend)
        loss = reconstruction_loss(logits, target, Categorical(ignore_index=2), reduction="mean")
        torchs = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=2)
        kept = (target != 2).sum()
        torch.testing.assert_close(loss, torchs * kept / target.numel())

    @pytest.mark.parametrize("count", [3, 20_000])
    def test_all_left_out(self, count, backend):
        logits, target = case((4,), count, backend)
        target.fill_(-1)
        for reduction in REDUCTIONS:
            loss, grad = check(logits, target, reduction, ignore_index=-1)
            assert not loss.any()
            assert not grad.any()

    @pytest.mark.parametrize("index", [-(2**63), 2**63 - 1, 2**40, 1])
    def test_any_int64(self, index, backend):
        logits, target = case((5,), 3, backend)
        target[2] = index
        check(logits, target, "none", ignore_index=index)


class TestExtremes:
    @pytest.mark.parametrize("count", [10, 20_000])
    def test_large_logits(self, count, backend):
        for scale in (1e4, -1e4):
            logits, target = case((3, 4), count, backend)
            with torch.no_grad():
                logits[:, 0], logits[:, 1], logits[0, 2, 3] = scale, logits[:, 1] + scale, scale
            for reduction in ("none", "sum"):
                loss, grad = check(logits, target, reduction)
                assert loss.isfinite().all()
                assert grad.isfinite().all()

    @pytest.mark.parametrize("count", [10, 20_000])
    def test_a_row_of_the_lowest_number_is_as_any_of_equal_logits(self, count, backend):
        """With which padding is masked."""
        logits, target = case((3, 4), count, backend)
        with torch.no_grad():
            logits[1] = torch.finfo(torch.float32).min
        loss, grad = check(logits, target, "none")
        torch.testing.assert_close(loss[1], torch.full_like(loss[1], np.log(count)))
        assert grad.isfinite().all()

    @pytest.mark.parametrize("count", [10, 20_000])
    def test_masked_classes(self, count, backend):
        """A logit of -inf is a class of probability 0, and costs nothing."""
        logits, target = case((3, 4), count, backend)
        with torch.no_grad():
            logits[..., 1::2] = -INF
        target = target // 2 * 2
        loss, grad = check(logits, target, "none")
        assert loss.isfinite().all()
        assert not grad[..., 1::2].any()
        impossible = reconstruction_loss(logits, target + 1, "categorical", reduction="none")
        assert (impossible == INF).all()
        (grad,) = torch.autograd.grad(impossible.sum(), logits)
        at_target = grad.gather(-1, target.unsqueeze(-1) + 1)
        torch.testing.assert_close(at_target, torch.full_like(at_target, -1.0))
        assert grad.isfinite().all()

    @pytest.mark.parametrize("reduction", ["none", "sum"])
    @pytest.mark.parametrize("count", [10, 32])
    def test_a_target_that_is_next_to_impossible(self, count, reduction, backend):
        """Its probability is below float32's smallest, its nll is not; beside elements of every other kind."""
        logits, target = case((3, 4), count, backend)
        with torch.no_grad():
            logits[0] = 0
            below = torch.tensor([-70.0, -85.0, -95.0, -200.0], device=backend.device)
            logits[0].scatter_(-1, target[0].unsqueeze(-1), below.unsqueeze(-1))
            logits[1, 1, 3:], target[1, 1] = NAN, -100
            logits[1, 2, 0], target[1, 2] = -INF, -100  # index 0 stands for one that is no class
            logits[2, :, 4:] = -INF
        target[2] %= 4
        loss, grad = check(logits, target, reduction, ignore_index=-100)
        assert loss.isfinite().all()
        assert grad.isfinite().all()

    @pytest.mark.parametrize("count", [10, 20_000])
    @pytest.mark.parametrize("value", [NAN, INF])
    def test_nan_stays_in_its_element(self, value, count, backend):
        for place in (0, count - 1):  # the target, and another class
            logits, target = case((3, 2), count, backend)
            target.fill_(0)
            with torch.no_grad():
                logits[1, 1, place] = value
            loss = reconstruction_loss(logits, target, "categorical", reduction="none")
            (grad,) = torch.autograd.grad(loss.sum(), logits)
            affected = torch.zeros(3, 2, dtype=torch.bool, device=backend.device)
            affected[1, 1] = True
            assert torch.equal(~loss.isfinite(), affected)
            assert torch.equal((~grad.isfinite()).any(-1), affected)

    @pytest.mark.parametrize("count", [10, 20_000])
    def test_a_target_that_is_no_class_is_nan(self, count, backend):
        logits, target = case((3, 3), count, backend)
        wrong = torch.tensor([-1, count, -100, 2**31, -(2**63), 2**63 - 1], device=backend.device)
        target.flatten()[:6] = wrong
        loss, grad = check(logits, target, "none")
        expected = torch.arange(9, device=backend.device).view(3, 3) < 6
        assert torch.equal(loss.isnan(), expected)
        assert torch.equal(grad.isnan().all(-1), expected)
        assert reconstruction_loss(logits, target, "categorical").isnan()

    @pytest.mark.parametrize("count", [10, 20_000])
    def test_a_confident_prediction_keeps_its_digits(self, count, backend):
        """softmax - 1 and log(softmax) have none left in float32 from about 17 nats on."""
        logits = torch.zeros(1, 2, count, device=backend.device)
        logits[..., 3] = torch.tensor([20.0, 60.0], device=backend.device)
        logits.requires_grad_()
        target = torch.full((1, 2), 3, device=backend.device)
        loss, grad = check(logits, target, "none", upstream=torch.ones(1, 2, device=backend.device))
        rest = (count - 1) * torch.exp(torch.tensor([[-20.0, -60.0]], dtype=torch.float64))
        torch.testing.assert_close(loss.double().cpu(), torch.log1p(rest), rtol=5e-6, atol=0)
        torch.testing.assert_close(grad[..., 3].double().cpu(), -rest / (1 + rest), rtol=5e-6, atol=0)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)], ids=str)
def test_empty(shape, backend):
    for dtype, number in itertools.product(DTYPES, (4, 40)):  # of many classes the eager path takes PyTorch's softmax
        logits, target = case(shape, number, backend, dtype)
        for reduction in REDUCTIONS:
            loss = reconstruction_loss(logits, target, "categorical", reduction=reduction)
            count = {"mean": 0, "batchmean": shape[0]}.get(reduction, 1)
            assert loss.shape == {"none": shape, "sample": shape[:1]}.get(reduction, ())
            assert loss.isnan().all() if count == 0 else not loss.any()
            (grad,) = torch.autograd.grad(2 * loss.sum(), logits)
            assert grad.shape == logits.shape
        kl = torch.ones(shape[:1], device=backend.device)
        assert elbo_loss(logits, target, kl, likelihood="categorical").total.isnan() == (shape[0] == 0)


@pytest.mark.parametrize("beta", ["number", "tensor"])
@pytest.mark.parametrize("averaged", [False, True])
def test_in_the_whole_loss(averaged, beta, backend):
    logits, target = case((4, 6), 10, backend)
    target[2] = -100
    kl = torch.rand(() if averaged else (4,), device=backend.device, requires_grad=True)
    weight = 2.0 if beta == "number" else torch.tensor(2.0, device=backend.device)
    likelihood = Categorical(ignore_index=-100)
    losses = elbo_loss(logits, target, kl, likelihood=likelihood, beta=weight)
    nll = reconstruction_loss(logits, target, likelihood)
    torch.testing.assert_close(losses.reconstruction, nll)
    torch.testing.assert_close(losses.kl, kl.mean())
    torch.testing.assert_close(losses.total, nll + 2 * kl.mean())
    ours = torch.autograd.grad(sum(losses), (logits, kl))
    torch.testing.assert_close(ours, torch.autograd.grad(2 * nll + 3 * kl.mean(), (logits, kl)))


def test_sums_are_deterministic(backend):
    logits, target = case((301,), 33, backend)
    losses = [reconstruction_loss(logits, target, "categorical", reduction="sum") for _ in range(2)]
    assert torch.equal(*losses)
    assert np.isfinite(losses[0].item())


@pytest.mark.usefixtures("planning_anew")
def test_in_64_bit_arithmetic(backend, monkeypatch):
    from vae_fast.kernels import tiling

    monkeypatch.setattr(tiling, "MAX_INT32_EXTENT", 0)
    monkeypatch.setattr(kernels, "PASS", 256)
    in_passes = (16, 301), (16, 304)
    tiling._merge.cache_clear()
    try:
        for layout in ("contiguous", "classes second", "a chunk of elements"):
            for most, count in ((kernels.PASS, 37), *in_passes):
                monkeypatch.setattr(kernels, "MAX_CLASSES", most)
                logits = LAYOUTS[layout](drawer(backend.device, torch.float32), count).detach().requires_grad_()
                target = classes(logits.shape[:-1], count, backend.device)
                check(logits, target, "sample", weight=weight_of("shared by samples", target))
    finally:
        tiling._merge.cache_clear()
