"""`vae-fast profile`: train for some steps, and tell where the time goes."""

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple
from unittest.mock import patch

import torch
import typer
from rich import box
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, record_function

from vae_fast import checks, seeds
from vae_fast.app.data import digits, load_images
from vae_fast.app.options import argument, console, say, trainable_device
from vae_fast.app.training import check_data, synchronizer
from vae_fast.benchmarks.counting import quiet_profiler
from vae_fast.files import atomic_path, writable_folder
from vae_fast.models import VAE

TRACE = "trace.json"
WARM_UP = 5
TRACED = 20  # steps under the profiler at most: a trace of more is slow to open
LEARNING_RATE = 1e-3
DATA, NOISE = "vae_fast: data", "vae_fast::noise"
OURS, NETWORK, OPTIMISER, HOST, WAITING = "our ops", "network", "optimiser", "host", "waiting for data"
NOTES = {
    OURS: "noise, sample, KL and reconstruction, forward and backward (vae_fast::... in the trace)",
    NETWORK: "PyTorch's ops in encoder and decoder, forward and backward",
    OPTIMISER: "its step",
    HOST: "Python and autograd, while nothing of the above runs",
    WAITING: "taking a batch, and moving it to the device, which is idle then",
}


class Profile(NamedTuple):
    """samples_per_second: without the profiler. milliseconds of a step, by part: under it, which slows the host."""

    samples_per_second: float
    milliseconds: dict[str, float]


def profile(
    model: Annotated[Path | None, typer.Option(help="Folder of a saved model. [an MLP with 8 latents]")] = None,
    data: Annotated[Path | None, typer.Option(help="A .npy file of images. [scikit-learn's digits]")] = None,
    output: Annotated[Path, typer.Option(help=f"Folder to write {TRACE} into.")] = Path("runs/profile"),
    steps: Annotated[int, typer.Option(help="Training steps that are timed.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>.")] = "auto",
) -> None:
    """Train for some steps and show the time in our ops, in the network, on the host and waiting for data."""
    argument("--steps", checks.count, "steps", steps)
    argument("--batch-size", checks.count, "batch_size", batch_size)
    target = trainable_device(device)
    images = digits().train if data is None else argument("--data", load_images, data)
    vae = VAE(images.shape[1:], latent_dim=8) if model is None else argument("--model", VAE.load, model)
    images = images.to(next(vae.parameters()).dtype)
    argument("--data", check_data, "data", images, vae.likelihood)
    argument("--data", vae.loss, images[:1])
    folder = argument("--output", writable_folder, output, "the folder")
    with atomic_path(folder / TRACE) as trace:
        found = profile_training(vae.to(target), images, steps=steps, batch_size=batch_size, trace=trace)
    _show(found, steps, min(batch_size, len(images)), target)
    say(f"written to {folder / TRACE}: open it in https://ui.perfetto.dev")


def profile_training(model: VAE, data: Tensor, *, steps: int, batch_size: int, trace: Path | None = None) -> Profile:
    """Train `model` with Adam on random batches of `data`, and see where the time goes.

    Args:
        model: trained in place, on the device it is on.
        data: [N, ...], floating point, on any device.
        steps: how many are timed; a few more warm up, and a few more run under the profiler.
        batch_size: samples a step, N at most.
        trace: a Chrome trace is written there.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    batches = _batches(data, min(batch_size, len(data)), next(model.parameters()).device)
    _train(model, optimizer, batches, WARM_UP)
    seconds = _train(model, optimizer, batches, steps)
    traced = min(steps, TRACED)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    once = torch.profiler.schedule(wait=0, warmup=1, active=1, repeat=1)
    with quiet_profiler(), torch.profiler.profile(activities=activities, schedule=once) as profiler, _named_noise():
        _train(model, optimizer, batches, WARM_UP, apart=True)  # while the profiler starts, which takes the host time
        profiler.step()
        whole = _train(model, optimizer, batches, traced, apart=True)
    if trace is not None:
        _export(profiler, trace)
    parts = _parts(profiler.events(), next(model.parameters()).is_cuda)
    parts[HOST] = max(1e6 * whole - sum(parts.values()), 0.0)
    milliseconds = {name: parts[name] / 1e3 / traced for name in NOTES}
    return Profile(steps * min(batch_size, len(data)) / seconds, milliseconds)


@contextmanager
def _named_noise() -> Iterator[None]:
    """Noise, or its seed, is drawn outside our ops, by PyTorch's: without a name it would count as the network's."""

    def noise(*arguments):
        with record_function(NOISE):
            return draw(*arguments)

    draw = seeds.noise
    with patch.object(seeds, "noise", noise):
        yield


def _export(profiler: torch.profiler.profile, trace: Path) -> None:
    """Write the trace. PyTorch says nothing of a full disk, and leaves a file of its own behind."""
    profiler.export_chrome_trace(str(trace))
    if not trace.exists():
        trace.with_name(f"{trace.name}.tmp").unlink(missing_ok=True)
        raise OSError(errno.ENOSPC, "the trace could not be written", str(trace))


def _batches(data: Tensor, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    while True:
        with record_function(DATA):
            batch = data[torch.randint(len(data), (batch_size,), device=data.device)].to(device)
        yield batch


def _train(
    model: VAE, optimizer: torch.optim.Optimizer, batches: Iterator[Tensor], steps: int, apart: bool = False
) -> float:
    """Seconds of so many training steps, until the device has done them.

    apart: the next batch is fetched when the device is idle, or the copy to it would wait for the step before.
    """
    synchronize = synchronizer(next(model.parameters()).device)
    synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        if apart:
            synchronize()
        batch = next(batches)
        optimizer.zero_grad()
        model.loss(batch).total.backward()
        optimizer.step()
    synchronize()
    return time.perf_counter() - start


def _parts(events, on_gpu: bool) -> dict[str, float]:
    """Microseconds by part, without the host's: on a GPU those of its kernels, and for data those of the host."""
    parts = dict.fromkeys((OURS, NETWORK, OPTIMISER, WAITING), 0.0)
    for event in events:
        part = _part(event)
        if part is not None and event.device_type == torch.autograd.DeviceType.CPU:
            on_device = on_gpu and part != WAITING
            parts[part] += event.self_device_time_total if on_device else event.self_cpu_time_total
    return parts


def _part(event) -> str | None:
    """The part that an op's own time belongs to: that of the outermost op around it that has one."""
    part = None
    while event is not None:
        part = _part_of_name(event.name) or part
        event = event.cpu_parent
    return part


def _part_of_name(name: str) -> str | None:
    if name.startswith("vae_fast::"):
        return OURS
    if name == DATA:
        return WAITING
    if name.startswith("Optimizer."):
        return OPTIMISER
    return NETWORK if name.startswith("aten::") else None


def _show(found: Profile, steps: int, batch_size: int, device: torch.device) -> None:
    total = sum(found.milliseconds.values())
    table = Table(title=f"a training step on {device}, under the profiler", box=box.SIMPLE_HEAD)
    for name in ("", "ms", "share"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    table.add_column("")
    for name, milliseconds in found.milliseconds.items():
        table.add_row(name, f"{milliseconds:.3f}", f"{milliseconds / total:.0%}", NOTES[name])
    console.print(table)
    rate = f"{found.samples_per_second:,.0f} samples/s"
    console.print(f"{rate} without the profiler, over {steps} steps of {batch_size}", soft_wrap=True)
