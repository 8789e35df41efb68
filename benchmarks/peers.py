"""Training steps of other projects as `steps.STEPS` has them, by their own code: what vae_fast adds is its patch.

The projects are imported where they are called: a machine may have none of them.
"""

import importlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

QUIET = -29.0  # a logvar at which z is its mean to six digits, within the bounds to which diffusers clamps it
KL_WEIGHT = 1e-6  # that of diffusers' examples, research_projects/autoencoderkl


def switch(project: str | None, patched: bool) -> None:
    """Have `project`, a module of `vae_fast.integrations`, compute by vae_fast, or by itself; None is no project."""
    if project is not None:
        integration = importlib.import_module(f"vae_fast.integrations.{project}")
        (integration.patch if patched else integration.unpatch)()


def obstacle(project: str | None) -> str:
    """Why the project cannot be patched here, "" if it can: it is missing, or of another version."""
    try:
        switch(project, True)
    except (ImportError, RuntimeError) as error:
        return str(error)
    switch(project, False)
    return ""


def scvi_model() -> nn.Module:
    """The module of SCVI for two batches, with the defaults that SCVI trains with: zinb, 128 hidden, 10 latents."""
    from scvi.module import VAE

    return VAE(2000, n_batch=2)


def scvi_batch(shape: tuple[int, ...], device: torch.device, seed: int) -> Tensor:
    """Counts of scvi-tools' synthetic data, the two batches of cells one behind the other."""
    from scvi.data import synthetic_iid

    cells, genes = shape
    state = np.random.get_state()  # noqa: NPY002 - the generator that it draws from
    np.random.seed(seed)  # noqa: NPY002
    try:
        data = synthetic_iid(batch_size=cells // 2, n_genes=genes, n_proteins=0, n_regions=0)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return torch.from_numpy(data.X).float().to(device)


def scvi_loss(model: nn.Module, x: Tensor) -> Tensor:
    """What a training plan of scvi-tools differentiates, after its warm-up of the KL."""
    batch = torch.arange(len(x), device=x.device).mul(2).div(len(x), rounding_mode="floor").view(-1, 1)
    tensors = {"X": x, "batch": batch, "labels": torch.zeros_like(batch)}
    return model(tensors, loss_kwargs={"kl_weight": 1.0})[2].loss


def quieten_scvi(model: nn.Module) -> nn.Module:
    """Without the noise of the latents and of dropout."""
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    model.z_encoder.var_eps = 0.0
    _quieten(model.z_encoder.var_encoder, 0)
    return model


def diffusers_model() -> nn.Module:
    """The autoencoder of Stable Diffusion with two levels of 32 and 64 channels instead of four of up to 512."""
    from diffusers import AutoencoderKL

    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    return AutoencoderKL(3, 3, down, up, block_out_channels=(32, 64), latent_channels=4)


def diffusers_loss(model: nn.Module, x: Tensor) -> Tensor:
    """Without the perceptual and adversarial terms of diffusers' example: others' networks."""
    posterior = model.encode(x).latent_dist
    return F.mse_loss(model.decode(posterior.sample()).sample, x) + KL_WEIGHT * posterior.kl().mean()


def quieten_diffusers(model: nn.Module) -> nn.Module:
    """Without the noise of the latents."""
    _quieten(model.quant_conv, model.quant_conv.out_channels // 2)
    return model


def _quieten(layer, first):
    """Fix the outputs of the layer from `first` on, which are logarithms of variances."""
    with torch.no_grad():
        layer.weight[first:] = 0
        layer.bias[first:] = QUIET
