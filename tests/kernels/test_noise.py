"""The noise's device functions and the eager ones alone, against the reference: words bit by bit, normals to 2e-6."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from tests.support.tolerance import NOISE, assert_noise_close
from vae_fast.eager import blocks
from vae_fast.eager import noise as eager_noise
from vae_fast.kernels import noise
from vae_fast.kernels.tiling import View
from vae_fast.reference import noise as reference

PIECE = int(4 * eager_noise.AT_ONCE * blocks.BLOCK)  # elements that the eager path makes at once, on one thread
LARGEST = np.sqrt(66 * np.log(2))  # sqrt(-2 ln 2^-33), of the word 0

SEEDS = [
    0,
    1,
    -1,  # all ones
    2**32,  # the high word alone
    2**63 + 5,  # negative as int64
    0x243F6A8885A308D3,  # pi
]

STARTS = [
    (0, False),
    (2**31 - 8192, False),  # the largest index that 32-bit arithmetic sees
    (2**31 - 64, True),  # indices pass 2^31: the sign bit of 32-bit numbers
    (2**32 - 64, True),  # indices pass 2^32
    (2**34 - 64, True),  # counters pass 2^32: the carry into their high word
    (2**62, True),
]

# Words where something changes: both ends, the quadrants' borders, float32's rounding (2^24, 2^25, halfway cases).
WORDS = [0, 1, 2, 3, 2**24 - 1, 2**24 + 1, 2**25 + 2, 2**25 + 3, 2**32 - 128, 2**32 - 129, 2**32 - 2, 2**32 - 1] + [
    (quadrant * 2**30 + step) % 2**32 for quadrant in range(4) for step in (-1, 0, 1, 2**29 - 1, 2**29, 2**29 + 1)
]


@triton.jit
def _box_muller(u, v, out, size, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    words_u = tl.load(u + at, mask=at < size, other=0).to(tl.uint32, bitcast=True)
    words_v = tl.load(v + at, mask=at < size, other=0).to(tl.uint32, bitcast=True)
    first, second = noise.box_muller(words_u, words_v)
    tl.store(out + 2 * at, first, mask=at < size)
    tl.store(out + 2 * at + 1, second, mask=at < size)


@triton.jit
def _philox(seed, start, out, STREAM: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    counter = at + start
    if WIDE:
        counter = at.to(tl.int64) + start
    words = noise.philox(tl.load(seed), counter, STREAM, WIDE)
    for k in tl.static_range(4):
        tl.store(out + 4 * at + k, words[k].to(tl.int32, bitcast=True))


@triton.jit
def _draw(
    seed, start, out, shape, positions,
    STREAM: tl.constexpr, WAY: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The numbers of a row of a tensor, from position `start` on; a start below 2^31 is a 32-bit number."""
    first = tl.program_id(0) * 0
    if WIDE:
        first = first.to(tl.int64)
    at = first + tl.arange(0, TILE)[None, :]
    row = first + tl.arange(0, 1)[:, None]
    numbers = noise.draw(tl.load(seed), row, at, first, shape, positions, start, WAY, STREAM, TILE, WIDE)
    tl.store(out + at, numbers)


def seed_tensor(seed, device):
    return torch.tensor([(seed + 2**63) % 2**64 - 2**63], dtype=torch.int64, device=device)


def drawn(way, seed, start, wide, device, size=256, stream=0):
    out = torch.empty(size, device=device)
    run = (size,), (0, 1)  # as `tiling.View` and its strides have it
    _draw[(1,)](seed_tensor(seed, device), start, out, *run, STREAM=stream, WAY=way, WIDE=wide, TILE=size)
    return out


def as_words(values, device):
    return torch.from_numpy(np.array(values, dtype=np.uint32).view(np.int32)).to(device)


def pairs_of_words():
    u, v = np.meshgrid(WORDS, WORDS)
    return u.ravel(), v.ravel()


def test_box_muller_at_edge_words(kernels_device):
    u, v = pairs_of_words()
    out = torch.empty(len(u), 2, device=kernels_device)
    _box_muller[(1,)](as_words(u, kernels_device), as_words(v, kernels_device), out, len(u), TILE=2048)
    assert_noise_close(out, reference.normals(np.stack([u, v], axis=-1)))
    assert out.abs().max().item() <= LARGEST + NOISE


