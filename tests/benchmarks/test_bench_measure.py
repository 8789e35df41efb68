"""Measuring: what a row says, who gets no figures and why, and what an interrupted run keeps. No time is asserted."""

import dataclasses
import os
import sys
from types import SimpleNamespace

import pytest
import torch

from vae_fast.benchmarks import cases, machine, measure, memory, results, steps, timing
from vae_fast.benchmarks.contenders import CONTENDERS, Contender
from vae_fast.benchmarks.formulas import OPS
from vae_fast.benchmarks.results import Results

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="speed is that of compiled code")

CPU = torch.device("cpu")
CASE = cases.CASES["mse/1x32/float32"]
TWO = {name: CONTENDERS[name] for name in ("eager", "vae_fast")}


@pytest.fixture(scope="module")
def session():
    description = {**machine.describe(CPU), "date": "today"}
    return measure.Session(CPU, True, timing.Effort(0.0, 3, 3), description, {1: 1e9, 2: 2e9})


def test_rows_of_an_op(session):
    rows = measure.measure(CASE, session, TWO)
    phases = ("forward", "backward", "forward+backward")
    assert [(r.threads, r.phase, r.contender) for r in rows] == [
        (threads, phase, name) for threads in (1, 2) for phase in phases for name in TWO
    ]
    for row in rows:
        assert (row.case, row.op, row.shape, row.elements, row.status) == (CASE.name, "mse", "1x32", 32, "ok")
        assert 0 < row.time_min <= row.time_p20 <= row.time <= row.time_p80
        assert row.rounds == 3
        assert row.error < 1e-5
        assert (row.device, row.date, row.kind) == (session.description["device"], "today", "cpu")
        assert (row.host_time, row.device_time, row.launches) == (None, None, None)
        assert row.quick
    for eager, ours in zip(rows[::2], rows[1::2]):
        assert ours.over_eager > 0
        assert (eager.over_eager, eager.over_compile) == (None, None)


def test_what_is_counted_of_a_whole_call(session):
    eager, ours = measure.measure(CASE, session, TWO)[4:6]
    assert eager.moved_bytes == pytest.approx(8 * 4 * 32, abs=40)
    assert eager.passes >= 4
    assert eager.peak_bytes >= 4 * 32
    assert ours.peak_bytes >= 4 * 32
    assert (eager.note, ours.note) == ("", "")
    assert eager.floor_bytes == ours.floor_bytes == 3 * 4 * 32
    assert ours.bandwidth == pytest.approx(ours.floor_bytes / (ours.time / 1e3))
    assert ours.share == pytest.approx(ours.bandwidth / 1e9)


@pytest.mark.parametrize(
    ("name", "case", "device"),
    [
        ("compile", CASE, "cpu"),
        ("eager graph", CASE, "cpu"),
        ("eager", cases.CASES["step_mlp/128x784/float32"], "cpu"),
        ("vae_fast", CASE, "cuda"),
    ],
)
def test_the_ops_of_what_hides_them_are_not_counted(name, case, device, monkeypatch):
    monkeypatch.setattr(memory, "peak_memory", lambda call, device: 8)
    monkeypatch.setattr(measure, "count_launches", lambda case, contender, device: 1)
    entrant = SimpleNamespace(contender=CONTENDERS[name], call=lambda: torch.ones(3) * 2)
    counted = measure._count(case, entrant, torch.device(device))
    assert (counted["moved_bytes"], counted["passes"], counted["note"]) == (None, None, "")


def test_rows_of_a_step(session):
    case = cases.Case("step_mlp", (16, 784), *cases.FLOAT32, "small")
    rows = measure.measure(case, session, TWO)
    assert [(r.threads, r.phase, r.contender) for r in rows] == [(t, "step", name) for t in (1, 2) for name in TWO]
    assert all(row.share is None and row.floor_bytes is None and row.time > 0 for row in rows)


def test_the_memory_of_a_step_is_that_of_any_but_the_first(session):
    """The first makes the optimizer's state: two numbers for each of the model's."""
    case = cases.Case("step_mlp", (16, 784), *cases.FLOAT32, "small")
    parameters = sum(p.nbytes for p in steps.build_model("step_mlp", session.device).parameters())
    peaks = {row.peak_bytes for row in measure.measure(case, session, TWO)}
    assert None not in peaks
    assert max(peaks) < 2 * parameters


