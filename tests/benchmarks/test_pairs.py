"""Combinations in which every two options meet."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from vae_fast.benchmarks.pairs import covering

options = st.lists(st.integers(1, 5), min_size=2, max_size=5).map(lambda sizes: dict(enumerate(map(range, sizes))))


def pairs(chosen):
    return set(itertools.combinations(chosen.items(), 2))


def every_pair(options):
    for (a, first), (b, second) in itertools.combinations(options.items(), 2):
        yield from (((a, x), (b, y)) for x, y in itertools.product(first, second))


@settings(deadline=None)
@given(options)
def test_every_two_values_of_two_options_meet_in_few_combinations(options):
    found = covering(options)
    assert set().union(*map(pairs, found)) == set(every_pair(options))
    assert all(list(chosen) == list(options) for chosen in found)
    fewest = max(len(first) * len(second) for first, second in itertools.combinations(options.values(), 2))
    assert fewest <= len(found) <= 2 * fewest


@settings(deadline=None)
@given(options, st.data())
def test_what_is_not_allowed_does_not_occur_and_the_rest_does(options, data):
    """Forbidden pairs alone: whether a pair can be completed is then seen by trying all combinations."""
    forbidden = set(data.draw(st.lists(st.sampled_from(list(every_pair(options))), max_size=4)))

    def allowed(chosen):
        return not any(set(pair) <= set(chosen.items()) for pair in forbidden)

    found = covering(options, allowed)
    assert all(map(allowed, found))
    possible = [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]
    wanted = set().union(*(pairs(chosen) for chosen in possible if allowed(chosen)))
    assert set().union(*map(pairs, found)) == wanted


def test_the_same_list_each_time():
    options = {"dtype": ("float32", "bfloat16"), "layout": ("rows", "chunks", "primes"), "eps": (False, True)}
    assert covering(options) == covering(options)
    assert covering(options)[0] == {"dtype": "float32", "layout": "rows", "eps": False}
