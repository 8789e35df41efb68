"""The command `vae-fast`."""

import csv
import math
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from vae_fast import __version__, checks, seeds
from vae_fast.app.audit import audit
from vae_fast.app.bench import bench
from vae_fast.app.compare import compare
from vae_fast.app.data import Split, digits, load_images, split
from vae_fast.app.doctor import ALLOWED, environment, run_checks
from vae_fast.app.options import INTERRUPTED, argument, console, say, trainable_device
from vae_fast.app.profile import profile
from vae_fast.app.training import check_data, check_learning_rate, fit, resolve_device
from vae_fast.extras import import_extra
from vae_fast.files import atomic_path, writable_folder
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.models import VAE
from vae_fast.ops import backend

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain messages: they stay on one line, and can be searched for
    pretty_exceptions_enable=False,
)

TRAINABLE = [name for name, row in LIKELIHOODS.items() if row.domain != "classes"]  # pixels are numbers
MSE_NOTE = "(mse alone is no ELBO: it is the Gaussian at variance 1/2, less a constant.)"

# More points than this make a cloud without structure, and one batch that may not fit.
LATENT_POINTS = 2000


def _show_version(asked: bool) -> None:
    if asked:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def _environment(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Train variational autoencoders with fused losses, and check them on this machine."""
    argument("VAE_FAST_BACKEND", backend.check_environment)


@app.command()
def train(
    data: Annotated[Path | None, typer.Option(help="A .npy file of images. [default: scikit-learn's digits]")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write. [default: runs/<name of the data>]")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 60,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 64,
    latent_dim: Annotated[int, typer.Option(help="Number of latents.")] = 8,
    hidden_dim: Annotated[
        list[int] | None, typer.Option(help="Width of a hidden layer; repeat it for more. [256]")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 1e-3,
    likelihood: Annotated[str, typer.Option(help=f"One of {', '.join(TRAINABLE)}. {MSE_NOTE}")] = "bernoulli",
    beta: Annotated[float, typer.Option(help="Weight of the KL.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of weights, shuffling and noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>.")] = "auto",
) -> None:
    """Train a VAE on images, write the model with its metrics and figures, and time it against eager PyTorch."""
    hidden_dims = hidden_dim or [256]
    for check, name, value in (
        (checks.count, "epochs", epochs),
        (checks.count, "batch_size", batch_size),
        (checks.count, "latent_dim", latent_dim),
        (checks.counts, "hidden_dim", hidden_dims),
        (checks.number, "beta", beta),
    ):
        argument(f"--{name.replace('_', '-')}", check, name, value)
    argument("--learning-rate", check_learning_rate, learning_rate)
    argument("--likelihood", checks.choice, "likelihood", likelihood, TRAINABLE)
    argument("--seed", seeds.check_int, seed)
    target = trainable_device(device)
    images = digits() if data is None else split(argument("--data", load_images, data))
    for name, part in (("training data", images.train), ("test data", images.test)):
        argument("--data", check_data, name, part, likelihood)
    folder = output or Path("runs") / ("digits" if data is None else data.stem)
    argument("--output", writable_folder, folder, "the folder")
    for needed in ("vae_fast.app.figures", "safetensors.torch"):  # before the training that it would lose
        import_extra(needed)

    batch_size = min(batch_size, len(images.train))
    torch.manual_seed(seed)
    model = _model(images.train.shape[1:], latent_dim, hidden_dims, likelihood=likelihood, beta=beta)
    try:
        history = fit(
            model,
            images.train,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            test_data=images.test,
            seed=seed,
            device=device,
        )
    except KeyboardInterrupt:
        console.print("interrupted: nothing was written")
        raise typer.Exit(INTERRUPTED) from None
    final = history[-1]["test_negative_elbo"]
    if not math.isfinite(final):
        console.print(
            f"training diverged: the negative ELBO is {final}, and nothing was written\n"
            f"learning_rate is {learning_rate}, beta {beta}: try a smaller --learning-rate",
            soft_wrap=True,
        )
        raise typer.Exit(1)
    try:
        _write(model, history, images, folder, seed)
    except KeyboardInterrupt:
        say(f"interrupted: some files of this training are missing in {folder}/")
        raise typer.Exit(INTERRUPTED) from None
    console.print(f"\nfinal test negative ELBO: {final:.2f} nats per image")
    say(f"written to {folder}/")
    _print_comparison(model.to(target), images.train, batch_size, learning_rate, target)


@app.command()
def doctor() -> None:
    """Show versions, the device and its backend, and check every op against the reference on this device."""
    device = resolve_device("auto")
    for name, value in environment(device):
        console.print(f"{name:9s} {value}")
    table = Table("op", "what", "error", "allowed", "")
    failed = 0
    for check in run_checks(device):
        failed += not check.passed
        verdict = "[green]ok[/]" if check.passed else "[red]FAILED[/]"
        table.add_row(check.op, escape(check.what), f"{check.error:.1e}", f"{ALLOWED:.1e}", verdict)
    console.print(table)
    console.print(f"{failed} of {table.row_count} checks FAILED" if failed else f"all {table.row_count} checks passed")
    raise typer.Exit(1 if failed else 0)


app.command()(bench)
app.command()(audit)
app.command()(profile)


def _model(shape: torch.Size, latent_dim: int, hidden_dims: list[int], **options) -> VAE:
    try:
        return VAE(shape, latent_dim, hidden_dims, **options)
    except (RuntimeError, TypeError, ValueError) as error:  # sizes were checked: PyTorch has no memory for so many
        message = f"latent_dim is {latent_dim}, hidden_dim {hidden_dims}: expected a model that fits in memory"
        raise typer.BadParameter(message, param_hint="'--latent-dim' / '--hidden-dim'") from error


def _write(model: VAE, history: list[dict[str, float]], images: Split, folder: Path, seed: int) -> None:
    figures = import_extra("vae_fast.app.figures")
    model.save(folder)
    with atomic_path(folder / "metrics.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=history[0])
        writer.writeheader()
        writer.writerows(history)
    figures.curves(history, folder / "curves.png")
    figures.reconstructions(model, images.test, folder / "reconstructions.png")
    figures.samples(model, folder / "samples.png", torch.Generator().manual_seed(seed))
    labels = None if images.labels is None else images.labels[:LATENT_POINTS]
    figures.latent(model, images.test[:LATENT_POINTS], labels, folder / "latent.png")


def _print_comparison(model: VAE, data: Tensor, batch_size: int, learning_rate: float, device: torch.device) -> None:
    timings = compare(model, data, batch_size, learning_rate)
    if not timings:
        return
    table = Table("", "ms per training step", "first loss, nats", title="fused against eager PyTorch on this device")
    for timing in timings:
        table.add_row(timing.name, f"{timing.milliseconds:.3f}", f"{timing.loss:.4f}")
    console.print(table)
    console.print(f"medians of interleaved steps on {device}; same weights, batches and noise")
    if device.type == "cpu":
        console.print("the kernels need a GPU: on a CPU both are PyTorch, and a small model's step is level at best")