def words_of_every_size():
    """Both sides of each power of two and of sqrt(1/2) of it, and 4096 words between."""
    borders = [int(scale * 2.0**k) + step for k in range(33) for scale in (1, 0.5**0.5) for step in (-1, 0, 1)]
    between = np.geomspace(1, 2**32 - 1, 4096).astype(np.int64)
    return np.unique(np.clip([*borders, *between], 0, 2**32 - 1))


def test_the_radius_over_its_whole_range(kernels_device):
    u = words_of_every_size()
    for v in (2**29, 2**28, 3 * 2**30):
        out = torch.empty(len(u), 2, device=kernels_device)
        words = as_words(u, kernels_device), as_words(np.full(len(u), v), kernels_device)
        _box_muller[(1,)](*words, out, len(u), TILE=8192)
        assert_noise_close(out, reference.normals(np.stack([u, np.full(len(u), v)], axis=-1)))


def test_eager_box_muller_at_edge_words():
    u, v = pairs_of_words()
    made = eager_noise.box_muller(torch.from_numpy(u.astype(np.int64)), torch.from_numpy(v.astype(np.int64)))
    assert_noise_close(torch.stack(made, dim=-1), reference.normals(np.stack([u, v], axis=-1)))


def test_box_muller_takes_each_quadrant_to_its_own_signs(kernels_device):
    v = np.array([quadrant * 2**30 + 2**29 for quadrant in range(4)])  # the middles: theta = 0, pi/2, pi, 3 pi/2
    out = torch.empty(4, 2, device=kernels_device)
    _box_muller[(1,)](as_words([0] * 4, kernels_device), as_words(v, kernels_device), out, 4, TILE=4)
    assert_noise_close(out, LARGEST * np.array([[1, 0], [0, 1], [-1, 0], [0, -1]]))


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_words_are_those_of_philox_bit_by_bit(seed, stream, kernels_device):
    for start, wide in ((0, False), (2**29 - 64, False), (2**32 - 64, True), (2**60, True)):
        out = torch.empty(128, 4, dtype=torch.int32, device=kernels_device)
        _philox[(1,)](seed_tensor(seed, kernels_device), start, out, STREAM=stream, WIDE=wide, TILE=128)
        assert (out.cpu().numpy().view(np.uint32) == reference_words(seed, start, 128, stream)).all()


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_eager_words_are_those_of_philox_bit_by_bit(seed, stream):
    for start in (0, 2**32 - 64, 2**60):
        (first, third), (second, fourth) = eager_noise.philox(
            seed_tensor(seed, "cpu"), start + torch.arange(128), stream
        )
        made = torch.stack((first, second, third, fourth), dim=-1)
        assert (made.numpy() == reference_words(seed, start, 128, stream)).all()


@pytest.mark.parametrize(
    ("device", "threads", "pieces"),
    [
        ("cpu", 1, 4),
        ("cpu", 2, 2),  # or one core would work for all
        ("meta", 1, 1),  # a GPU: each piece is some sixty launches
    ],
)
def test_eager_words_are_made_in_pieces_for_the_caches_of_the_cpus_cores(device, threads, pieces, monkeypatch):
    sizes, philox = [], eager_noise.philox
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(eager_noise, "philox", lambda *args: sizes.append(len(args[1])) or philox(*args))
    eager_noise.normal(seed_tensor(0, device), torch.empty(4 * PIECE, device=device))
    assert sizes == [PIECE // pieces] * pieces


def reference_words(seed, start, size, stream):
    counter = np.uint64(start) + np.arange(size, dtype=np.uint64)
    low = np.uint64(2**32 - 1)
    key = (seed % 2**32, seed % 2**64 // 2**32)
    return reference.philox((counter & low, counter >> np.uint64(32), stream, 0), key)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("start", "wide"), STARTS)
def test_normals(seed, start, wide, kernels_device):
    quads = drawn("quads", seed, start, wide, kernels_device)
    assert_noise_close(quads, reference.normal(seed, 256, start=start))
    for way in ("octs", "unaligned", "lanes"):
        assert torch.equal(quads, drawn(way, seed, start, wide, kernels_device))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("start", "wide"), STARTS)
def test_uniforms_are_equal_bit_by_bit(seed, start, wide, kernels_device):
    expected = reference.uniform(seed, 256, start=start)
    for way in ("octs", "quads", "unaligned", "lanes"):
        made = drawn(way, seed, start, wide, kernels_device, stream=1)
        assert np.array_equal(made.cpu().double().numpy(), expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 4, 5), (0, 4), (PIECE + 5,)])
