"""Memory: what is free, what a call takes at its peak, and how fast the device copies."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch

from vae_fast.benchmarks.counting import quiet_profiler
from vae_fast.benchmarks.timing import DeviceTimer, Effort, HostTimer, Rotation, Work, statistics, take_turns

COPY_BYTES = 2**30  # a GPU's; far beyond any cache
COPY_BYTES_CPU = 2**28
INFINITY_CACHE = 2**28  # the largest, of the MI300 series


def free_memory(device: torch.device) -> int | None:
    """Bytes; None where the machine does not say."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def cache_bytes(device: torch.device) -> int:
    """Of a GPU's L2, and at AMD of the Infinity Cache behind it, which PyTorch does not know."""
    return torch.cuda.get_device_properties(device).L2_cache_size + (INFINITY_CACHE if torch.version.hip else 0)


def peak_memory(call: Callable, device: torch.device) -> int:
    """The most bytes that `call` held at a time beside what was there before it, results included."""
    if device.type != "cuda":
        return _peak_on_cpu(call)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(call: Callable) -> int:
    """The running sum of the allocations that PyTorch's profiler reports, unseen by our ops: they would take the way
    that a user of the profiler wants to see."""
    unseen = patch.object(torch.autograd.profiler, "_is_profiler_enabled", False)
    with quiet_profiler(), torch.autograd.profiler.profile(profile_memory=True) as profile, unseen:
        result = call()
    del result
    changes = [(e.start_ns(), e.nbytes()) for e in profile.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        held += change
        peak = max(peak, held)
    return peak


def copy_bandwidth(device: torch.device, effort: Effort) -> float:
    """Bytes a second of a large copy within the device: those read and those written. Timed as what is held to it."""
    wanted = COPY_BYTES if device.type == "cuda" else COPY_BYTES_CPU
    free = free_memory(device)
    size = min(wanted, (free or wanted) // 8)
    source = torch.rand(size // 4, device=device)
    work = Work(torch.empty_like(source).copy_, lambda number: source)
    on_gpu = device.type == "cuda"
    timer = DeviceTimer(work, Rotation(1, cache_bytes(device)), most=10) if on_gpu else HostTimer(work)
    samples = take_turns({"copy": timer}, effort)["copy"]
    return 2 * source.nbytes / (statistics([s.get("device", s["time"]) for s in samples]).median / 1e3)