@dataclasses.dataclass(frozen=True)
class Doubled(Contender):
    """Computes twice the loss."""

    def function(self, op):
        return lambda leaves, target, noise: tuple(2 * o for o in OPS[op].eager(leaves, target, noise))


@dataclasses.dataclass(frozen=True)
class Broken(Contender):
    def function(self, op):
        def fail(leaves, target, noise):
            raise RuntimeError("no compiler here\nand a long story")

        return fail


@dataclasses.dataclass(frozen=True)
class Greedy(Contender):
    def function(self, op):
        def fail(leaves, target, noise):
            raise torch.OutOfMemoryError("CUDA out of memory")

        return fail


@pytest.mark.parametrize(
    ("contender", "status"),
    [
        (Doubled("wrong"), "wrong: gradient 0 is off by 1.0e+00 of its largest value, allowed 2e-05"),
        (Broken("broken"), "failed: RuntimeError: no compiler here"),
        (Greedy("greedy"), "skipped: it ran out of memory"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_who_fails_gets_no_speed_and_the_others_do(session, contender, status):
    rows = measure.measure(CASE, session, {**TWO, contender.name: contender})
    (failed,) = [row for row in rows if row.contender == contender.name]
    assert failed.status == status
    assert (failed.time, failed.time_min, failed.bandwidth, failed.share, failed.over_eager) == (None,) * 5
    assert len([row for row in rows if row.time]) == 2 * 3 * 2
    assert status in measure.summary(CASE.name, rows)


def test_memory_that_runs_out_later_skips_the_case(session, monkeypatch):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 bytes")

    monkeypatch.setattr(measure, "enter", fail)
    (row,) = measure.measure(CASE, session, TWO)
    assert (row.status, row.time) == ("skipped: it ran out of memory", None)


def test_other_errors_are_not_hidden(session, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(measure, "enter", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        measure.measure(CASE, session, TWO)


def test_a_size_that_does_not_fit_is_skipped_with_a_line(session, monkeypatch):
    case = cases.CASES["mse/2048x512x512/float32"]
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**30)
    (row,) = measure.measure(case, session, TWO, named=True)
    assert row.status == "skipped: it takes about 18.0 GiB, and 1.0 GiB are free"
    assert (row.contender, row.time) == ("", None)
    assert measure.summary(case.name, [row]) == f"{case.name}: case {row.status}"


def test_a_size_that_takes_minutes_on_a_cpu_wants_to_be_named(session, monkeypatch):
    monkeypatch.setattr(measure, "CPU_ELEMENTS", 31)
    (row,) = measure.measure(CASE, session, TWO)
    assert row.status == f"skipped: it takes minutes on a CPU; --case {CASE.name} measures it"
    assert measure.measure(CASE, session, TWO, named=True)[0].time


@pytest.mark.parametrize(
    ("op", "module", "package"), [("step_scvi", "scvi", "scvi-tools"), ("step_diffusers", "diffusers", "diffusers")]
)
def test_a_step_of_a_project_that_is_missing_is_skipped_with_a_line(session, monkeypatch, op, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    (case,) = cases.select([op])
    (row,) = measure.measure(case, session, TWO)
    assert row.status.startswith(f"skipped: {package} is not installed: pip install {package}==")
    assert (row.contender, row.time) == ("", None)
    assert measure.summary(case.name, [row]) == f"{case.name}: case {row.status}"


def test_what_cannot_be_counted_leaves_a_note(session, monkeypatch):
    def forbidden(*_):
        raise RuntimeError("profiling is forbidden here")

    monkeypatch.setattr(memory, "peak_memory", forbidden)
    row = measure.measure(CASE, session, TWO)[4]
    assert (row.peak_bytes, row.note) == (None, "peak_bytes: RuntimeError: profiling is forbidden here. ")
    assert row.time > 0
    assert row.moved_bytes > 0


def test_an_interrupted_run_keeps_its_rows(session, tmp_path, monkeypatch):
    chosen = [cases.CASES[f"{op}/1x32/float32"] for op in ("kl", "mse", "gaussian")]
    said = []

    def say(line):
        said.append(line)
        if len(said) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(measure, "begin", lambda device, quick: session)
    folder = Results(tmp_path, session.description["device"])
    with pytest.raises(KeyboardInterrupt):
        measure.run(chosen, CPU, folder, say, quick=True, contenders=TWO)
    assert [line.partition(":")[0] for line in said] == ["[1/3] kl/1x32/float32", "[2/3] mse/1x32/float32"]
    assert {row.case for row in results.load(tmp_path / Results.JSON)} == {case.name for case in chosen[:2]}


def test_threads_are_left_as_they_were(session):
    before = torch.get_num_threads()
    with measure.using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    measure.measure(CASE, session, TWO)
    assert torch.get_num_threads() == before


def test_contenders_are_compared_turn_by_turn(session, monkeypatch):
    times = {"eager": (2.0, 6.0, 40.0), "vae_fast": (1.0, 2.0, 40.0)}
    turns = {name: [{"time": time, "device": time**2} for time in found] for name, found in times.items()}
    monkeypatch.setattr(timing, "take_turns", lambda samplers, effort: turns)
    eager, ours = measure.measure(CASE, session, TWO)[:2]
    assert (eager.time, ours.time, ours.over_eager) == (6.0, 2.0, 2.0)
    assert (eager.device_over_eager, ours.device_over_eager) == (None, 4.0)
    del turns["eager"][0]["device"]  # a contender that waits for the device has none
    assert measure.measure(CASE, session, TWO)[1].device_over_eager == 5.0


def test_graphs_are_compared_with_graphs():
    names = ("eager", "compile", "vae_fast", "eager graph", "compile graph", "vae_fast graph")
    rows = [
        results.Row("a", "a", "1", 1, "float32", "float32", "step", name, name.endswith("graph"), time=2.0**k)
        for k, name in enumerate(reversed(names))
    ]
    samples = {row.contender: [{"time": row.time}] for row in rows}
    for row in rows:
        measure._compare(row, rows, samples)
    found = {row.contender: (row.over_eager, row.over_compile) for row in rows}
    assert found["vae_fast"] == (4, 2)
    assert found["vae_fast graph"] == (4, 2)
    assert found["eager"] == (None, 0.5)


def test_a_session_measures_the_copy(monkeypatch):
    monkeypatch.setattr(memory, "COPY_BYTES_CPU", 2**20)
    monkeypatch.setattr(timing, "QUICK", timing.Effort(0.0, 3, 3))
    monkeypatch.setattr(timing, "FULL", timing.Effort(0.0, 3, 4))
    assert measure.begin(CPU).effort == timing.FULL
    session = measure.begin(CPU, quick=True)
    assert session.effort == timing.QUICK
    assert list(session.copy_bandwidth) == list(dict.fromkeys((1, machine.all_threads())))
    assert all(1e8 < value < 1e13 for value in session.copy_bandwidth.values())


def test_figures_of_the_device(session, monkeypatch):
    turns = [{"time": 10.0 + k, "device": 5.0 + k, "host": 1.0 + k} for k in range(11)]
    monkeypatch.setattr(timing, "take_turns", lambda samplers, effort: dict.fromkeys(TWO, turns))
    row = measure.measure(CASE, session, TWO)[-1]
    assert (row.time_p20, row.time, row.time_p80) == (12.0, 15.0, 18.0)
    assert (row.device_p20, row.device_time, row.device_p80) == (7.0, 10.0, 13.0)
    assert (row.host_p20, row.host_time, row.host_p80) == (3.0, 6.0, 9.0)
    assert (row.bandwidth, row.share) == (row.floor_bytes / 10e-3, row.bandwidth / 2e9)


def test_a_share_of_a_copy_on_a_gpu_is_by_the_time_of_the_device_alone(session, monkeypatch):
    turns = [{"time": 10.0, "device": 5.0, "host": 1.0}]
    monkeypatch.setattr(timing, "take_turns", lambda samplers, effort: dict.fromkeys(TWO, turns))
    on_gpu = session._replace(description={**session.description, "kind": "cuda"})
    row = measure.measure(CASE, on_gpu, TWO)[-1]
    assert (row.bandwidth, row.share) == (row.floor_bytes / 5e-3, row.bandwidth / 2e9)
    turns[:] = [{"time": 10.0}]  # of one that waits for the device itself
    row = measure.measure(CASE, on_gpu, TWO)[-1]
    assert (row.time, row.bandwidth, row.share) == (10.0, None, None)


def test_a_size_that_just_fits(monkeypatch):
    needed = measure.NEED * CASE.floor["forward+backward"]
    monkeypatch.setattr(memory, "free_memory", lambda device: needed)
    assert not measure._obstacle(CASE, CPU, True)
    monkeypatch.setattr(memory, "free_memory", lambda device: needed - 1)
    assert measure._obstacle(CASE, CPU, True).startswith("it takes about")
