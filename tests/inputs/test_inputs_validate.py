"""validate=True: values out of a likelihood's domain are named; by default nobody looks."""

import re

import pytest
import torch

from vae_fast import Categorical, elbo_loss, reconstruction_loss
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.validation import RULES, TARGETS

ONES = torch.ones(2, 3)


def changed(value, dtype=torch.float32):
    """Ones, but for `value` at [1, 2]."""
    tensor = torch.ones(2, 3, dtype=dtype)
    tensor[1, 2] = value
    return tensor


# likelihood, output, target, what is said
BAD = [
    ("bernoulli", ONES, changed(1.5), r"target is 1.5 at [1, 2]: expected values that are in [0, 1]"),
    ("bernoulli", ONES, changed(float("nan")), r"target is nan at [1, 2]: expected values that are in [0, 1]"),
    ("bernoulli", changed(float("inf")), ONES, r"output is inf at [1, 2]: expected values that are finite"),
    ("bernoulli_probs", changed(-0.25), ONES, r"output is -0.25 at [1, 2]: expected values that are in [0, 1]"),
    ("mse", ONES, changed(float("inf")), r"target is inf at [1, 2]: expected values that are finite"),
    ("poisson", ONES, changed(-1), r"target is -1 at [1, 2]: expected values that are whole numbers >= 0"),
    ("poisson", ONES, changed(0.5), r"target is 0.5 at [1, 2]: expected values that are whole numbers >= 0"),
    ("poisson", ONES, changed(-3, torch.int32), r"target is -3 at [1, 2]: expected values that are whole numbers >= 0"),
    ("negative_binomial", (changed(-0.5), ONES), ONES,
     r"output's mean is -0.5 at [1, 2]: expected values that are >= 0 and finite"),
    ("poisson", ONES, changed(float("inf")), r"target is inf at [1, 2]: expected values that are whole numbers >= 0"),
    ("negative_binomial", (changed(float("inf")), ONES), ONES,
     r"output's mean is inf at [1, 2]: expected values that are >= 0 and finite"),
    ("negative_binomial", (ONES, changed(float("inf"))), ONES,
     r"output's theta is inf at [1, 2]: expected values that are > 0 and finite"),
    ("negative_binomial", (ONES, torch.tensor([1.0, 0.0, 1.0])), ONES,
     r"output's theta is 0 at [0, 1]: expected values that are > 0 and finite"),
    ("negative_binomial", (ONES, changed(0)), ONES,
     r"output's theta is 0 at [1, 2]: expected values that are > 0 and finite"),
    ("gaussian", (changed(-9), changed(float("nan"))), ONES,
     r"output's logvar is nan at [1, 2]: expected values that are finite"),
]  # fmt: skip


@pytest.mark.parametrize(("likelihood", "output", "target", "message"), BAD)
def test_the_first_offender_is_named(likelihood, output, target, message):
    kl = torch.zeros(2)
    for call in (
        lambda **options: reconstruction_loss(output, target, likelihood, **options),
        lambda **options: elbo_loss(output, target, kl, likelihood=likelihood, **options),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call(validate=True)
        call()


def test_what_is_masked_is_not_looked_at():
    mask = changed(0).bool()
    target = changed(float("nan"))
    assert reconstruction_loss(ONES, target, "poisson", weight=mask, validate=True).isfinite()


def test_a_scale_counts():
    counts = torch.full((2, 3), 255, dtype=torch.int32)
    assert reconstruction_loss(ONES, counts, target_scale=1 / 255, validate=True).isfinite()
    message = "target * 0.01 is 2.55 at [0, 0]: expected values that are in [0, 1]"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        reconstruction_loss(ONES, counts, target_scale=0.01, validate=True)


def test_classes():
    target = torch.tensor([[0, -1], [2, 3]])
    logits = torch.zeros(2, 2, 3)
    for likelihood, message in (
        ("categorical", "target is -1 at [0, 1]: expected class indices in [0, 3)"),
        (Categorical(ignore_index=-1), "target is 3 at [1, 1]: expected class indices in [0, 3)"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            reconstruction_loss(logits, target, likelihood, validate=True)
    mask = torch.tensor([[True, False], [True, False]])
    assert reconstruction_loss(logits, target, "categorical", weight=mask, validate=True).isfinite()
    with pytest.raises(ValueError, match="^target_scale was given for a categorical likelihood, which takes none$"):
        reconstruction_loss(logits, target.clamp(0, 2), "categorical", target_scale=1.0)
    with pytest.raises(ValueError, match="^binarize was given for a categorical likelihood, which takes none$"):
        elbo_loss(logits, target.clamp(0, 2), torch.zeros(2), likelihood="categorical", binarize=True)


@pytest.mark.parametrize(("dtype", "classes"), [(torch.uint8, 256), (torch.int8, 200)], ids=str)
def test_more_classes_than_a_narrow_dtype_counts(dtype, classes):
    """Compared with them the number of classes would be wrapped: 256 to 0, 200 to -56."""
    target = torch.tensor([0, torch.iinfo(dtype).max], dtype=dtype)
    assert reconstruction_loss(torch.zeros(2, classes), target, "categorical", validate=True).isfinite()


@pytest.mark.parametrize(("dtype", "index", "value"), [(torch.uint8, -100, 156), (torch.int8, 251, -5)], ids=str)
def test_what_is_left_out_is_not_wrapped_to_a_narrow_dtype(dtype, index, value):
    target = torch.tensor([0, value], dtype=dtype)
    message = f"target is {value} at [1]: expected class indices in [0, 3)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        reconstruction_loss(torch.zeros(2, 3), target, Categorical(ignore_index=index), validate=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_of_classes(value):
    """Of elements that count; -inf is a class that is left out."""
    logits, target, mask = torch.zeros(2, 2, 3), torch.tensor([[0, 2], [0, 1]]), torch.tensor([[True], [False]])
    logits[0, 0, 1] = -float("inf")
    logits[1, 1, 2] = value
    message = f"output is {value} at [1, 1, 2]: expected values that are finite or -inf"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        reconstruction_loss(logits.requires_grad_(), target, "categorical", validate=True)
    assert reconstruction_loss(logits, target, "categorical", weight=mask, validate=True).isfinite()
    assert reconstruction_loss(logits, target, Categorical(ignore_index=1), validate=True).isfinite()


def test_every_domain_has_a_rule():
    assert {row.domain for row in LIKELIHOODS.values()} <= {*TARGETS, "classes"}
    assert set(TARGETS.values()) <= set(RULES)


@pytest.mark.parametrize("value", ["no", -1, float("nan"), torch.tensor([True, False]), None], ids=repr)
def test_it_is_a_bool(value):
    classes = torch.zeros(2, dtype=torch.int64)
    for output, target, likelihood in ((ONES, ONES, "mse"), (ONES, classes, "categorical")):
        with pytest.raises(TypeError, match=rf"^validate is {type(value).__name__}: expected a bool$"):
            reconstruction_loss(output, target, likelihood, validate=value)


def test_bools_may_be_counts():
    mask = torch.tensor([[True, False]])
    assert reconstruction_loss(torch.zeros(1, 2), mask, "poisson", validate=True).isfinite()
