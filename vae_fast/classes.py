"""Classes: the likelihood that has a parameter of its own, and what it asks of its target."""

from dataclasses import dataclass

import torch

from vae_fast import checks, targets, validation

DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class Categorical:
    """The likelihood of a class, an index into the last dimension of the logits (Bishop 2006, equation 4.108).

    ignore_index: elements with this target contribute nothing, neither to the loss nor to the gradient, and their
    logits may be anything. None: every element counts, as with the name "categorical".

    Raises:
        TypeError, ValueError: ignore_index is neither None nor an int of 64 bits.

    >>> target = torch.tensor([2, -100])
    >>> reconstruction_loss(torch.zeros(2, 3), target, Categorical(ignore_index=-100), reduction="none")
    tensor([1.0986, 0.0000])
    """

    ignore_index: int | None = None
    name = "categorical"

    def __post_init__(self):
        index = self.ignore_index
        if index is None:
            return
        index = checks.integer("ignore_index", index, "an int or None")
        if not -(2**63) <= index < 2**63:
            raise ValueError(f"ignore_index is {index}: expected an int in [-2^63, 2^63)")
        object.__setattr__(self, "ignore_index", index)

    @property
    def constants(self) -> tuple[int, ...]:
        return () if self.ignore_index is None else (self.ignore_index,)


def fit(target, logits):
    """Whether `check` is content with two dense tensors, of which `logits` is not empty."""
    return target.dtype in DTYPES and logits.dim() > 1 and target.shape == logits.shape[:-1]


def check(target, logits):
    """Raise unless `target` has one class index for each vector of logits. Their values are not read."""
    checks.is_tensor("target", target)
    if target.dtype not in DTYPES:
        dtype = checks.dtype_name(target.dtype)
        raise TypeError(f"target is {dtype}: expected int64, int32, int16, int8 or uint8 class indices")
    checks.is_dense("target", target)
    if logits.dim() < 2 or not logits.shape[-1]:
        raise ValueError(f"output has shape {list(logits.shape)}: expected [B, ..., K] with K of 1 or more classes")
    if target.shape != logits.shape[:-1]:
        shape, wanted = list(target.shape), list(logits.shape[:-1])
        raise ValueError(
            f"target has shape {shape}, output has {list(logits.shape)}: expected {wanted}, all but the classes"
        )


def prepare(target, logits, row, target_scale, weight, noise, validate):
    """The weight expanded to the target's shape, or None. Raises for any other option of a target: classes take none.

    noise: (binarize, seed, generator). validate: look for values out of the domain, too.
    """
    binarize, seed, generator = noise
    checks.boolean("validate", validate)
    checks.boolean("binarize", binarize)
    refused = {"target_scale": target_scale, "seed": seed, "generator": generator, "binarize": binarize or None}
    for name, value in refused.items():
        if value is not None:
            raise ValueError(f"{name} was given for a categorical likelihood, which takes none")
    weight = targets.weight(weight, target)
    if validate:
        _validate(target, logits, row.constants, weight)
    return weight


def _validate(target, logits, left_out, weight):
    """Raise ValueError for the first logit that is NaN or inf, or index that is no class; waits for the device.

    What is left out, or has a weight of 0, does not count.
    """
    target = target.long()  # a narrower dtype would wrap the numbers that it is compared with: 256 to 0, -100 to 156
    counts = torch.ones_like(target, dtype=torch.bool) if weight is None else weight != 0
    for index in left_out:
        counts &= target != index
    validation.require("output", logits, "finite or -inf", counts.unsqueeze(-1))
    bad = counts & ((target < 0) | (target >= logits.shape[-1]))
    validation.refuse("target", target, bad, f"class indices in [0, {logits.shape[-1]})")
