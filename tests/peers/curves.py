"""The same training twice: as the project does it, and patched."""

import contextlib

import torch


def losses(make, step, patch=None, *, learning_rate, steps=100):
    """The loss of each step of Adam. make() gives a model; step(model, i) gives its loss."""
    with contextlib.nullcontext() if patch is None else patch():
        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        curve = []
        for i in range(steps):
            optimizer.zero_grad()
            loss = step(model, i)
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
    return torch.tensor(curve, dtype=torch.float64)


def assert_same_curves(make, step, patch, *, learning_rate=1e-3, relative=1e-5):
    """Equal over 100 steps, and a training that learns: equal constants would prove nothing."""
    theirs, ours = (losses(make, step, used, learning_rate=learning_rate) for used in (None, patch))
    assert theirs[-1] < 0.9 * theirs.max()
    worst = ((ours - theirs).abs() / theirs.abs()).max().item()
    assert worst <= relative, f"the curves differ by {worst:.2g}"
