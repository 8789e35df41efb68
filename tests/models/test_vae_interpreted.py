"""The thin VAE through the Triton kernels, on the CPU."""

import os

import pytest
import torch

from vae_fast import use_backend
from vae_fast.models import VAE

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


def test_a_few_training_steps_through_the_kernels_are_those_of_the_eager_backend():
    x = torch.rand(16, 8, 8, generator=torch.Generator().manual_seed(0))
    losses = {}
    for backend in ("triton", "eager"):
        torch.manual_seed(0)
        model = VAE((8, 8), 4, (16,))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses[backend] = []
        for seed in range(4):
            optimizer.zero_grad()
            with use_backend(backend):
                loss = model.loss(x, seed=seed).total
            loss.backward()
            optimizer.step()
            losses[backend].append(loss.item())
    assert losses["triton"] == pytest.approx(losses["eager"], rel=1e-5)
    assert losses["triton"][-1] < losses["triton"][0]
