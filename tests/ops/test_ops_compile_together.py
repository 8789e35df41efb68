"""torch.compile over several calls in one graph, and over shapes that are symbols."""

import pytest
import torch
from torch import nn

from tests.ops.cases import values
from tests.ops.test_ops_compile import counted
from tests.support.environment import INTERPRETED, inductor_for_cpu
from vae_fast import (
    DiagonalGaussian,
    Huber,
    SoftClamp,
    Softplus,
    elbo_loss,
    free_bits,
    gaussian_kl,
    reconstruction_loss,
    reparameterize,
    sample_kl,
)

pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),  # Inductor's own
]


def zeros(count, backend):
    return [torch.zeros(16, 8, device=backend.device, requires_grad=True) for _ in range(count)]


DRAWS = {
    "several samples of two layers": lambda m1, v1, m2, v2: (
        reparameterize(m1, v1, num_samples=2),
        reparameterize(m2, v2, num_samples=2),
    ),
    "two layers": lambda m1, v1, m2, v2: (sample_kl(m1, v1)[0], sample_kl(m2, v2)[0]),
    "one layer twice": lambda m1, v1, m2, v2: (reparameterize(m1, v1), reparameterize(m1, v1)),
    "one distribution twice": lambda m1, v1, m2, v2: [DiagonalGaussian(m1, v1).rsample() for _ in range(2)],
    "two samples of a target": lambda m1, v1, m2, v2: [
        reconstruction_loss(m + 1, torch.full_like(m, 0.5).detach(), binarize=True, reduction="none") for m in (m1, m1)
    ],
}


@pytest.mark.parametrize("draws", DRAWS)
def test_two_draws_in_one_graph_are_two_draws(draws, backend):
    """Compilers merge equal nodes of a graph, and a draw must not look like one of them."""
    compiled, _ = counted(DRAWS[draws])
    first, second = compiled(*zeros(4, backend))
    assert not torch.equal(first, second)


@inductor_for_cpu
@pytest.mark.skipif(INTERPRETED, reason="Inductor compiles for the CPU")
def test_two_draws_in_one_graph_of_inductor_are_two_draws():
    leaves = [torch.zeros(16, 8, requires_grad=True) for _ in range(4)]
    first, second = torch.compile(DRAWS["several samples of two layers"], fullgraph=True)(*leaves)
    assert not torch.equal(first, second)


class Learned(nn.Module):
    """Parameters that a loss shares over a batch."""

    def __init__(self, device):
        super().__init__()
        self.mu, self.logvar = (nn.Parameter(torch.zeros(8, device=device)) for _ in range(2))
        self.register_buffer("mask", torch.arange(8.0, device=device)[None] > 3)

    def forward(self, a, b):
        kl = gaussian_kl(a, b, prior=(self.mu, self.logvar))
        target = torch.zeros_like(a).detach()
        return kl + reconstruction_loss((b, self.logvar), target, "gaussian", weight=self.mask)


TOGETHER = {
    "two KLs": lambda a, b: gaussian_kl(a, b) + gaussian_kl(b, a),
    "two scales": lambda a, b: gaussian_kl(a, b, scale="softplus") + gaussian_kl(b, a, scale=SoftClamp(3.0)),
    "a sample and a KL": lambda a, b: sample_kl(a, b, seed=1)[1].sum() + gaussian_kl(a, b, scale=Softplus(1e-3)),
    "two losses of bytes": lambda a, b: sum(
        reconstruction_loss(t, (a > 0).detach().to(torch.uint8), likelihood, target_scale=scale)
        for t, likelihood, scale in ((a, "mse", None), (b, "bernoulli", 0.5))
    ),
    "two likelihoods with numbers": lambda a, b: sum(
        reconstruction_loss(t, torch.zeros_like(a).detach(), likelihood)
        for t, likelihood in ((a, "huber"), (b, Huber(0.5)), ((a, b), "student_t"))
    ),
    "free bits of each latent": lambda a, b: free_bits(gaussian_kl(a, b, reduction="latent"), 0.1, per="latent"),
    "a drawn sample": lambda a, b: sample_kl(a, b - 200)[0].sum(),  # so narrow that z is its mean
    "several drawn samples": lambda a, b: reparameterize(a, b - 200, num_samples=2).sum(),
    "a drawn target": lambda a, b: reconstruction_loss(a, (b > 0).detach().float(), binarize=True),
}


@pytest.mark.parametrize("dynamic", [None, True], ids=["automatic", "dynamic"])
@pytest.mark.parametrize("name", [*TOGETHER, "learned"])
def test_batches_that_change(name, dynamic, backend):
    """The second size may compile again, for all later ones: no symbol is frozen to a value."""
    function = Learned(backend.device) if name == "learned" else TOGETHER[name]
    compiled, counter = counted(function, dynamic)
    for size in (16, 12, 5, 7):
        leaves = [values(size, 8, device=backend.device, dtype=torch.float32, seed=i).requires_grad_() for i in (1, 2)]
        actual, wanted = compiled(*leaves), function(*leaves)
        torch.testing.assert_close(actual, wanted)
        gradients = [torch.autograd.grad(loss, leaves, allow_unused=True) for loss in (actual, wanted)]
        torch.testing.assert_close(*gradients)
    assert counter.frame_count <= 2


def test_a_batch_marked_as_dynamic(backend):
    compiled, counter = counted(
        lambda a, b: elbo_loss(a, b.detach(), gaussian_kl(a, b, reduction="latent").sum()).total
    )
    for size in (16, 12):
        leaves = [values(size, 8, device=backend.device, dtype=torch.float32, seed=i).requires_grad_() for i in (1, 2)]
        for leaf in leaves:
            torch._dynamo.mark_dynamic(leaf, 0)
        compiled(*leaves).backward()
    assert counter.frame_count == 1


MASKED = {
    "latents": lambda a, b: sum(t.sum() for t in sample_kl(a, b, seed=1)),
    "prior": lambda a, b: gaussian_kl(a, b, prior=(b + a, b - a), reduction="sum"),
    "two parameters": lambda a, b: reconstruction_loss((a, b), torch.zeros_like(a).detach(), "gaussian"),
    "weight": lambda a, b: reconstruction_loss(a, b.detach(), "mse", weight=b.detach()[:, 0]),
    "density": lambda a, b: DiagonalGaussian(a, b).log_prob(torch.zeros_like(a)).sum(),
}


@pytest.mark.parametrize("name", MASKED)
def test_a_batch_of_as_many_as_a_mask_says(name, backend):
    """No size is asked whether it is 1, which nobody knows before the data are there."""
    compiled, counter = counted(lambda a, b, mask: MASKED[name](a[mask], b[mask]))
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        for kept in (7, 1):
            leaves = [
                values(16, 8, device=backend.device, dtype=torch.float32, seed=i).requires_grad_() for i in (1, 2)
            ]
            mask = torch.arange(16, device=backend.device) < kept
            actual, wanted = compiled(*leaves, mask), MASKED[name](*(leaf[mask] for leaf in leaves))
            torch.testing.assert_close(actual, wanted)
            gradients = [torch.autograd.grad(loss, leaves, allow_unused=True) for loss in (actual, wanted)]
            torch.testing.assert_close(*gradients)
    assert counter.frame_count == 1
