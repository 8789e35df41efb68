"""The fast path of variational autoencoders: fused sample, KL and reconstruction losses with their own gradients."""

import typing

from vae_fast.classes import Categorical
from vae_fast.distributions import DiagonalGaussian
from vae_fast.functional import (
    ELBO,
    elbo_loss,
    gaussian_kl,
    reconstruction_loss,
    reparameterize,
    sample_kl,
    sample_kl_packed,
)
from vae_fast.graphs import capture_step
from vae_fast.likelihoods import Huber, StudentT
from vae_fast.losses import ELBOLoss, GaussianKL, ReconstructionLoss
from vae_fast.models.vae import VAE
from vae_fast.objectives import capacity, free_bits, iwae_loss
from vae_fast.ops.backend import use_backend
from vae_fast.scales import SoftClamp, Softplus
from vae_fast.schedules import Constant, Cyclical, LinearWarmup

__version__ = "0.1.0"

__all__ = [
    "ELBO",
    "VAE",
    "Categorical",
    "Constant",
    "Cyclical",
    "DiagonalGaussian",
    "ELBOLoss",
    "GaussianKL",
    "Huber",
    "LinearWarmup",
    "ReconstructionLoss",
    "SoftClamp",
    "Softplus",
    "StudentT",
    "capacity",
    "capture_step",
    "elbo_loss",
    "fit",
    "free_bits",
    "gaussian_kl",
    "iwae_loss",
    "reconstruction_loss",
    "reparameterize",
    "sample_kl",
    "sample_kl_packed",
    "use_backend",
]


if typing.TYPE_CHECKING:
    from vae_fast.app.training import fit
else:

    def __getattr__(name):
        # Training needs the `app` extra; importing the losses must not.
        if name == "fit":
            from vae_fast.app.training import fit

            return fit
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
