"""The noise: a pure function of (seed, element index), made in registers wherever it is needed and never stored.

Philox4x32-10 (Salmon et al. 2011), key = the 64-bit seed, counter = (index // 4, stream, 0); Box-Muller (1958) on its
words for the latents, their high 24 bits for the targets. The whole contract is in `vae_fast.reference.noise`, which
says the same in NumPy.
"""

import triton
import triton.language as tl

LATENTS: tl.constexpr = tl.constexpr(0)  # stream of the latents' noise
TARGETS: tl.constexpr = tl.constexpr(1)  # stream of dynamic binarisation

_M0: tl.constexpr = tl.constexpr(0xD2511F53)
_M1: tl.constexpr = tl.constexpr(0xCD9E8D57)
_W0: tl.constexpr = tl.constexpr(0x9E3779B9)
_W1: tl.constexpr = tl.constexpr(0xBB67AE85)


@triton.jit
def philox(seed, counter, STREAM: tl.constexpr, WIDE: tl.constexpr):
    """The four 32-bit words of each counter. `counter` is below 2^32 unless WIDE."""
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    c0 = counter.to(tl.uint32)
    if WIDE:
        c1 = (counter >> 32).to(tl.uint32)
    else:
        c1 = c0 * 0
    c2 = c0 * 0 + STREAM
    c3 = c0 * 0
    for _ in tl.static_range(10):
        a = c0.to(tl.uint64) * _M0  # one 64-bit multiply gives both halves; `umulhi` and `*` would be two
        b = c2.to(tl.uint64) * _M1
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = b.to(tl.uint32)
        c3 = a.to(tl.uint32)
        k0 = k0 + _W0
        k1 = k1 + _W1
    return c0, c1, c2, c3


@triton.jit
def box_muller(u, v):
    """Two standard normals from two words: r cos(theta), r sin(theta).

    theta = (pi/2) (q + h) with the quadrant q in the two high bits of v and h in (-1/2, 1/2) from the other thirty, so
    that sine and cosine are short polynomials on [-pi/4, pi/4] (minimax, 3e-8) and the quadrant is two sign bits and a
    swap.
    """
    r = tl.sqrt(minus_2_log(tl.maximum(u.to(tl.float32), 0.5)))
    centred = ((v << 2) ^ 0x80000000).to(tl.int32, bitcast=True)
    h = centred.to(tl.float32) * 2.3283064365386963e-10 + 4.6566128730773926e-10  # 2^-32, 2^-31
    h2 = h * h
    sine = ((-4.6016579e-03 * h2 + 7.9680033e-02) * h2 - 6.4596346e-01) * h2 + 1.5707963
    sine = sine * h
    cosine = ((-2.0398582e-02 * h2 + 2.5359469e-01) * h2 - 1.2336967) * h2 + 1.0
    odd = (v & 0x40000000) != 0
    first = tl.where(odd, sine, cosine).to(tl.uint32, bitcast=True) ^ ((v ^ (v << 1)) & 0x80000000)
    second = tl.where(odd, cosine, sine).to(tl.uint32, bitcast=True) ^ (v & 0x80000000)
    return r * first.to(tl.float32, bitcast=True), r * second.to(tl.float32, bitcast=True)


@triton.jit
def minus_2_log(x):
    """-2 ln(x / 2^32) for x in [1/2, 2^32], to 2e-7 relative; 0 at 2^32.

    `tl.log` spends a quarter of its instructions on arguments that do not occur here. x / 2^32 = 2^k m with m in
    [sqrt(1/2), sqrt(2)); -2 ln(m) / (m - 1) is a minimax polynomial.
    """
    bits = x.to(tl.int32, bitcast=True)
    k = (bits - 0x4F3504F3) & -0x800000  # k 2^23; the constant is sqrt(1/2) 2^32
    f = (bits - k - 0x10000000).to(tl.float32, bitcast=True) - 1.0
    p = 0.2021379664 * f - 0.3244516081
    p = p * f + 0.3450165783
    p = p * f - 0.3980033107
    p = p * f + 0.4993981827
    p = p * f - 0.6667011788
    p = p * f + 1.0000073024
    p = p * f - 1.9999998906
    return p * f + k.to(tl.float32) * -1.6525916588782912e-07  # -2 ln(2) / 2^23


# Instructions per element on sm_90 (make audit), where one counter serves four elements: Philox and Box-Muller.
ISSUED = 35


@triton.jit
def normal_quads(seed, first, STREAM: tl.constexpr, WIDE: tl.constexpr):
    """Normals of the elements first, first + 1, first + 2, first + 3, for `first` [R, C] divisible by 4: [R, 4 C]."""
    u0, v0, u1, v1 = philox(seed, first >> 2, STREAM, WIDE)
    n0, n1 = box_muller(u0, v0)
    n2, n3 = box_muller(u1, v1)
    return _in_turn(n0, n1, n2, n3)


@triton.jit
def normal_lanes(seed, index, STREAM: tl.constexpr, WIDE: tl.constexpr):
    """Normals of any elements: each lane computes its whole counter and keeps one number of four."""
    u0, v0, u1, v1 = philox(seed, index >> 2, STREAM, WIDE)
    late = (index & 2) != 0
    first, second = box_muller(tl.where(late, u1, u0), tl.where(late, v1, v0))
    return tl.where((index & 1) != 0, second, first)


@triton.jit
def uniform(word):
    """The word's high 24 bits / 2^24: in [0, 1) and exact in float32, so u < p has probability p at 0 and 1 too."""
    return (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def uniform_quads(seed, first, STREAM: tl.constexpr, WIDE: tl.constexpr):
    """Uniforms of four elements a counter, as `normal_quads`."""
    w0, w1, w2, w3 = philox(seed, first >> 2, STREAM, WIDE)
    return _in_turn(uniform(w0), uniform(w1), uniform(w2), uniform(w3))


@triton.jit
def uniform_lanes(seed, index, STREAM: tl.constexpr, WIDE: tl.constexpr):
    """Uniforms of any elements, as `normal_lanes`."""
    w0, w1, w2, w3 = philox(seed, index >> 2, STREAM, WIDE)
    odd = (index & 1) != 0
    return uniform(tl.where((index & 2) != 0, tl.where(odd, w3, w2), tl.where(odd, w1, w0)))


@triton.jit
def _in_turn(n0, n1, n2, n3):
    """[R, C] of each as [R, 4 C]: n0, n1, n2, n3, n0, ..."""
    quads = tl.join(tl.join(n0, n2), tl.join(n1, n3))  # [..., a, b] holds number 2 a + b
    return tl.reshape(quads, (n0.shape[0], 4 * n0.shape[1]))
