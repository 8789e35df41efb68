"""How the tensors of the benchmarked calls lie in memory."""

import torch


# Each makes `count` tensors of one layout, with two full tiles or more, so that the path without masks is there.
def contiguous(*shape):
    return lambda dtype, count: [filled(dtype, *shape) for _ in range(count)]


def chunks(*shape, memory_format=torch.contiguous_format):
    """The parts of one tensor along dimension 1, each of `shape`."""

    def make(dtype, count):
        whole = filled(dtype, shape[0], count * shape[1], *shape[2:])
        return list(whole.to(memory_format=memory_format).chunk(count, 1))

    return make


def unaligned(*shape):
    """One element after an address that is a multiple of 16 bytes."""
    size = torch.Size(shape).numel()
    return lambda dtype, count: [filled(dtype, size + 1)[1:].view(shape) for _ in range(count)]


def mixed(*shape):
    """The last tensor is transposed against the others."""
    return lambda dtype, count: [
        *(filled(dtype, *shape) for _ in range(count - 1)),
        filled(dtype, *reversed(shape)).permute(*reversed(range(len(shape)))),
    ]


def classes_second(*shape):
    """Tensors of `shape`, their second dimension moved to the end."""
    return lambda dtype, count: [filled(dtype, *shape).movedim(1, -1) for _ in range(count)]


LAYOUTS = {
    "rows": contiguous(32, 256),
    "chunks": chunks(32, 256),
    "chunks of images": chunks(8, 4, 16, 16),
    "chunks of channels_last": chunks(8, 4, 16, 16, memory_format=torch.channels_last),  # latents of Stable Diffusion
    "chunks of 16 channels_last": chunks(2, 16, 16, 16, memory_format=torch.channels_last),  # of Flux
    "20 columns": contiguous(512, 20),  # latents of a small VAE: as rows no tile is full
    "long rows": contiguous(2, 8192),  # one sample takes several programs
    "784 columns": contiguous(12, 784),  # MNIST: as rows no tile is full
    "primes": contiguous(257, 31),
    "unaligned": unaligned(32, 256),
    "transposed": mixed(32, 256),
}
ORDINARY = "rows"
CLASS_LAYOUTS = {  # of logits, the classes last, for which the launcher of their kernel chooses another tile
    "32768 classes": contiguous(2, 32768),  # read in passes
    "50257 classes": contiguous(4, 50257),  # of which each row has edges of its own
    "1000 classes": contiguous(8, 1000),  # 16-byte accesses fit, and Triton does not see it
    "classes second": classes_second(4, 256, 8, 8),  # as a convolution gives them: the elements are contiguous
    "10 classes": contiguous(512, 10),  # rows are packed
}
MASKED = [(torch.float32, layout) for layout in ("784 columns", "primes", "transposed")]


def filled(dtype, *shape):
    return torch.full(shape, 0.5, dtype=dtype)
