"""The noise contract: Philox against published vectors and a slow oracle, then the statistics of the normals."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vae_fast.reference import noise

pytestmark = pytest.mark.filterwarnings("error")

# philox4x32-10 of Random123's kat_vectors: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
WORDS = st.integers(0, 2**32 - 1)
SEEDS = st.integers(-(2**63), 2**64 - 1)
STARTS = st.one_of(
    st.integers(0, 20),
    st.integers(2**34 - 20, 2**34 + 20),  # the counter's high word takes its first carry
    st.integers(0, 2**63 - 100),
)


def slow_philox(counter, key):
    """Philox4x32-10 in Python integers, as the paper's round function reads."""
    left, right = [counter[1], counter[3]], [counter[0], counter[2]]
    for turn in range(10):
        k0 = (key[0] + turn * 0x9E3779B9) % 2**32
        k1 = (key[1] + turn * 0xBB67AE85) % 2**32
        high0, low0 = divmod(right[0] * 0xD2511F53, 2**32)
        high1, low1 = divmod(right[1] * 0xCD9E8D57, 2**32)
        left, right = [low1, low0], [high1 ^ left[0] ^ k0, high0 ^ left[1] ^ k1]
    return right[0], left[0], right[1], left[1]


def nearest_float32(u):
    """A non-negative integer rounded to 24 significant bits, ties to even, in integers alone."""
    ulp = 2 ** max(u.bit_length() - 24, 0)
    down, rest = divmod(u, ulp)
    return (down + (2 * rest > ulp or (2 * rest == ulp and down % 2 == 1))) * ulp


def slow_normal(seed, i, stream):
    """Element i of the contract, one at a time."""
    seed %= 2**64
    words = slow_philox((i // 4 % 2**32, i // 4 >> 32, stream, 0), (seed % 2**32, seed >> 32))
    u, v = words[i % 4 // 2 * 2], words[i % 4 // 2 * 2 + 1]
    radius = math.sqrt(-2 * math.log(max(nearest_float32(u), 0.5) / 2**32))
    theta = math.pi / 2 * ((v >> 30) + ((v & 0x3FFFFFFF) + 0.5) / 2**30 - 0.5)
    return radius * (math.sin(theta) if i % 2 else math.cos(theta))


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter, key, expected):
    assert tuple(noise.philox(counter, key).tolist()) == expected
    assert slow_philox(counter, key) == expected


@given(st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), min_size=1, max_size=5), WORDS, WORDS)
@settings(max_examples=100, deadline=None)
def test_philox_equals_the_slow_oracle(counters, k0, k1):
    words = noise.philox(np.array(counters, dtype=np.uint64).T, (k0, k1))
    assert words.dtype == np.uint32
    assert [tuple(row) for row in words.tolist()] == [slow_philox(counter, (k0, k1)) for counter in counters]


@given(SEEDS, STARTS, st.integers(0, 9), WORDS)
@settings(max_examples=200, deadline=None)
@example(-1, 2**63 - 9, 9, 1)  # the last elements there are
def test_normal_equals_the_slow_oracle(seed, start, n, stream):
    z = noise.normal(seed, n, start=start, stream=stream)
    expected = [slow_normal(seed, start + j, stream) for j in range(n)]
    assert z.dtype == np.float64
    np.testing.assert_allclose(z, expected, rtol=0, atol=1e-14)


