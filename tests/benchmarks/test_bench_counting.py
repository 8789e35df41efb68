"""Counts: bytes that PyTorch's ops move, to the byte, and peak memory."""

import contextlib
import os
import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vae_fast import reconstruction_loss
from vae_fast.benchmarks import cases, counting, formulas, machine, memory, timing
from vae_fast.benchmarks.formulas import OPS

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="speed is that of compiled code")

CPU = torch.device("cpu")
N = 60
SIZE = 4 * N  # bytes of one tensor


def tensors(count):
    return [torch.rand(6, 10) for _ in range(count)]


@pytest.mark.parametrize(
    ("call", "moved"),
    [
        (lambda a, b: a + b, 3 * SIZE),
        (lambda a, b: a.add_(b), 3 * SIZE),
        (lambda a, b: a.fill_(1), SIZE),
        (lambda a, b: a.copy_(b), 2 * SIZE),
        (lambda a, b: torch.add(a, b, out=torch.empty(6, 10)), 3 * SIZE),
        (lambda a, b: torch.randn_like(a), SIZE),
        (lambda a, b: torch.zeros_like(a), SIZE),
        (lambda a, b: a.clone(), 2 * SIZE),
        (lambda a, b: a.to(torch.bfloat16), SIZE + SIZE // 2),
        (lambda a, b: a.sum(), SIZE),
        (lambda a, b: torch.cat((a, b)), 4 * SIZE),
        (lambda a, b: a[:1].expand(6, 10) + b, 2 * SIZE + 40),  # a row of 40 bytes, however often it is repeated
        (lambda a, b: a.view(-1).t().chunk(2)[0].detach(), 0),
        (lambda a, b: torch.empty_like(a), 0),
        (lambda a, b: F.mse_loss(a, b, reduction="sum"), 4 * SIZE),  # reads 2, writes 1 and reads it to sum it
    ],
)
def test_bytes_of_one_call(call, moved):
    first, second = tensors(2)
    assert counting.count_ops(lambda: call(first, second)).bytes == pytest.approx(moved, abs=20)  # scalars


@pytest.mark.no_poison("the fill would be counted")
@pytest.mark.parametrize(
    ("op", "elements"),
    [
        ("mse", 8),  # forward as above, backward 3 and a gradient that is zeroed first
        ("bernoulli_probs", 7),  # forward 4: the tensor that is summed is then made small, and is the result
        ("bernoulli", 21),  # 20 on a GPU; on a CPU log_sigmoid writes a buffer as well
        ("gaussian", 42),  # 16 forward
    ],
)
def test_bytes_of_what_users_write(op, elements):
    case = cases.Case(op, (64, 625), *cases.FLOAT32, "small")
    inputs = formulas.draw_inputs(case, CPU)

    def call():
        loss = OPS[op].eager(inputs.leaves, inputs.target, None)
        return torch.autograd.grad(loss, inputs.leaves)

    assert counting.count_ops(call).bytes / (4 * case.elements) == pytest.approx(elements, rel=1e-3)


def scales_what_its_own_loop_writes(a: torch.Tensor) -> torch.Tensor:
    result = torch.empty_like(a)
    np.copyto(result.numpy(), a.numpy())  # no op
    return result.mul_(2)


def copies_what_it_adds_to(a: torch.Tensor) -> torch.Tensor:
    copy = torch.empty_like(a)
    copy.copy_(a)
    return copy + 1


@pytest.mark.no_poison("the fill would be counted")
@pytest.mark.parametrize("kernel", [scales_what_its_own_loop_writes, copies_what_it_adds_to])
def test_what_an_op_writes_counts_once(kernel):
    """Whether in a loop of its own, which no op inside it shows, or by an op: each of two passes reads and writes."""
    op = torch.library.custom_op(f"counted::{kernel.__name__}", kernel, mutates_args=(), device_types="cpu")
    (a,) = tensors(1)
    assert counting.count_ops(lambda: op(a)).bytes == pytest.approx(4 * SIZE, abs=20)


def test_passes_are_ops_that_touch_memory():
    (a,) = tensors(1)
    assert counting.count_ops(lambda: (a.view(-1) * 2).exp().t()).passes == 2


def test_counting_changes_no_result():
    a, b = tensors(2)
    a.requires_grad_()
    plain = torch.autograd.grad(F.binary_cross_entropy_with_logits(a, b), a)
    counted = []
    counting.count_ops(lambda: counted.extend(torch.autograd.grad(F.binary_cross_entropy_with_logits(a, b), a)))
    assert torch.equal(plain[0], counted[0])


@pytest.mark.no_poison("the fill needs memory of its own")
def test_peak_memory_counts_what_is_held_at_once():
    a = torch.rand(1000, 100)

    def call():
        b = a + 1
        c = b + 1
        del b
        return c * 2  # c and the result: b is gone

    assert memory.peak_memory(call, CPU) == pytest.approx(2 * a.nbytes, abs=20)  # the two numbers are scalars
    assert memory.peak_memory(lambda: None, CPU) == 0


def test_peak_memory_is_that_of_the_way_a_user_goes():
    """Which our ops leave where a profiler listens: a small loss of theirs is then PyTorch's own op no more."""
    output, target = (torch.rand(64, 64, requires_grad=grad) for grad in (True, False))
    native, ours = (lambda: F.huber_loss(output, target)), (lambda: reconstruction_loss(output, target, "huber"))
    assert memory.peak_memory(ours, CPU) == pytest.approx(memory.peak_memory(native, CPU), abs=20)


def test_peak_memory_prints_nothing():
    """In a process of its own: the profiler decides once, at its first use, what it prints."""
    code = (
        "import torch; from vae_fast.benchmarks import memory; "
        "memory.peak_memory(lambda: torch.rand(10), torch.device('cpu'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_profiler_does_not_warn(monkeypatch):
    """As torch 2.11 does of each profile, although ours have one cycle."""
    from torch.profiler import profiler

    prepare = profiler._KinetoProfile.prepare_trace

    def warn(self):
        warnings.warn("Warning: Profiler clears events at the end of each cycle.", stacklevel=2)
        prepare(self)

    monkeypatch.setattr(profiler._KinetoProfile, "prepare_trace", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with counting.quiet_profiler(), profiler.profile(activities=[profiler.ProfilerActivity.CPU]):
            torch.zeros(1)


def test_the_peak_on_a_gpu_is_that_of_the_call_alone(monkeypatch):
    """Played: of a device that holds 100 bytes, and has held 1000."""
    device, now, peak = torch.device("cuda", 1), [100], [1000]

    def of_the_device(answer):
        return lambda asked: answer() if asked == device else pytest.fail(f"of {asked}")

    def call():
        peak[0], now[0] = 170, 120
        return object()

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", of_the_device(lambda: now[0]))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", of_the_device(lambda: peak[0]))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", of_the_device(lambda: peak.__setitem__(0, now[0])))
    assert memory.peak_memory(call, device) == 70
    assert memory.peak_memory(lambda: None, device) == 0


@pytest.mark.parametrize(("kernels", "count"), [(3, 3), (0, None)])
def test_launches_are_what_ran_on_the_gpu(kernels, count, monkeypatch):
    """Played: beside ops of the host, and ranges that the device shows too. None where the profiler is forbidden."""
    gpu, host = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [SimpleNamespace(device_type=gpu, is_user_annotation=False)] * kernels
    events += [SimpleNamespace(device_type=gpu, is_user_annotation=True)]
    events += [SimpleNamespace(device_type=host, is_user_annotation=False)]
    log = []
    profiler = SimpleNamespace(events=lambda: events)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("done"))
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: contextlib.nullcontext(profiler))
    assert counting.count_launches(lambda: log.append("call")) == count
    assert log == ["done", "call", "done"]


