"""Reductions against plain loops, and their adjoint against its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_fast.reference import reductions

pytestmark = pytest.mark.filterwarnings("error")

SHAPES = [
    (1,),  # the smallest
    (5,),  # one element a sample
    (3, 4),
    (2, 3, 2, 2),  # images
    (4, 0),  # samples without elements
]


def by_loops(values, reduction):
    """What `reduce` documents, one sample at a time."""
    if reduction == "none":
        return values
    samples = [float(np.sum(sample)) for sample in values]
    if reduction == "sample":
        return np.array(samples)
    if reduction == "latent":
        return sum(values[b] for b in range(len(values))) / len(values)
    divisor = {"sum": 1, "mean": values.size, "batchmean": len(values)}[reduction]
    return sum(samples) / divisor if divisor else np.nan


@pytest.mark.parametrize("reduction", reductions.REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_reduce_equals_loops(shape, reduction):
    values = np.random.default_rng(0).normal(size=shape)
    expected = by_loops(values, reduction)
    result = reductions.reduce(values, reduction)
    assert result.shape == np.shape(expected)
    np.testing.assert_allclose(result, expected, rtol=1e-14)


@given(
    st.sampled_from(reductions.REDUCTIONS),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_expand_is_the_adjoint_of_reduce(reduction, shape, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape)
    reduced = reductions.reduce(values, reduction)
    grad = rng.normal(size=reduced.shape)
    expanded = reductions.expand(grad, tuple(shape), reduction)
    assert expanded.shape == tuple(shape)
    np.testing.assert_allclose(np.sum(expanded * values), np.sum(grad * reduced), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("none", np.empty((0, 3))),
        ("sample", np.empty(0)),
        ("latent", np.full(3, np.nan)),
        ("sum", 0.0),
        ("mean", np.nan),
        ("batchmean", np.nan),
    ],
)
def test_an_empty_batch_sums_to_zero_and_averages_to_nan(reduction, expected):
    result = reductions.reduce(np.empty((0, 3)), reduction)
    assert result.shape == np.shape(expected)
    np.testing.assert_array_equal(result, expected)
    assert reductions.expand(np.ones(result.shape), (0, 3), reduction).shape == (0, 3)


def test_an_unknown_reduction_is_named():
    with pytest.raises(ValueError, match="reduction is 'average': expected one of none, sample"):
        reductions.reduce([1.0], "average")


@pytest.mark.parametrize(
    ("shape", "reduction"),
    [((), "none"), ((), "sample"), ((3,), "sample"), ((2,), "latent"), ((2,), "sum"), ((1,), "mean")],
)
def test_a_gradient_of_another_shape_is_refused_not_broadcast(shape, reduction):
    with pytest.raises(ValueError, match="grad has shape"):
        reductions.expand(np.ones(shape), (2, 3), reduction)
