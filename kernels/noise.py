"""The noise: a pure function of (seed, element index), made in registers wherever it is needed and never stored.

Philox4x32-10 (Salmon et al. 2011), key = the 64-bit seed, counter = (index // 4, stream, 0); Box-Muller (1958) on its
words for the latents, their high 24 bits for the targets. The whole contract is in `vae_fast.reference.noise`, which
says the same in NumPy.
"""

import triton
import triton.language as tl

from vae_fast.kernels import tiling

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
    that sine and cosine are short polynomials on [-pi/4, pi/4] (minimax, 3e-8). The high bit of q turns by pi, which is
    the sign of r; the low one by pi/2.
    """
    odd = (v & 0x40000000) != 0
    r = tl.sqrt(minus_2_log(tl.maximum(u.to(tl.float32), 0.5)))
    r = (r.to(tl.uint32, bitcast=True) ^ (v & 0x80000000)).to(tl.float32, bitcast=True)
    # h 2^32 is (thirty bits - 2^29 + 1/2) 2^2: one shift and sum
    h = ((v << 2) + 0x80000002).to(tl.int32, bitcast=True).to(tl.float32) * 2.3283064365386963e-10  # 2^-32
    h2 = h * h
    sine = ((-4.6016579e-03 * h2 + 7.9680033e-02) * h2 - 6.4596346e-01) * h2 + 1.5707963
    sine = sine * h
    cosine = ((-2.0398582e-02 * h2 + 2.5359469e-01) * h2 - 1.2336967) * h2 + 1.0
    return r * tl.where(odd, -1.0 * sine, cosine), r * tl.where(odd, cosine, sine)


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
ISSUED = 31


def way(view, strides, element_size, repeated=False):
    """How the noise of a view is drawn whose elements have positions of these strides, rows first.

    "quads": four columns, from a multiple of 4 on, have one counter. "octs": eight have two in turn; they are the
    columns of one 16-byte access, so that no number goes to another thread through shared memory. "unaligned": four
    columns have positions in turn, from any on. "lanes": each column draws for itself. repeated: there are several
    samples, one behind the other.
    """
    if strides[1:2] != (1,):
        return "lanes"
    run, in_turn = view.shape[0], len(view.shape) == 1
    if run % 4 == 0 or (in_turn and run > 2 and view.rows == 1 and not repeated):
        return "octs" if element_size == 2 and (run % 8 == 0 or (in_turn and run > 4)) else "quads"
    return "unaligned" if in_turn and run > 2 else "lanes"


@triton.jit
def draw(
    seed, row, column, first_column, shape, positions, more,
    WAY: tl.constexpr, STREAM: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The numbers of a tile [R, C] whose elements have their positions `more` behind those of `tiling.offset`.

    Standard normals of the stream LATENTS, and uniforms in [0, 1) of TARGETS. WAY: see `way`.
    """
    if WAY == "lanes":
        return _lane(seed, tiling.offset(row, column, shape, positions) + more, STREAM, WIDE)
    elif WAY == "octs":
        octs = first_column + 8 * tl.arange(0, COLUMNS // 8)[None, :]
        counter = (tiling.offset(row, octs, shape, positions) + more) >> 2
        n, m = _quad(seed, counter, STREAM, WIDE), _quad(seed, counter + 1, STREAM, WIDE)
        even = tl.join(tl.join(n[0], m[0]), tl.join(n[2], m[2]))
        odd = tl.join(tl.join(n[1], m[1]), tl.join(n[3], m[3]))
        return tl.reshape(tl.join(even, odd), (n[0].shape[0], COLUMNS))  # [..., a, b, c] holds number 4 a + 2 b + c
    else:
        quads = first_column + 4 * tl.arange(0, COLUMNS // 4)[None, :]
        first = tiling.offset(row, quads, shape, positions) + more
        if WAY == "quads":
            n = _quad(seed, first >> 2, STREAM, WIDE)
        else:
            n = _unaligned_quad(seed, first, STREAM, WIDE)
        return tl.reshape(tl.join(tl.join(n[0], n[2]), tl.join(n[1], n[3])), (n[0].shape[0], COLUMNS))


@triton.jit
def _lane(seed, index, STREAM: tl.constexpr, WIDE: tl.constexpr):
    """The number of each index: a whole counter, of which one is kept."""
    w0, w1, w2, w3 = philox(seed, index >> 2, STREAM, WIDE)
    late = (index & 2) != 0
    first, second = _pair(tl.where(late, w2, w0), tl.where(late, w3, w1), STREAM)
    return tl.where((index & 1) != 0, second, first)


@triton.jit
def _quad(seed, counter, STREAM: tl.constexpr, WIDE: tl.constexpr):
    """The four numbers of a counter."""
    w0, w1, w2, w3 = philox(seed, counter, STREAM, WIDE)
    n0, n1 = _pair(w0, w1, STREAM)
    n2, n3 = _pair(w2, w3, STREAM)
    return n0, n1, n2, n3


@triton.jit
def _unaligned_quad(seed, first, STREAM: tl.constexpr, WIDE: tl.constexpr):
    """The numbers first, ..., first + 3, which are of two counters and of three pairs of their words."""
    w0, w1, w2, w3 = philox(seed, first >> 2, STREAM, WIDE)
    w4, w5, w6, w7 = philox(seed, (first >> 2) + 1, STREAM, WIDE)
    late = (first & 2) != 0
    n0, n1 = _pair(tl.where(late, w2, w0), tl.where(late, w3, w1), STREAM)
    n2, n3 = _pair(tl.where(late, w4, w2), tl.where(late, w5, w3), STREAM)
    n4, _ = _pair(tl.where(late, w6, w4), tl.where(late, w7, w5), STREAM)
    odd = (first & 1) != 0
    return tl.where(odd, n1, n0), tl.where(odd, n2, n1), tl.where(odd, n3, n2), tl.where(odd, n4, n3)


@triton.jit
def _pair(u, v, STREAM: tl.constexpr):
    if STREAM == LATENTS:
        return box_muller(u, v)
    else:
        return _uniform(u), _uniform(v)


@triton.jit
def _uniform(word):
    """The word's high 24 bits / 2^24: in [0, 1) and exact in float32, so u < p has probability p at 0 and 1 too."""
    return (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08