def test_free_memory_is_that_of_this_machine():
    free = memory.free_memory(CPU)
    assert free is None or 2**20 < free < 2**50


def test_a_copy_reads_and_writes(monkeypatch):
    monkeypatch.setattr(memory, "COPY_BYTES_CPU", 2**20)
    monkeypatch.setattr(memory, "take_turns", lambda timers, effort: {"copy": [{"time": 2.0}] * 3})
    assert memory.copy_bandwidth(CPU, timing.QUICK) == 2 * 2**20 / 2e-3


def test_free_memory_is_what_is_available(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemFree: 100 kB\nMemAvailable: 300 kB\n")
    monkeypatch.setattr(memory, "Path", lambda name: tmp_path / "meminfo")
    assert memory.free_memory(CPU) == 300 * 1024


def test_the_commit(monkeypatch, tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a", *arguments], cwd=tmp_path, check=True)

    monkeypatch.delenv("VAE_FAST_COMMIT", raising=False)
    monkeypatch.setattr(machine, "HERE", tmp_path)
    source = tmp_path / "machine.py"
    source.write_text("")
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "theirs")
    assert machine.commit() == "unknown"
    row = tmp_path / "results" / "results.json"
    row.parent.mkdir()
    row.write_text("")
    git("add", "machine.py", "results")
    git("commit", "-q", "-m", "ours")
    said = machine.commit()
    assert re.fullmatch("[0-9a-f]{12}", said)
    row.write_text("of this run")
    assert machine.commit() == said
    source.write_text("1")
    assert machine.commit() == f"{said}-dirty"


def test_the_load(monkeypatch):
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (1.5, 0.5, 0.25))
    assert machine.describe(CPU)["load"] == 1.5


@pytest.mark.parametrize(("op", "tensors"), [("sample_kl", 5), ("kl", 4)])
def test_floors_of_backward(op, tensors):
    assert cases.CASES[f"{op}/128x784/float32"].floor["backward"] == tensors * 128 * 784 * 4