@given(SEEDS, STARTS, st.integers(0, 30), st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_any_window_holds_the_same_numbers(seed, start, k, n):
    whole = noise.normal(seed, k + n, start=start)
    np.testing.assert_array_equal(whole[k:], noise.normal(seed, n, start=start + k))
    np.testing.assert_array_equal(whole[:k], noise.normal(seed, k, start=start))


@given(st.integers(-(2**63), -1))
@settings(max_examples=20, deadline=None)
def test_a_negative_seed_is_taken_modulo_2_to_64(seed):
    np.testing.assert_array_equal(noise.normal(seed, 8), noise.normal(seed + 2**64, 8))


def test_a_seed_may_be_a_numpy_integer_and_not_a_float():
    np.testing.assert_array_equal(noise.normal(np.int64(-5), 8), noise.normal(-5, 8))
    with pytest.raises(TypeError):
        noise.normal(1.5, 8)


@pytest.mark.parametrize(
    ("u", "uniform"),
    [
        (0, 2.0**-33),  # a half, not zero: the largest radius
        (1, 2.0**-32),
        (2**24 + 1, 2.0**-8),  # a tie, to even: down
        (2**24 + 3, (2**24 + 4) / 2**32),  # a tie, to even: up
        (2**32 - 1, 1.0),  # rounds up to 2^32: radius 0
    ],
)
def test_u_is_rounded_to_the_nearest_float32(u, uniform):
    for quadrant in range(4):
        z = noise.normals([u, quadrant * 2**30 + 2**29])  # the middle of a quadrant, less half a step: on an axis
        radius = math.sqrt(-2 * math.log(uniform))
        axis = [(1, 0), (0, 1), (-1, 0), (0, -1)][quadrant]
        np.testing.assert_allclose(z, np.multiply(axis, radius), rtol=0, atol=1e-8)


def test_the_largest_normal_is_as_documented():
    v = [quadrant * 2**30 + 2**29 for quadrant in range(4)]
    z = noise.normals(np.stack([np.zeros(4), v], axis=-1))
    assert 6.76 < np.abs(z).max() <= 6.77


@pytest.mark.parametrize(("seed", "start", "stream"), [(0, 0, 0), (-1, 2**34 - 1001, 0), (123456789, 7, 1)])
def test_the_normals_are_standard_and_independent(seed, start, stream):
    n = 2**18
    z = noise.normal(seed, n, start=start, stream=stream)
    assert np.abs(z).max() <= 6.77
    # Means of z, z^2, z^3, z^4 within 5 standard errors; Var z^k = E z^2k - (E z^k)^2.
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((z**power).mean() - mean) < 5 * math.sqrt(variance / n), power
    for bound in (2.0, 3.0, 4.0):
        for count in (np.sum(z > bound), np.sum(z < -bound)):
            expected = n * scipy.stats.norm.sf(bound)
            assert abs(count - expected) < 5 * math.sqrt(expected), bound
    assert scipy.stats.kstest(z, "norm").pvalue > 1e-4
    for lane in range(4):
        assert scipy.stats.kstest(z[lane::4], "norm").pvalue > 1e-4, lane
    for values in (z, (z**2 - 1) / math.sqrt(2)):
        for lag in (1, 2, 3, 4, 8):
            assert abs(np.mean(values[lag:] * values[:-lag])) < 5 / math.sqrt(n), lag


def test_no_word_is_drawn_twice():
    blocks = np.arange(100_000, dtype=np.uint64)
    words = noise.philox((blocks, 0, 0, 0), (7, 0))
    pairs = words.astype(np.uint64).reshape(-1, 2)
    assert (
        np.unique(pairs[:, 0] << np.uint64(32) | pairs[:, 1]).size == pairs.shape[0]
    )  # one of these makes two normals
    # On a grid of 2^32, n words have about n^2 / 2^33 collisions: 18.6 here, with a standard deviation of 4.3.
    assert 2 <= words.size - np.unique(words).size <= 40


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2},
        {"seed": 1 + 2**32},  # only the key's high word differs
        {"stream": 1},
        {"start": 2**34},  # only the counter's high word differs
    ],
)
def test_another_seed_stream_or_place_is_other_noise(other):
    n = 100_000
    z = noise.normal(1, n)
    w = noise.normal(**{"seed": 1, "n": n, **other})
    assert abs(np.mean(z * w)) < 5 / math.sqrt(n)
    assert np.intersect1d(z, w).size <= 3


@given(SEEDS, STARTS)
def test_uniforms_are_the_high_bits_of_the_words(seed, start):
    made = noise.uniform(seed, 6, start=start)
    for place, value in enumerate(made, start):
        words = slow_philox((place // 4 % 2**32, place // 4 >> 32, 1, 0), (seed % 2**32, seed % 2**64 >> 32))
        assert value == (words[place % 4] >> 8) / 2**24
    assert np.array_equal(made, made.astype(np.float32))


def test_uniforms_are_uniform_and_not_the_latents_words():
    numbers = noise.uniform(0, 100_000)
    assert scipy.stats.kstest(numbers, "uniform").pvalue > 1e-3
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert not np.isclose(numbers[:100], noise.uniform(0, 100, stream=0)).any()
