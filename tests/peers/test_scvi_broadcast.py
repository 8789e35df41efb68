"""scvi-tools' distributions broadcast their parameters: the patched log_prob takes them at the size they had before."""

import pytest
import torch

pytest.importorskip("scvi", reason="scvi-tools is not installed: make test-peers", exc_type=ModuleNotFoundError)

from scvi.distributions import NegativeBinomial

from tests.peers.test_scvi_counts import MAKE, problem
from vae_fast.integrations import counts
from vae_fast.integrations import scvi as fast


@pytest.mark.parametrize("reduction", ["none", "sample"])
@pytest.mark.parametrize("kind", ["nb", "zinb"])
def test_one_theta_a_gene_gets_its_gradient_once_and_at_its_own_size(kind, reduction, backend, monkeypatch):
    """Not one of every count, for autograd to add up: theirs broadcasts it before log_prob sees it."""
    x, params = problem(backend.device, dtype=torch.float64)
    gradients = []

    def loss():
        theta = params[1].exp()  # as SCVI has it
        theta.register_hook(gradients.append)
        made = MAKE[kind](params[0], theta, params[2])
        return (counts.summed_over_genes(made) if reduction == "sample" else made).log_prob(x).sum(-1).sum()

    (expected,) = torch.autograd.grad(loss(), params[1])
    shapes, original = [], counts.reconstruction_loss

    def recorded(output, *args, **options):
        shapes.append(tuple(output[1].shape))
        return original(output, *args, **options)

    monkeypatch.setattr(counts, "reconstruction_loss", recorded)
    with fast.patch():
        (ours,) = torch.autograd.grad(loss(), params[1])
    assert shapes == [(7,)]
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)
    assert [g.shape for g in gradients] == [(7,), (7,)]


def test_the_broadcast_theta_has_a_gradient_where_it_was_asked_for_before(backend):
    x, (mu, theta, _) = problem(backend.device)
    with fast.patch():
        px = NegativeBinomial(mu=mu, theta=theta)
        unused = px.log_prob(x).sum()
        with pytest.raises(RuntimeError, match="appears to not have been used"):
            torch.autograd.grad(unused, px.theta)
        px.theta.retain_grad()
        px.log_prob(x).sum().backward()
    torch.testing.assert_close(px.theta.grad.sum(0), theta.grad)
