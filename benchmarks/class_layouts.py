"""Layouts of logits whose last dimension is classes, for which the launcher of that kernel chooses another tile."""

import torch


def _images(dtype, count):
    return [torch.zeros(4, 256, 8, 8, dtype=dtype).movedim(1, -1) for _ in range(count)]


CLASS_LAYOUTS = {
    "32768 classes": lambda dtype, count: [torch.zeros(2, 32768, dtype=dtype) for _ in range(count)],  # read in passes
    "classes second": _images,  # as a convolution gives them: the elements of an image are contiguous
    "10 classes": lambda dtype, count: [torch.zeros(512, 10, dtype=dtype) for _ in range(count)],  # rows are packed
}