def test_eager_uniforms_are_equal_bit_by_bit(shape, seed):
    made = eager_noise.uniform(seed_tensor(seed, "cpu"), torch.empty(shape))
    assert np.array_equal(made.flatten().double().numpy(), reference.uniform(seed, made.numel()))


@pytest.mark.parametrize("shift", [1, 2, 3])
@pytest.mark.parametrize(("start", "wide"), STARTS)
def test_a_row_may_begin_within_a_quad(start, wide, shift, kernels_device):
    at = start + shift
    for way in ("unaligned", "lanes"):
        assert_noise_close(drawn(way, 7, at, wide, kernels_device), reference.normal(7, 256, start=at))
        uniforms = drawn(way, 7, at, wide, kernels_device, stream=1).cpu().double().numpy()
        assert np.array_equal(uniforms, reference.uniform(7, 256, start=at))


@pytest.mark.parametrize(
    ("shape", "strides", "repeated", "ways"),  # of 4 and of 2 bytes
    [
        ((3, 8), (8, 1), False, ("quads", "octs")),
        ((3, 8), (8, 1), True, ("quads", "octs")),
        ((3, 12), (12, 1), False, ("quads", "octs")),  # an oct ends in the idle columns of its tile
        ((3, 4), (4, 1), False, ("quads", "quads")),  # a tile narrower than an oct
        ((1, 7), (7, 1), False, ("quads", "octs")),  # the whole tensor as one row
        ((1, 7), (7, 1), True, ("unaligned", "unaligned")),  # the next sample begins within a quad
        ((3, 7), (7, 1), False, ("unaligned", "unaligned")),
        ((3, 2), (2, 1), False, ("lanes", "lanes")),  # a tile narrower than a quad
        ((1, 1), (1, 1), False, ("lanes", "lanes")),
        ((8, 3), (1, 8), False, ("lanes", "lanes")),  # columns that lie apart
    ],
)
def test_how_the_noise_of_a_layout_is_drawn(shape, strides, repeated, ways):
    joint = View(*shape, shape[1:], (strides,), False)
    assert tuple(noise.way(joint, strides, size, repeated) for size in (4, 2)) == ways


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("run", "ways"), [(8, ("quads", "octs")), (12, ("quads", "quads")), (7, ("lanes", "lanes"))])
def test_how_the_noise_of_two_dimensions_of_columns_is_drawn(run, ways, rows):
    joint = View(rows, 5 * run, (run, 5), ((5 * run, 1, run),), False)
    assert tuple(noise.way(joint, joint.strides[0], size) for size in (4, 2)) == ways


@pytest.mark.parametrize("way", ["octs", "quads", "unaligned", "lanes"])
def test_64_bit_counters_give_the_numbers_of_32_bit_ones(way, kernels_device):
    narrow = drawn(way, 3, 2**30, False, kernels_device)
    assert torch.equal(narrow, drawn(way, 3, 2**30, True, kernels_device))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "shape",
    [
        (1,),  # one number of a quad
        (3, 5),  # quads run on from one row into the next
        (4, 8),  # whole quads
        (2, 3, 4, 5),
        (0, 4),  # nothing to draw
        (PIECE + 5,),  # words that are made in two pieces
    ],
)
def test_eager_normals(shape, seed):
    made = eager_noise.normal(seed_tensor(seed, "cpu"), torch.empty(shape))
    assert_noise_close(made.flatten(), reference.normal(seed, made.numel()))


@pytest.mark.parametrize("draw", [eager_noise.normal, eager_noise.uniform])
def test_eager_noise_is_on_the_device_of_the_sample(draw):
    seed, like = torch.zeros(1, dtype=torch.int64, device="meta"), torch.empty(2, 3, device="meta")
    made = draw(seed, like)
    assert (made.device, made.shape) == (like.device, like.shape)


def test_the_reference_is_what_an_independent_philox_gives():
    """Known answers of Random123 (Salmon et al. 2011): counters and keys of zeros, of ones and of the digits of pi."""
    ones = 2**32 - 1
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]
    for counter, key, words in (
        ((0,) * 4, (0,) * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ones,) * 4, (ones,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (pi[:4], pi[4:], "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ):
        assert " ".join(f"{word:08x}" for word in reference.philox(counter, key)) == words


def test_the_bound_on_the_noise_is_the_contract():
    assert NOISE == 2e-6
