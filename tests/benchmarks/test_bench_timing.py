"""Timing: statistics, turns, and the GPU's three kinds of time, on a GPU that is played."""

import gc
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vae_fast.benchmarks import measure, timing
from vae_fast.benchmarks.counting import count_ops
from vae_fast.benchmarks.timing import DeviceTimer, Effort, HostTimer, Rotation, Work

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="speed is that of compiled code")


def test_statistics():
    numbers = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert timing.statistics(numbers) == pytest.approx((3.0, 1.8, 4.2, 1.0, 5))
    long = np.random.default_rng(0).random(101).tolist()
    assert timing.statistics(long)[:3] == pytest.approx(
        (np.median(long), np.percentile(long, 20), np.percentile(long, 80))
    )
    assert timing.statistics([]) is None


def test_one_slow_round_does_not_show():
    assert timing.statistics([1.0] * 9 + [100.0])[:4] == (1.0, 1.0, 1.0, 1.0)


def test_a_ratio_is_the_median_over_the_rounds_that_have_both_times():
    """A contender that waits for the device has no time of the device in any round, or loses it in the midst."""
    times = [{"time": 2.0, "device": 3.0}, {"time": 8.0}, {"time": 30.0, "device": 9.0}]
    base = [{"time": 1.0, "device": 1.0}, {"time": 2.0, "device": 2.0}, {"time": 3.0}]
    assert timing.ratio(times, base) == 4.0
    assert timing.ratio(times, base, "device") == 3.0
    assert timing.ratio(times[1:], base[1:], "device") is None


def test_contenders_take_turns_at_going_first():
    seen = []
    samplers = {name: lambda name=name: seen.append(name) or name for name in "abc"}
    samples = timing.take_turns(samplers, Effort(0.0, 4, 10))
    assert "".join(seen) == "abccbaabccba"
    assert samples == {name: [name] * 4 for name in "abc"}


def test_rounds_end_at_the_most():
    assert len(timing.take_turns({"a": int}, Effort(60.0, 1, 5))["a"]) == 5


def test_the_host_timer_prepares_outside_of_what_it_times(monkeypatch):
    clock = iter(range(5, 100))
    log = []
    timer = HostTimer(Work(lambda state: log.append(("run", state)), lambda number: log.append("prepare") or number))
    assert log == ["prepare", ("run", 0), "prepare", ("run", 1), "prepare", ("run", 2)]  # the first calls are not timed
    log.clear()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: log.append("clock") or next(clock))
    assert timer() == {"time": 1e3}
    assert log == ["prepare", "clock", ("run", 0), "clock"]


def test_the_collector_rests_while_times_are_taken():
    with timing.no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_collections_within_leave_out_what_was_there_before():
    gc.unfreeze()  # what conftest has frozen
    try:
        with timing.short_collections():
            assert gc.get_freeze_count()
            with timing.short_collections():
                pass
            assert gc.get_freeze_count()  # of whoever froze it
        assert not gc.get_freeze_count()
    finally:
        gc.freeze()


class PlayedGPU:
    """A GPU with a clock of its own: each call takes `device` seconds there and `host` seconds here."""

    def __init__(self, device, host, waits=False):
        self.device, self.host, self.waits = device, host, waits
        self.now, self.busy_until, self.slept = 0.0, 0.0, []

    def call(self, state=None):
        self.now += self.host
        self.busy_until = max(self.busy_until, self.now) + self.device
        if self.waits:
            self.now = self.busy_until
        return state

    def synchronize(self):
        self.now = max(self.now, self.busy_until)

    def sleep(self, cycles):
        self.slept.append(cycles)
        self.busy_until = max(self.busy_until, self.now) + cycles / DeviceTimer.CLOCK

    def event(self, enable_timing):
        event = SimpleNamespace(at=None)

        def record():
            event.at = max(self.busy_until, self.now)

        def synchronize():
            self.now = max(self.now, event.at)

        event.record, event.synchronize = record, synchronize
        event.query = lambda: event.at <= self.now
        event.elapsed_time = lambda other: 1e3 * (other.at - event.at)
        return event


@pytest.fixture
def play(monkeypatch):
    def start(**options):
        gpu = PlayedGPU(**options)
        monkeypatch.setattr(torch.cuda, "Event", gpu.event)
        monkeypatch.setattr(torch.cuda, "synchronize", gpu.synchronize)
        monkeypatch.setattr(torch.cuda, "_sleep", gpu.sleep)
        monkeypatch.setattr(timing.time, "perf_counter", lambda: gpu.now)
        return gpu

    return start


def test_a_call_bound_by_launches(play):
    gpu = play(device=5e-6, host=50e-6)
    sample = DeviceTimer(Work(gpu.call, int), Rotation(4, 0), most=40)()
    assert sample["device"] == pytest.approx(5e-3)
    assert sample["host"] == pytest.approx(50e-3)
    assert sample["time"] == pytest.approx(50e-3, rel=0.1)


def test_a_call_bound_by_the_device(play):
    gpu = play(device=1e-3, host=50e-6)
    sample = DeviceTimer(Work(gpu.call, int), Rotation(4, 0), most=40)()
    assert sample["device"] == pytest.approx(1.0)
    assert sample["time"] == pytest.approx(1.0, rel=0.1)


