"""What is known of kinds of calls: how much of it is kept, that it keeps no tensor, and that threads may share it."""

import gc
import threading
import weakref

import pytest
import torch

from tests.ops.played import CALLS, likelihood, node, tensor
from vae_fast import elbo_loss, gaussian_kl, reconstruction_loss, reparameterize, sample_kl
from vae_fast.ops import kinds


def count(table):
    """The kinds that are kept."""
    return sum(map(len, table._rows.values()))


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_two_threads_go_backward_through_one_graph(name, device, monkeypatch):
    """The second comes while the first launches: neither scales the gradients that the other returns."""
    output, target = likelihood(device, name)
    for _ in range(CALLS):
        loss = reconstruction_loss(output, target, name)
        (wanted,) = torch.autograd.grad(2 * loss, output, retain_graph=True)
    loss, play, found = reconstruction_loss(output, target, name), kinds.Replay.play, []

    def backward():
        found.extend(torch.autograd.grad(2 * loss, output, retain_graph=True))

    def played(*call):
        monkeypatch.setattr(kinds.Replay, "play", play)
        second = threading.Thread(target=backward)
        second.start()
        second.join()
        return play(*call)

    monkeypatch.setattr(kinds.Replay, "play", played)
    backward()
    for made in found:
        torch.testing.assert_close(made, wanted)
    assert len(found) == 2


def test_kinds_are_forgotten_before_they_fill_the_memory(device, monkeypatch):
    monkeypatch.setattr(kinds, "MOST", 2)
    monkeypatch.setattr(kinds, "_kinds", kinds.Table())
    for size in (1, 2, 3, 4, 4, 4):
        output = torch.full((1, size), 2.0, device=device, requires_grad=True)
        assert reconstruction_loss(output, torch.zeros_like(output), "mse").item() == 4 * size
        assert count(kinds._kinds) <= 2


def test_layouts_are_forgotten_before_they_fill_the_memory(device, monkeypatch):
    """The oldest first: those of the last calls, as many as are kept, are played."""
    monkeypatch.setattr(kinds, "MOST_ALIKE", 2)
    monkeypatch.setattr(kinds, "_kinds", kinds.Table())
    nodes = []
    for width in (3, 4, 5, 6, 5, 6, 3, 6):
        output = torch.full((2, width), 2.0, device=device)[:, :3].requires_grad_()
        loss = reconstruction_loss(output, torch.zeros_like(output), "mse", reduction="mean")
        assert loss.item() == 4
        assert count(kinds._kinds) <= 2
        nodes.append(node(loss))
    assert nodes == [*["OrdinaryBackward"] * 4, *["_PlayedBackward"] * 2, "OrdinaryBackward", "_PlayedBackward"]


def test_one_tensor_given_twice_pushes_out_no_kind(device, monkeypatch):
    """A kind of it would never be found again, and each call would keep one more in the row of those that are."""
    monkeypatch.setattr(kinds, "MOST_ALIKE", 2)
    monkeypatch.setattr(kinds, "_kinds", kinds.Table())
    mu, logvar = tensor(device, 4, 5), tensor(device, 4, 5, seed=2)
    gaussian_kl(mu, logvar)
    for _ in range(2):
        assert node(gaussian_kl(mu, mu)) == "OrdinaryBackward"
    assert count(kinds._kinds) == 1
    assert node(gaussian_kl(mu, logvar)) == "_PlayedBackward"


def test_layouts_of_gradients_are_forgotten_before_they_fill_the_memory(device, monkeypatch):
    monkeypatch.setattr(kinds, "MOST_ALIKE", 2)
    monkeypatch.setattr(kinds, "_kinds", kinds.Table())
    mu, logvar = tensor(device, 4, 5), tensor(device, 4, 5, seed=2)
    for width in (5, 6, 7, 8, 8, 8):
        z = reparameterize(mu, logvar, seed=1)
        torch.autograd.grad(z, logvar, torch.ones(4, width, device=device)[:, :5])
    (((_, kind),),) = kinds._kinds._rows.values()
    assert 0 < count(kind._backward._table) <= 2


def test_a_kind_keeps_no_tensor(device):
    def call():
        output, weight = tensor(device, 3, 11), torch.ones(3, device=device)
        prior = torch.zeros(3, 11, device=device), torch.zeros(11, device=device)
        made = (
            reconstruction_loss(output, torch.ones_like(output), weight=weight),
            elbo_loss(output, torch.ones_like(output), output.sum(1), beta=torch.ones((), device=device)).total,
            *sample_kl(output, output * 2, prior=prior, eps=torch.ones_like(output)),
        )
        sum(t.sum() for t in made).backward()
        return [weakref.ref(t) for t in (output, weight, *prior, *made)]

    gc.disable()
    try:
        assert not any(kept() is not None for _ in range(CALLS) for kept in call())
    finally:
        gc.enable()
