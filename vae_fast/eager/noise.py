"""The noise contract in PyTorch: the numbers that the kernels make, on any device (see `vae_fast.reference.noise`)."""

import math

import torch

from vae_fast.eager.blocks import blocks
from vae_fast.eager.elementary import number

LATENTS = 0  # stream of the latents' noise
TARGETS = 1  # stream of dynamic binarisation

AT_ONCE = 1 / 8  # counters, of a block's elements: the words of so many stay in a core's cache
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85


def philox(seed, counter, stream):
    """The four 32-bit words of each counter, in int64: the first and third [2, n], the second and fourth [2, n].

    seed: int64 [1]; counter: int64 [n].
    """
    low, half = number(0xFFFFFFFF, torch.int64), number(32, torch.int64)
    rounds = torch.arange(10, device=seed.device)
    weyl = torch.stack([rounds * step for step in _WEYL], 1)
    keys = (torch.cat((seed, seed >> half)) + weyl).unsqueeze(-1).unbind()  # of which the low 32 bits count
    multipliers = torch.stack([torch.full_like(seed, m) for m in reversed(_MULTIPLIERS)])
    even = torch.stack((counter, torch.full_like(counter, stream))).bitwise_and_(low)
    odd = torch.stack((counter >> half, torch.zeros_like(counter)))
    for key in keys:
        products = even.flip(0).mul_(multipliers)  # wrap mod 2^64: both halves are right
        even = (products >> half).bitwise_xor_(odd).bitwise_xor_(key).bitwise_and_(low)
        odd = products  # of which the low 32 bits count
    return even, odd.bitwise_and_(low)


def box_muller(u, v):
    """Two float32 normals from two words: r cos(theta), r sin(theta), theta = (pi/2) (quadrant + h)."""
    radius = u.to(torch.float32).clamp_(min=0.5).mul_(number(2.0**-32, torch.float32)).log_()
    radius = radius.mul_(number(-2.0, torch.float32)).sqrt_()
    # v is quadrant 2^30 + place, and h = (place + 1/2) / 2^30 - 1/2; float64 holds all digits of the whole angle.
    theta = v.to(torch.float64).mul_(number(math.pi * 2.0**-31, torch.float64))
    theta.add_(number(math.pi * (2.0**-32 - 0.25), torch.float64))
    return torch.cos(theta).to(torch.float32).mul_(radius), theta.sin_().to(torch.float32).mul_(radius)


def normal(seed, like):
    """Float32 normals for the elements of a sample of `like`: element i is the i-th of the sample's memory."""
    return _drawn(box_muller, seed, like, LATENTS)


def uniform(seed, like):
    """Float32 uniforms in [0, 1), exact, for the elements of a sample of `like`: a word's high 24 bits / 2^24."""
    return _drawn(_fractions, seed, like, TARGETS)


def _fractions(*words):
    return [(word >> 8).to(torch.float32).mul_(2.0**-24) for word in words]


def _drawn(numbers, seed, like, stream):
    """What `numbers` makes of pairs of words, in turn for the elements of a sample of `like`."""
    counter = torch.arange((like.numel() + 3) // 4, device=like.device)
    pairs = [torch.stack(numbers(*philox(seed, some, stream)), -1) for (some,) in blocks((counter,), AT_ONCE)]
    flat = torch.cat([pair.transpose(0, 1).flatten() for pair in pairs])
    return flat.as_strided(like.shape, torch.empty_like(like, device="meta").stride())