def test_a_sleep_that_is_too_short_is_found_out(play):
    gpu = play(device=5e-6, host=400e-6)
    timer = DeviceTimer(Work(gpu.call, int), Rotation(1, 0), most=40)
    assert timer()["device"] == pytest.approx(5e-3)
    assert len(gpu.slept) > 1
    assert gpu.slept[-1] / timer.CLOCK > timer.queued_calls * 400e-6


def test_a_contender_that_waits_for_the_device_has_one_time_only(play):
    gpu = play(device=1e-3, host=50e-6, waits=True)
    timer = DeviceTimer(Work(gpu.call, int), Rotation(1, 0), most=40)
    assert set(timer()) == {"time"}
    assert timer.synchronizes
    assert max(gpu.slept) <= timer.LONGEST_SLEEP
    assert set(timer()) == {"time"}


def test_calls_fit_the_sample_and_the_most(play):
    gpu = play(device=3e-3, host=1e-6)
    assert DeviceTimer(Work(gpu.call, int), Rotation(1, 0), most=40).calls == 3
    gpu = play(device=1e-6, host=1e-6)
    assert DeviceTimer(Work(gpu.call, int), Rotation(1, 0), most=40).calls == 40
    gpu = play(device=1.0, host=1e-6)
    assert DeviceTimer(Work(gpu.call, int), Rotation(1, 0), most=40).calls == 1


@pytest.mark.parametrize(("host", "calls", "queued"), [(1e-3, 9, 40), (8e-3, 1, 12), (0.15, 1, 1)])
def test_a_batch_is_long_for_the_device_where_the_host_is_slow(play, host, calls, queued):
    """As long as it can sleep meanwhile: a tenth of a second."""
    gpu = play(device=5e-6, host=host)
    timer = DeviceTimer(Work(gpu.call, int), Rotation(1, 0), most=40)
    assert (timer.calls, timer.queued_calls) == (calls, queued)
    assert timer()["device"] == pytest.approx(5e-3)


def test_inputs_and_results_rotate(play):
    gpu = play(device=1e-3, host=1e-6)
    numbers = []
    timer = DeviceTimer(Work(gpu.call, lambda number: numbers.append(number) or number), Rotation(8, 0), most=40)
    timer()
    assert numbers == list(range(len(numbers)))
    assert len(set(timer.results)) == 8
    alone = DeviceTimer(Work(gpu.call, int), Rotation(1, 0), most=40)
    alone()
    assert not alone.results


def test_no_contender_takes_the_inputs_of_the_one_before(play):
    """Those would lie in the L2."""
    gpu = play(device=1e-3, host=1e-6)
    rotation, numbers = Rotation(100, 0), []
    work = Work(gpu.call, lambda number: numbers.append(number) or number)
    samplers = {name: DeviceTimer(work, rotation, most=4) for name in "abc"}
    timing.take_turns(samplers, Effort(0.0, 4, 4))
    assert numbers == list(range(len(numbers)))


def test_the_cache_is_emptied_of_what_is_prepared_before_the_gpu_is_idle(play, monkeypatch):
    gpu = play(device=1e-3, host=1e-6)
    log, rotation = [], Rotation(100, 0)
    monkeypatch.setattr(rotation, "empty_cache", lambda: log.append("empty"))
    work = Work(lambda state: log.append(("run", state)) or gpu.call(), lambda number: log.append(number) or number)
    timer = DeviceTimer(work, rotation, most=2)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("idle"))
    log.clear()
    timer._batch(3)
    first, second, third = log[:3]
    assert log[3:] == ["empty", "idle", ("run", first), ("run", second), ("run", third)]


def test_what_is_read_to_empty_the_cache_is_twice_as_large(monkeypatch):
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device, **options: zeros(*size, **options))
    assert count_ops(Rotation(4, 1000).empty_cache).bytes == pytest.approx(2000, abs=8)  # and the sum


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with timing.no_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_results_are_freed_when_the_clock_has_stopped(monkeypatch):
    seen = []

    class Result:
        def __del__(self):
            seen.append("freed")

    timer = HostTimer(Work(lambda state: Result(), lambda number: None))
    seen.clear()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: seen.append("clock") or 0.0)
    timer()
    assert seen == ["clock", "clock", "freed"]


@pytest.mark.parametrize(
    ("launches", "peak", "most"),
    [(4, 2**10, 50), (80, 2**10, 10), (None, 2**10, 20), (4, 2**20, 16), (4, None, 50), (1000, 2**30, 1)],
)
def test_a_batch_on_a_gpu_fits_its_queue_and_a_quarter_of_its_memory(monkeypatch, launches, peak, most):
    monkeypatch.setattr(timing, "DeviceTimer", lambda work, rotation, most: most)
    entrant = SimpleNamespace(works={"forward": None})
    counted = {"launches": launches, "peak_bytes": peak}
    assert measure._timer(entrant, "forward", timing.Rotation(1, 0), counted, 2**26) == most
