"""Timing: contenders take turns in one run, on the host's clock for the CPU and by CUDA events for a GPU.

A GPU is timed in three ways. *Device* time is that of calls queued behind a sleeping GPU, so that launches leave no
gaps. *Host* time is what the same calls cost the host, whose queue is never full. *Time* alone is that of calls made
one after the other on a GPU that was idle: the larger of the two, and a share of the first call's launches, which is
little in a batch of many. That is what a training loop sees. The L2 is emptied before each batch of calls, in which
inputs and results rotate: no call finds there what an earlier one read or gave.
"""

import gc
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch


class Work(NamedTuple):
    """What is timed: `run` of what `prepare(i)` returned. i counts the calls, and picks a set of inputs."""

    run: Callable[[Any], Any]
    prepare: Callable[[int], Any]


class Effort(NamedTuple):
    """How long to measure one phase of one case, all contenders together, and in how many rounds."""

    seconds: float
    least: int
    most: int


FULL = Effort(1.0, 7, 200)
QUICK = Effort(0.2, 7, 200)
WARM_UP = 3


class Statistics(NamedTuple):
    """Of the samples of one contender."""

    median: float
    p20: float
    p80: float
    minimum: float
    rounds: int


def statistics(samples) -> Statistics | None:
    """Of a list of numbers; None of none."""
    if not samples:
        return None
    p20, median, p80 = np.quantile(samples, (0.2, 0.5, 0.8)).tolist()
    return Statistics(median, p20, p80, min(samples), len(samples))


def ratio(samples: list[dict[str, float]], base: list[dict[str, float]], kind: str = "time") -> float | None:
    """How many times as long as `base`: the median over the rounds, in each of which the machine was the same to both.

    A machine that others share drifts by more between rounds than contenders differ by. None without times of the kind.
    """
    pairs = [(a[kind], b[kind]) for a, b in zip(samples, base, strict=True) if kind in a and kind in b]
    return float(np.median([a / b for a, b in pairs])) if pairs else None


def take_turns(samplers: dict[str, Callable[[], Any]], effort: Effort) -> dict[str, list]:
    """Samples of each, in rounds: what the machine does beside is spread over all of them."""
    samples: dict[str, list] = {name: [] for name in samplers}
    order = list(samplers)
    deadline = time.perf_counter() + effort.seconds
    for number in range(effort.most):
        if number >= effort.least and time.perf_counter() > deadline:
            break
        # On a CPU whoever goes second finds the inputs in the cache: they take turns at that too.
        for name in order if number % 2 == 0 else reversed(order):
            samples[name].append(samplers[name]())
    return samples


@contextmanager
def no_collection() -> Iterator[None]:
    """Python's garbage collector would fall on whoever is measured when it wakes."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def short_collections() -> Iterator[None]:
    """Collections within leave out what was there before: a third of a second each, of all that PyTorch imports."""
    if gc.get_freeze_count():  # somebody has seen to it, and would lose it at the end
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class HostTimer:
    """Times single calls on the CPU. Calling it gives one sample: {"time": milliseconds}."""

    def __init__(self, work: Work):
        self.work = work
        for number in range(WARM_UP):
            work.run(work.prepare(number))

    def __call__(self) -> dict[str, float]:
        state = self.work.prepare(0)
        start = time.perf_counter()
        result = self.work.run(state)
        seconds = time.perf_counter() - start
        del result  # freed outside of what is timed
        return {"time": 1e3 * seconds}


class Rotation:
    """What the timers of one phase share: whose turn it is among the sets of inputs, and how to empty the L2.

    Were each timer to count for itself, a contender would find in the L2 what the one before it has read.
    """

    def __init__(self, sets: int, cache: int):
        """sets: of inputs; cache: bytes of the L2, 0 for none."""
        self.sets = sets
        self.numbers = itertools.count()
        # Twice the cache, in a dtype that a sum reads as it is: of integers it would make a copy of 64 bits.
        self._other = torch.zeros(cache // 2, dtype=torch.float32, device="cuda") if cache else None

    def empty_cache(self) -> None:
        """By reading: what is written would be written back while the next calls are timed."""
        if self._other is not None:
            self._other.sum()


class DeviceTimer:
    """Times batches of calls on a GPU. Calling it gives one sample: milliseconds a call of the three kinds.

    most: calls in a batch, for which queue and memory must have room.
    """

    # Seconds of a batch: long against the resolution of an event, half a microsecond, and against what the first call
    # pays for the cores that went to sleep while the host waited.
    SAMPLE = 1e-2
    CLOCK = 2e9  # cycles a second, about: a sleep that is too short is found out and doubled
    LONGEST_SLEEP = 4e8
    ATTEMPTS = 6

    def __init__(self, work: Work, rotation: Rotation, most: int):
        self.work, self.rotation, self.most = work, rotation, most
        # Results are kept as long as a set of inputs rests, so that they rotate too; one alone is larger than the L2.
        self.results: deque = deque(maxlen=rotation.sets if rotation.sets > 1 else 0)
        self.start, self.end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.sleep = 1e6
        self.synchronizes = False
        for _ in range(WARM_UP):
            self._batch(1)
        self.calls = self._calls(self._batch(1)[0])
        # As many calls, bound by the host, are soon done by the device. More are queued, while it can sleep so long.
        queued = self._queued(self.calls)
        self.queued_calls = self.calls
        if queued:
            most = int(self.LONGEST_SLEEP / self.CLOCK / 2 / (queued["host"] / 1e3))
            self.queued_calls = max(min(self._calls(queued["device"] / 1e3), most), 1)

    def __call__(self) -> dict[str, float]:
        return {"time": 1e3 * self._batch(self.calls)[0], **self._queued(self.queued_calls)}

    def _calls(self, seconds: float) -> int:
        """How many make a batch, of calls that take so long."""
        return max(int(min(self.SAMPLE / seconds, self.most)), 1)

    def _queued(self, calls: int) -> dict[str, float]:
        """Device and host time, of calls that were all queued before the first one began."""
        for _ in range(0 if self.synchronizes else self.ATTEMPTS):
            device, host, began = self._batch(calls, self.sleep)
            if not began:
                return {"device": 1e3 * device, "host": 1e3 * host}
            self.sleep = min(2 * max(self.sleep, host * calls * self.CLOCK), self.LONGEST_SLEEP)
        self.synchronizes = True  # the contender waits for the device itself: no such times can be told apart
        return {}

    def _batch(self, calls: int, sleep: float = 0) -> tuple[float, float, bool]:
        """Seconds a call on the device and on the host, and whether the first began before the last was queued."""
        states = deque(self.work.prepare(next(self.rotation.numbers)) for _ in range(calls))
        self.rotation.empty_cache()  # of what was prepared, too
        torch.cuda.synchronize()
        if sleep:
            torch.cuda._sleep(int(sleep))
        self.start.record()
        before = time.perf_counter()
        while states:
            self.results.append(self.work.run(states.popleft()))
        host = time.perf_counter() - before
        self.end.record()
        began = self.start.query()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1e3 / calls, host / calls, began
