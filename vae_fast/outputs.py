"""What a decoder gives: the parameters of a likelihood."""

import torch

from vae_fast import checks, classes, seeds, targets, validation
from vae_fast.ops import backend, kinds


def check(value, target, row):
    """The likelihood's parameter tensors as a tuple, checked against the target.

    A parameter after the first keeps its shape where the ops sum its gradient themselves (see `_is_shared`). Otherwise
    it is expanded to the first's shape, and autograd sums the gradient of every element.
    """
    names, values = row.parameters, _as_tuple(value)
    if len(values) != len(names):
        wanted = f"the tuple ({', '.join(names)})" if len(names) > 1 else f"one tensor ({names[0]})"
        raise TypeError(f"output is {_describe(value)}: expected {wanted} for likelihood {row.name!r}")
    first_name = "output" if len(names) == 1 else f"output's {names[0]}"
    first = values[0]
    checks.is_float(first_name, first, names[0] if len(names) == 1 else "values")
    checks.has_batch(first_name, first)
    for name, tensor in zip(names[1:], values[1:], strict=True):
        checks.matches(f"output's {name}", tensor, first_name, first, expands=True)
    if row.domain == "classes":
        classes.check(target, first)
    else:
        checks.is_real("target", target)
        checks.same_shape("target", target, first_name, first)
    checks.same_device("target", target, first_name, first)
    checks.no_grad("target", target)
    return _expanded(values)


def prepare(params, target, row, target_scale, weight, noise, validate):
    """(params, target, weight, seed, scale, backend), as the reconstruction's ops take them.

    noise: (binarize, seed, generator). The rest as in `vae_fast.reconstruction_loss`.
    """
    checks.boolean("validate", validate)
    chosen = backend.choose(target)
    weight, scale = targets.weight(weight, target), targets.scale(target_scale, target, row)
    if validate:
        validation.check(params, target, scale, weight, row)
    target, seed, scale = targets.sample(*noise, target, scale, row, chosen)
    return row.with_constants(params), target, weight, seed, scale, chosen


def find(value, target, weight, others, row, reduction, target_scale, noise, validate):
    """(key, kind or None) of a loss, as `kinds.find`. others: more tensors, or None, such as the kl.

    The rest as in `prepare`.
    """
    if validate is not False:
        return None, None
    binarize, seed, generator = noise
    return kinds.find(
        (target, *_as_tuple(value), weight, seed if isinstance(seed, torch.Tensor) else None, *others),
        row.name, row.constants if row.domain == "classes" else None,  # others' are tensors to the ops
        reduction, target_scale, type(target_scale), binarize, type(binarize), seed is None, generator is None,
    )  # fmt: skip


def known(value, target, weight, row, noise):
    """(params, target, weight, seed) as the ops take them, of a kind that is known to be good."""
    params, (binarize, seed, generator) = _as_tuple(value), noise
    if len(params) > 1:
        params = _expanded(params)
    if row.constants and row.domain != "classes":
        params = row.with_constants(params)
    if weight is not None:
        weight = targets.spread(weight, target.shape)
    return params, target, weight, seeds.of(seed, generator, "target", target) if binarize else None


def _as_tuple(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _expanded(values):
    first = values[0]
    return tuple(
        t if checks.has_shape(t, first.shape) or _is_shared(t, first) else t.expand(first.shape) for t in values
    )


def _is_shared(tensor, first):
    """Whether it is one number for several elements, or one for each index of one dimension but the batch."""
    wide = [dim - tensor.dim() for dim, size in enumerate(tensor.shape) if size != 1]
    return tensor.numel() < first.numel() and (not wide or (len(wide) == 1 and wide[0] > -first.dim()))


def _describe(value):
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return "one tensor" if isinstance(value, torch.Tensor) else type(value).__name__
