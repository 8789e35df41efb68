"""The four figures of a training run, as PNG files."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae_fast.benchmarks.drawing import figure
from vae_fast.models import VAE

PANELS = (("negative_elbo", "negative ELBO"), ("reconstruction", "reconstruction"), ("kl", "KL"))


def curves(history: list[dict[str, float]], path: Path) -> None:
    """The negative ELBO and its two parts against the epoch, in training and in testing."""
    epochs = [row["epoch"] for row in history]
    with figure(path, 9, 3) as canvas:
        for axes, (key, title) in zip(canvas.subplots(1, 3), PANELS):
            for part, style in (("train", "C0--"), ("test", "C1-")):
                axes.plot(epochs, [row[f"{part}_{key}"] for row in history], style, label=part)
            axes.set(title=title, xlabel="epoch", ylabel="nats per sample")
            axes.xaxis.get_major_locator().set_params(integer=True)
        canvas.axes[0].legend(frameon=False)


def reconstructions(model: VAE, images: Tensor, path: Path, columns: int = 12) -> None:
    """Test images, and below each what the model makes of it."""
    images = images[:columns]
    pairs = torch.stack((images, model.reconstruct(images).to(images)))
    with figure(path, 0.7 * len(images) + 1, 1.6) as canvas:
        grid = canvas.subplots(2, len(images), squeeze=False)
        for row, name in enumerate(("test image", "reconstruction")):
            for axes, image in zip(grid[row], pairs[row]):
                _show(axes, image, vmin=float(images.min()), vmax=float(images.max()))
            grid[row][0].set_ylabel(name, rotation=0, ha="right", va="center")


def samples(model: VAE, path: Path, generator: torch.Generator, side: int = 10) -> None:
    """Images generated from the prior: the mean of each, without pixel noise."""
    images = model.generate(side * side, generator=generator)
    with figure(path, 5, 5.3) as canvas:
        for axes, image in zip(canvas.subplots(side, side).flat, images):
            _show(axes, image, vmin=float(images.min()), vmax=float(images.max()))
        canvas.suptitle("samples from the prior")


@torch.no_grad()
def latent(model: VAE, images: Tensor, labels: Tensor | None, path: Path) -> None:
    """The posterior means of test images on their first two principal components, coloured by class, or else by KL."""
    posterior = model.encode(images)
    means = posterior.mode().flatten(1).float().cpu()
    points, share = _principal_components(means)
    with figure(path, 5.6, 4.6) as canvas:
        axes = canvas.subplots()
        if labels is None:
            kl = posterior.kl(reduction="sample").float().cpu()
            canvas.colorbar(axes.scatter(*points.T, c=kl, s=12), label="KL, nats per sample")
        else:
            for number, label in enumerate(labels.unique().tolist()):
                axes.scatter(*points[labels == label].T, s=12, color=f"C{number}", label=str(label))
            canvas.legend(title="digit", loc="outside right upper", frameon=False, markerscale=1.5)
        axes.set(
            title="posterior means of test images",
            xlabel=f"component 1 ({share[0]:.0%} of the variance)",
            ylabel=f"component 2 ({share[1]:.0%} of the variance)",
        )


def _principal_components(means: Tensor) -> tuple[np.ndarray, list[float]]:
    """Coordinates [N, 2] on the first two components, and the share of the variance of each."""
    centred = means - means.mean(0)
    rows, columns = (max(0, 2 - size) for size in centred.shape)  # of one mean, or one latent
    _, sizes, axes = torch.linalg.svd(torch.nn.functional.pad(centred, (0, columns, 0, rows)), full_matrices=False)
    variances = sizes.square()
    points = torch.nn.functional.pad(centred, (0, columns)) @ axes[:2].T
    return points.numpy(), (variances[:2] / variances.sum().clamp(min=1e-30)).tolist()


def _show(axes, image: Tensor, vmin: float, vmax: float) -> None:
    """Draw one image: [height, width], or with 1 or 3 channels before or after."""
    pixels = image.detach().float().cpu()
    if pixels.dim() == 3 and pixels.shape[0] in (1, 3):
        pixels = pixels.movedim(0, -1)
    if pixels.shape[-1] == 3 and pixels.dim() == 3:
        pixels = ((pixels - vmin) / max(vmax - vmin, 1e-12)).clamp(0, 1)
    axes.imshow(pixels.numpy(), cmap="gray", vmin=vmin, vmax=vmax)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
