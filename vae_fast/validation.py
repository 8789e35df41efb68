"""Checks of values, on request: they read every element and wait for the device, which the losses never do alone."""

import math

import torch

# The rule of a parameter, by its name; a mean has one of its own only under a likelihood of counts.
PARAMETERS = {"probs": "in [0, 1]", "theta": "> 0 and finite"}
TARGETS = {"[0, 1]": "in [0, 1]", "counts": "whole numbers >= 0", "real": "finite"}

RULES = {
    "in [0, 1]": lambda t: (t >= 0) & (t <= 1),
    "> 0 and finite": lambda t: (t > 0) & t.isfinite(),
    ">= 0 and finite": lambda t: (t >= 0) & t.isfinite(),
    "whole numbers >= 0": lambda t: (t >= 0) & (t == t.floor()) & t.isfinite(),
    "finite": torch.isfinite,
    "finite or -inf": lambda t: t < math.inf,  # logits of classes, of which a mask leaves some out
}


def check(params, target, scale, weight, row):
    """Raise ValueError, naming the first offender, unless parameters and target are in the likelihood's domain.

    What has a weight of 0 does not count.
    """
    several = len(row.parameters) > 1
    for name, tensor in zip(row.parameters, params, strict=True):
        rule = ">= 0 and finite" if row.domain == "counts" and name == "mean" else PARAMETERS.get(name, "finite")
        require(f"output's {name}" if several else "output", tensor.detach().expand(target.shape), rule, weight)
    scaled = target if target.is_floating_point() else target.double()
    name, scaled = ("target", scaled) if scale == 1 else (f"target * {scale:.4g}", scaled * scale)
    require(name, scaled, TARGETS[row.domain], weight)


def require(name, tensor, rule, weight=None, whose=""):
    """Raise ValueError for the first element that breaks the rule, unless its weight is 0. whose: ends the message."""
    bad = ~RULES[rule](tensor)
    if weight is not None:
        bad &= weight != 0
    refuse(name, tensor, bad, f"values that are {rule}{whose}")


def refuse(name, tensor, bad, wanted):
    """Raise ValueError for the first element of the tensor that is `bad`, if one is."""
    if bad.any():
        place = bad.nonzero()[0].tolist()
        value = tensor[tuple(place)].item()
        shown = f"{value:g}" if isinstance(value, float) else value
        raise ValueError(f"{name} is {shown} at {place}: expected {wanted}")
