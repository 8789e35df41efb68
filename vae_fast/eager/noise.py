"""The noise contract in PyTorch: the numbers that the kernels make, on any device (see `vae_fast.reference.noise`)."""

import math

import torch

from vae_fast.eager.elementary import select

LATENTS = 0  # stream of the latents' noise
TARGETS = 1  # stream of dynamic binarisation

_MASK = 0xFFFFFFFF


def philox(seed, counter, stream):
    """The four 32-bit words of each counter, in int64. seed: int64 [1]; counter: int64 [n]."""
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    c0, c1 = counter & _MASK, (counter >> 32) & _MASK
    c2, c3 = torch.full_like(counter, stream), torch.zeros_like(counter)
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # wraps mod 2^64: both halves are right
        c0, c2 = ((b >> 32) & _MASK) ^ c1 ^ k0, ((a >> 32) & _MASK) ^ c3 ^ k1
        c1, c3 = b & _MASK, a & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def box_muller(u, v):
    """Two float32 normals from two words: r cos(theta), r sin(theta), theta = (pi/2) (quadrant + h)."""
    r = (u.to(torch.float32).clamp_(min=0.5) * 2.0**-32).log_().mul_(-2).sqrt_()
    h = ((v & 0x3FFFFFFF) - 0x20000000).to(torch.float32).mul_(2.0**-30).add_(2.0**-31)
    sine, cosine = torch.sin(h * (math.pi / 2)), torch.cos(h * (math.pi / 2))
    quadrant = v >> 30
    odd = (quadrant & 1).bool()
    first, second = select(odd, sine, cosine), select(odd, cosine, sine)
    first_sign = 1 - ((quadrant + 1) & 2)
    second_sign = 1 - (quadrant & 2)
    return r * first * first_sign, r * second * second_sign


def normal(seed, like):
    """Float32 normals for the elements of a sample of `like`: element i is the i-th of the sample's memory."""
    words = _words(seed, like, LATENTS)
    return _placed([*box_muller(*words[:2]), *box_muller(*words[2:])], like)


def uniform(seed, like):
    """Float32 uniforms in [0, 1), exact, for the elements of a sample of `like`: a word's high 24 bits / 2^24."""
    return _placed([(word >> 8).to(torch.float32).mul_(2.0**-24) for word in _words(seed, like, TARGETS)], like)


def _words(seed, like, stream):
    return philox(seed, torch.arange((like.numel() + 3) // 4, device=like.device), stream)


def _placed(numbers, like):
    """Four tensors whose numbers go in turn to the elements of a sample of `like`."""
    numbers = torch.stack(numbers, dim=1).flatten()
    return numbers.as_strided(like.shape, torch.empty_like(like, device="meta").stride())
