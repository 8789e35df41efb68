"""Fills new tensors with NaN, so that an element which nobody wrote shows in a result."""

import contextlib

import torch


@contextlib.contextmanager
def poisoned():
    """torch.empty, empty_like, empty_strided and new_empty give NaN, the largest integer, or True.

    PyTorch does this itself, inside the allocating operators, under its deterministic mode. Nothing is replaced in
    Python, so compiled graphs, fake tensors and torch.func see the operators they know. Operators that have no
    deterministic version warn.
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = before[2]
