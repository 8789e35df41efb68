"""Noise as a pure function of (seed, element index): the contract that all three rooms keep.

Element i takes number i % 4 of the four numbers made from Philox4x32-10 at key = (low, high word of the seed) and
counter = (low, high word of i // 4, stream, 0). Stream 0 is for latents, normals by Box-Muller; stream 1 for dynamic
binarisation, uniforms from the high 24 bits of each word.
"""

import operator

import numpy as np

# Multipliers and Weyl constants of Philox4x32: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox(counter, key):
    """Philox4x32-10: four random 32-bit words for each counter.

    counter: four 32-bit words, key: two; each word an integer or an array of them, and all broadcast together.
    Returns uint32 [..., 4].

    >>> [hex(word) for word in philox((0, 0, 0, 0), (0, 0))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3, k0, k1 = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in (*counter, *key)))
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2  # 32 x 32 bits: both halves of each product are used
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _LOW, (p0 >> _32) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def normals(words):
    """Box-Muller (1958): the words (u, v, u, v, ...) of the last axis, in pairs, to as many standard normals.

    u makes the radius, v the angle: its two high bits are the quadrant, centred on 0, pi/2, pi, 3 pi/2, and its low 30
    bits the place within. words: uint32 [..., 2 k]. Returns float64 of the same shape, in [-6.77, 6.77].
    """
    words = np.asarray(words, dtype=np.uint32)
    u, v = words[..., 0::2], words[..., 1::2]
    # Through float32, rounded to nearest, so that every implementation starts from the same number in (0, 1].
    uniform = np.maximum(u.astype(np.float32), np.float32(0.5)).astype(np.float64) / 2**32
    radius = np.sqrt(-2.0 * np.log(uniform))
    quadrant, place = v >> np.uint32(30), v & np.uint32(2**30 - 1)
    theta = np.pi / 2 * (quadrant.astype(np.float64) + (place.astype(np.float64) + 0.5) / 2**30 - 0.5)
    return np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=-1).reshape(words.shape)


def normal(seed, n, *, start=0, stream=0):
    """Elements start, ..., start + n - 1 of the noise of `seed`: float64 [n].

    seed: an int in [-2**63, 2**64), taken modulo 2**64. start, n: non-negative; an index goes up to 2**63 - 1.
    stream: an int below 2**32. Any window of the noise is the same numbers:

    >>> normal(0, 6).round(6).tolist()
    [0.047005, -1.354675, -0.777589, 0.095842, 0.019225, 0.236502]
    >>> normal(0, 3, start=3).round(6).tolist()
    [0.095842, 0.019225, 0.236502]
    """
    return _window(normals, seed, n, start, stream)


def uniform(seed, n, *, start=0, stream=1):
    """As `normal`, uniform in [0, 1): the high 24 bits of word i % 4, over 2^24. float32 holds them exactly.

    So u < p, for p of float32, is true with a probability of p to 2^-24, never for p = 0 and always for p = 1.

    >>> uniform(0, 3).round(6).tolist()
    [0.516679, 0.939658, 0.058987]
    """
    return _window(lambda words: (words >> np.uint32(8)).astype(np.float64) / 2**24, seed, n, start, stream)


def _window(numbers, seed, n, start, stream):
    """Elements start, ..., start + n - 1 of what `numbers` makes of the words of `seed`."""
    seed, n, start = operator.index(seed) % 2**64, operator.index(n), operator.index(start)
    first = start // 4
    index = np.uint64(first) + np.arange((start + n + 3) // 4 - first, dtype=np.uint64)
    words = philox((index & _LOW, index >> _32, stream, 0), (seed % 2**32, seed // 2**32))
    return numbers(words).reshape(-1)[start % 4 :][:n]
