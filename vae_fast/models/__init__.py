"""Models on top of the fused losses."""

from vae_fast.models.vae import VAE, VAEOutput

__all__ = ["VAE", "VAEOutput"]
