"""Cuts tensors along the batch, so that the passes over a block find in the core's cache what the last one wrote there.

Over whole tensors each pass would go to main memory, which takes 2 to 5 times as long from 512 x 784 up.
"""

from itertools import repeat

import torch

BLOCK = 131072  # elements for each thread


def blocks(tensors, times=1):
    """The tensors [B, ...] as a list of tuples of views of some samples each; None, [1, ...] and 0-d ones go into each.

    times: as many elements as this times `BLOCK`.
    """
    first, size = tensors[0], int(times * BLOCK)
    if first.device.type != "cpu" or first.numel() <= size:
        return [tensors]
    samples = max(size * torch.get_num_threads() * first.shape[0] // first.numel(), 1)
    wanted = -(-first.shape[0] // samples)
    cut = first.chunk(wanted)  # half of split's time, and sometimes a piece less than wanted
    cuts = (repeat(t, len(cut)) if t is None or not t.dim() or len(t) == 1 else t.chunk(wanted) for t in tensors[1:])
    return list(zip(cut, *cuts, strict=True))
