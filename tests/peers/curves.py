"""The same training twice: as the project does it, and patched."""

import contextlib

import torch


def assert_same_curves(make, step, patch, *, learning_rate=1e-3, relative=1e-5):
    """The losses of 100 steps of Adam are equal, with make() the model and step(model, i) its loss.

    It must learn: equal constants would prove nothing. And only the patched one may, and must, go through our ops.
    """
    (theirs, nodes), (ours, our_nodes) = (_train(make, step, used, learning_rate) for used in (None, patch))
    assert not any(map(_is_ours, nodes))
    assert any(map(_is_ours, our_nodes))
    assert theirs[-1] < 0.9 * theirs.max()
    worst = ((ours - theirs).abs() / theirs.abs()).max().item()
    assert worst <= relative, f"the curves differ by {worst:.2g}"


def _train(make, step, patch, learning_rate):
    """The loss of each step, and the nodes of the last one's graph."""
    with contextlib.nullcontext() if patch is None else patch():
        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        curve = []
        for i in range(100):
            optimizer.zero_grad()
            loss = step(model, i)
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
    return torch.tensor(curve, dtype=torch.float64), _nodes(loss.grad_fn)


def _nodes(root):
    """Every node of an autograd graph."""
    found, left = set(), [root]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [following for following, _ in node.next_functions]
    return found


def goes_through_ours(tensor):
    """Whether one of our Functions is in its graph."""
    return any(map(_is_ours, _nodes(tensor.grad_fn)))


def _is_ours(node):
    function = getattr(type(node), "_forward_cls", None)  # the Function of a node written in Python
    return function is not None and function.__module__.startswith("vae_fast.")
