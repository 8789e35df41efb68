"""Faults that users of other projects reported: addresses beyond 2^31, and other devices."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.faults import plain
from tests.ops.cases import LATENT_REDUCTIONS, REDUCTIONS, values
from tests.support.tolerance import assert_noise_close
from vae_fast import (
    elbo_loss,
    gaussian_kl,
    reconstruction_loss,
    reparameterize,
    sample_kl,
    sample_kl_packed,
    use_backend,
)
from vae_fast.reference import noise as reference

pytest.importorskip("triton")
from vae_fast.kernels import reconstruction, reductions, tiling

BIG = 2**31

# Tensors on no device, each with an element beyond 2^31: (tensors of one launch, one row a sample)
BEYOND = {
    "flat": (lambda: [torch.empty(BIG + 5, device="meta")], False),
    "long samples": (lambda: [torch.empty(3, 2**30 + 7, device="meta")], True),
    "many samples": (lambda: [torch.empty(2**27 + 3, 16, device="meta")], True),
    "a chunk of fewer elements": (lambda: list(torch.empty(2**15 + 1, 2**17, device="meta").chunk(2, 1)), True),
    "channels_last": (
        lambda: [torch.empty(2**13 + 1, 4, 256, 256, device="meta").to(memory_format=torch.channels_last)],
        True,
    ),
    "half of the channels": (lambda: list(torch.empty(2**11 + 1, 64, 128, 128, device="meta").chunk(2, 1)), True),
}


def addresses_of_the_tile(joint, strides, tiles, program):
    """What `tiling.tile` and `tiling.offset` say, in the interpreter, for one program of a launch."""
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(out, columns, shape, strides, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXES: tl.constexpr):
        first_row, first_column = tiling.tile(columns, ROWS, COLUMNS, AXES, True)
        row = first_row + tl.arange(0, ROWS)[:, None]
        column = first_column + tl.arange(0, COLUMNS)[None, :]
        lane = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        tl.store(out + lane, tiling.offset(row, column, shape, strides))

    out = torch.zeros(tiles.rows, tiles.columns, dtype=torch.int64)
    with at_program(program):
        kernel[(1,)](out, joint.columns, joint.shape, strides, tiles.rows, tiles.columns, tiles.axes)
    return out


@contextlib.contextmanager
def at_program(number):
    from triton.runtime import interpreter

    def program_id(builder, axis):
        return interpreter.TensorHandle(np.array([number if axis == 0 else 0], dtype=np.int32), interpreter.tl.int32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "create_get_program_id", program_id)
        yield


@pytest.mark.parametrize(("make", "by_sample"), BEYOND.values(), ids=BEYOND)
def test_addresses_beyond_2_to_the_31_are_64_bit(make, by_sample):
    tensors = make()
    joint, _ = tiling.view(tensors, by_sample)
    tiles = tiling.tiles(joint)
    assert joint.wide
    assert tiles.row_blocks * tiles.rows >= joint.rows
    assert tiles.column_blocks * tiles.columns >= joint.columns


@pytest.mark.interpreter_only
@pytest.mark.parametrize(("make", "by_sample"), BEYOND.values(), ids=BEYOND)
def test_the_last_tile_finds_the_last_elements(make, by_sample):
    tensor = make()[-1]
    joint, ((_, strides),) = tiling.view([tensor], by_sample)
    tiles = tiling.tiles(joint)
    actual = addresses_of_the_tile(joint, strides, tiles, tiles.programs - 1)
    first_row, first_column = (tiles.row_blocks - 1) * tiles.rows, (tiles.column_blocks - 1) * tiles.columns
    for row in range(first_row, joint.rows):
        for column in {first_column, (first_column + joint.columns) // 2, joint.columns - 1}:
            place = np.unravel_index(column, joint.shape[::-1])[::-1] if joint.shape else ()
            wanted = row * strides[0] + sum(int(i) * s for i, s in zip(place, strides[1:]))
            assert actual[row - first_row, column - first_column] == wanted
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    assert actual[joint.rows - 1 - first_row, joint.columns - 1 - first_column] == last >= BIG


@pytest.mark.interpreter_only
@pytest.mark.no_poison("4 GiB of address space, of which a few pages are touched")
def test_rows_that_lie_2_to_the_31_elements_apart():
    rows = torch.empty(BIG + 256, dtype=torch.bfloat16).as_strided((2, 64), (BIG + 64, 1))
    rows.copy_(values(2, 64))
    mu, logvar, target = (rows[:, i * 16 : (i + 1) * 16] for i in range(3))
    with use_backend("triton"):
        mu.requires_grad_()
        z, kl = sample_kl(mu, logvar, eps=target)
        nll = reconstruction_loss(mu, target, reduction="sample")
        (kl.sum() + z.sum() + nll.sum()).backward()
    m, v, x = (t.detach().double() for t in (mu, logvar, target))
    torch.testing.assert_close(z.double(), plain.sample(m, v, x), rtol=2**-7, atol=1e-3)
    torch.testing.assert_close(kl.double(), plain.reduce(plain.kl(m, v), "sample"), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nll.double(), plain.reduce(plain.nll(m, x), "sample"), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mu.grad.double(), 1 + m + torch.sigmoid(m) - x, rtol=2**-6, atol=1e-2)


@pytest.mark.interpreter_only
@pytest.mark.no_poison("4 GiB of address space, of which a few pages are touched")
def test_scaling_reaches_the_end_of_a_large_gradient(monkeypatch):
    from triton.runtime import interpreter

    gradient = torch.empty(BIG + 5, dtype=torch.bfloat16)
    ends = [gradient[: tiling.FLAT_TILE], gradient[-5:]]  # one program of 1024 has both, and 511 tiles between
    for end in ends:
        end.fill_(1)
    launch = interpreter.GridExecutor.__call__

    def first_program(executor, *args, **kwargs):
        executor.grid = (1,)
        return launch(executor, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", first_program)
    reconstruction.scale_((gradient,), torch.tensor(3.0))
    assert all((end == 3).all() for end in ends)


@pytest.mark.cuda_only
@pytest.mark.big_memory(40, device="cuda")
@pytest.mark.no_poison("large tensors")
@pytest.mark.parametrize("shape", [(BIG + 12289,), (3, 2**30 + 5)], ids=str)
def test_more_than_2_to_the_31_elements(shape):
    logits = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
    eps = reparameterize(logits, logits, seed=1).view(-1)[-5000:]
    assert_noise_close(eps, reference.normal(1, 5000, start=logits.numel() - 5000))
    logits.view(-1)[-5000:] = 3.0
    loss = reconstruction_loss(logits.requires_grad_(), torch.zeros_like(logits), reduction="sum")
    loss.backward()
    wanted = (logits.numel() - 5000) * np.log(2) + 5000 * np.log1p(np.exp(3.0))
    assert loss.item() == pytest.approx(wanted, rel=1e-6)
    gradient = logits.grad.view(-1)
    assert (gradient[:-5000] == 0.5).all()
    torch.testing.assert_close(gradient[-5000:].float(), torch.full((5000,), 3.0, device="cuda").sigmoid(),
                               rtol=2**-8, atol=0)  # fmt: skip


class Guard:
    """Stands for `tiling.on_device`, and knows whether a launch happens inside it."""

    def __init__(self):
        self.tensors = []

    @contextlib.contextmanager
    def __call__(self, tensor):
        self.tensors.append(tensor)
        yield
        self.tensors.pop()


@pytest.mark.interpreter_only
def test_every_launch_is_inside_the_device_guard(monkeypatch, backend):
    from triton.runtime import interpreter

    guard, launched = Guard(), []
    launch = interpreter.GridExecutor.__call__

    def watched(executor, *args, **kwargs):
        launched.append(len(guard.tensors))
        return launch(executor, *args, **kwargs)

    monkeypatch.setattr(tiling, "on_device", guard)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", watched)
    mu = values(2, 6, device=backend.device).requires_grad_()
    for reduction in LATENT_REDUCTIONS:
        z, kl = sample_kl_packed(mu, reduction=reduction, seed=0)
        loss = z.sum() + kl.sum() + gaussian_kl(mu, mu, reduction=reduction).sum()
        loss = loss + elbo_loss(mu, mu.detach(), mu.sum(1)).total
        loss.backward()
    for reduction in REDUCTIONS:
        reconstruction_loss((mu, mu), mu.detach(), "gaussian", reduction=reduction).sum().backward()
    assert set(launched) == (set() if backend.name == "eager" else {1})


@pytest.mark.parametrize("current", [0, 1])
def test_the_guard_changes_the_device_only_where_it_differs(current, monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or contextlib.nullcontext())
    on_second = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 1))
    with tiling.on_device(on_second):
        pass
    with tiling.on_device(torch.zeros(1)):
        pass
    assert entered == ([] if current == 1 else [torch.device("cuda", 1)])


@pytest.mark.multi_gpu
def test_tensors_on_a_device_that_is_not_the_current_one():
    mu, logvar, target = (values(5, 7, device="cuda:1", dtype=torch.float32, seed=i) for i in range(3))
    mu.requires_grad_()
    results = []
    for device in ("cuda:0", "cuda:1"):
        with torch.cuda.device(device):
            mu.grad = None
            z, kl = sample_kl(mu, logvar, seed=0)
            elbo_loss(z, target, kl).total.backward()
            results.append((z, kl, mu.grad))
    assert {t.device for t in results[0]} == {torch.device("cuda", 1)}
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.interpreter_only
@pytest.mark.no_poison("4 GiB of address space, of which a few pages are touched")
def test_sums_of_what_lies_2_to_the_31_elements_apart():
    partials = torch.empty(BIG + 2, dtype=torch.bfloat16).as_strided((3, 2), (2**30, 1))
    partials.copy_(torch.arange(6.0).view(3, 2))
    out = torch.empty(3)
    reductions.sum_partials(reductions.Sum(partials, out, 3, 2, partials.stride()))
    assert out.tolist() == [1, 5, 9]
