"""Tiny diffusers autoencoders trained with and without the patch: the same losses."""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: make test-peers", exc_type=ModuleNotFoundError)

from diffusers import AutoencoderKL, AutoencoderOobleck

from tests.peers.curves import assert_same_curves
from vae_fast.integrations import diffusers as fast


def random(*shape, device):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)).to(device)


def image_model():
    return AutoencoderKL(1, 1, block_out_channels=(8,), latent_channels=2, norm_num_groups=4)


def audio_model():
    return AutoencoderOobleck(
        encoder_hidden_size=4, downsampling_ratios=[2], channel_multiples=[1], decoder_channels=4,
        decoder_input_channels=2, audio_channels=1,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")  # diffusers' own
@pytest.mark.parametrize(
    ("model", "shape"), [(image_model, (8, 1, 8, 8)), (audio_model, (4, 1, 32))], ids=["image", "audio"]
)
def test_the_loss_curve_is_the_same(model, shape, backend):
    x = random(*shape, device=backend.device)

    def step(model, i):
        posterior = model.encode(x).latent_dist
        z = posterior.sample(torch.Generator(backend.device).manual_seed(i))
        reconstruction = (model.decode(z).sample - x).square().sum() / len(x)
        return reconstruction + 0.1 * posterior.kl().mean()

    assert_same_curves(lambda: model().to(backend.device), step, fast.patch)
