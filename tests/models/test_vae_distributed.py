"""DistributedDataParallel around a VAE, as `VAE.loss` advises: two processes have the gradients of one."""

import os

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from vae_fast import elbo_loss
from vae_fast.models import VAE

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="a process of its own is not interpreted"),
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="PyTorch has no gloo here"),
]

WORLD, BATCH, STEPS = 2, 6, 2  # steps that add up their gradients


def model():
    torch.manual_seed(0)
    return VAE((4, 5), 3, (16,), likelihood="gaussian")


def batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(BATCH, 4, 5, generator=generator), torch.randn(BATCH, 3, generator=generator))] * STEPS


def add_gradients(call, share):
    """Those of the mean of `STEPS` losses, of a share of each batch."""
    for x, eps in batches():
        out = call(x[share], eps=eps[share])
        (elbo_loss(out.output, x[share], out.kl, likelihood="gaussian").total / STEPS).backward()


def work(rank, folder):
    store = dist.FileStore(os.path.join(folder, "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    vae = model()
    add_gradients(DistributedDataParallel(vae), slice(rank, None, WORLD))
    torch.save([p.grad for p in vae.parameters()], os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def test_the_gradients_of_two_processes_are_those_of_one(tmp_path):
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=WORLD)
    vae = model()
    add_gradients(vae, slice(None))
    expected = [p.grad for p in vae.parameters()]
    for rank in range(WORLD):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)
