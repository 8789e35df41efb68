"""What the functions say of tensors of other kinds: nested ones, and those of torch.distributed."""

import pytest
import torch
import torch.distributed as dist

from tests.inputs.refusals import refuses, zeros
from vae_fast import (
    ELBOLoss,
    capacity,
    elbo_loss,
    free_bits,
    gaussian_kl,
    iwae_loss,
    reconstruction_loss,
    sample_kl,
    sample_kl_packed,
)

A, C = zeros(4, 3), torch.zeros(4, dtype=torch.int64)
# Each takes what it names in place of a good tensor.
ARGUMENTS = {
    "mu": lambda t: sample_kl(t, A),
    "logvar": lambda t: gaussian_kl(A, t),
    "moments": lambda t: sample_kl_packed(t),
    "prior mu": lambda t: gaussian_kl(A, A, prior=(t, A)),
    "eps": lambda t: sample_kl(A, A, eps=t),
    "output": lambda t: reconstruction_loss(t, A),
    "output's mean": lambda t: elbo_loss((t, A), A, zeros(4), likelihood="gaussian"),
    "target": lambda t: reconstruction_loss(A, t),
    "weight": lambda t: reconstruction_loss(A, A, weight=t),
    "kl": lambda t: ELBOLoss()(A, A, t),
}
OF_CLASSES = {
    "output": lambda t: reconstruction_loss(t, C, "categorical"),
    "target": lambda t: reconstruction_loss(A, t.long(), "categorical"),
}
OF_NATS = {
    "kl": lambda t: free_bits(t, 0.1),
    "nll": lambda t: iwae_loss(t, A),
}
prototype = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")


@prototype
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.parametrize(("name", "call"), [*ARGUMENTS.items(), *OF_CLASSES.items(), *OF_NATS.items()])
def test_nested_tensors(name, call, layout):
    nested = torch.nested.nested_tensor([zeros(3, 4), zeros(2, 4)], layout=layout)
    what = "has layout torch.jagged: expected a dense (strided) tensor"
    what = what if layout == torch.jagged else "is a nested tensor: expected a dense one"
    with pytest.raises(TypeError) as caught:
        call(nested)
    assert str(caught.value) == f"{name} {what}"


def after_good_ones(device):
    """(a good tensor, a call) of each argument: the others need a gradient, as only such calls are remembered."""
    mu, logvar = zeros(4, 3, device=device).requires_grad_(), zeros(4, 3, device=device).requires_grad_()
    good, kls = zeros(4, 3, device=device), zeros(4, device=device)
    return {
        "mu": (mu, lambda t: sample_kl(t, logvar)),
        "logvar": (logvar, lambda t: gaussian_kl(mu, t)),
        "prior mu": (good, lambda t: gaussian_kl(mu, logvar, prior=(t, good))),
        "eps": (good, lambda t: sample_kl(mu, logvar, eps=t)),
        "output": (mu, lambda t: reconstruction_loss(t, good)),
        "output's logvar": (logvar, lambda t: reconstruction_loss((mu, t), good, "gaussian")),
        "target": (good, lambda t: reconstruction_loss(mu, t)),
        "weight": (good, lambda t: reconstruction_loss(mu, good, weight=t)),
        "kl": (kls, lambda t: elbo_loss(mu, good, t)),
    }


@prototype
@pytest.mark.parametrize("name", after_good_ones("cpu"))
def test_nested_tensors_after_good_ones(name, backend):
    """PyTorch's guard, by which calls of a known kind are told, would end the process."""
    good, call = after_good_ones(backend.device)[name]
    for _ in range(3):
        call(good)
    nested = torch.nested.nested_tensor([zeros(3, 4), zeros(2, 4)], device=backend.device)
    with pytest.raises(TypeError, match=f"^{name} is a nested tensor: expected a dense one$"):
        call(nested)


@pytest.fixture(scope="module")
def mesh():
    """Of this process alone."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("PyTorch has no gloo here")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def distributed(mesh, tensor):
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(tensor, mesh, [Shard(0)])


@pytest.mark.parametrize(("name", "call"), [*ARGUMENTS.items(), *OF_CLASSES.items()])
def test_distributed_tensors(name, call, mesh):
    """Their shards are no business of ours: noise is numbered by a tensor's own memory."""
    shape = (4,) if name == "kl" else (4, 6) if name == "moments" else (4, 3)
    message = f"{name} is a DTensor: expected a tensor of this process alone, such as its to_local()"
    refuses(TypeError, message, call, distributed(mesh, zeros(*shape)))


def test_what_pytorchs_ops_compute_is_computed_for_distributed_tensors(mesh):
    nats = torch.rand(4, 3)
    for call in (lambda t: free_bits(t[0], 0.5), lambda t: capacity(t.sum(0), 2.0), lambda t: iwae_loss(t, t)):
        torch.testing.assert_close(call(distributed(mesh, nats)).full_tensor(), call(nats))
