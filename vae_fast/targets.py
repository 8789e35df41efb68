"""What may be done to a target beside its likelihood: scaled, weighted, sampled. Checks the arguments."""

import torch

from vae_fast import checks, seeds
from vae_fast.eager import targets as eager

PIXELS = ("[0, 1]", "real")  # domains of likelihoods under which bytes are pixels


def scale(value, target, row):
    """What the target is multiplied by: by default 1, and 1/255 for bytes that are pixels."""
    if value is not None:
        return checks.number("target_scale", value)
    return 1 / 255 if target.dtype == torch.uint8 and row.domain in PIXELS else 1.0


def weight(value, target):
    """The weight expanded to the target's shape, or None."""
    if value is None:
        return None
    checks.is_tensor("weight", value)
    if value.dtype not in (torch.bool, *checks.FLOATS):
        raise TypeError(f"weight is {checks.dtype_name(value.dtype)}: expected bool, {checks.FLOAT_NAMES}")
    checks.is_dense("weight", value)
    checks.same_device("weight", value, "target", target)
    checks.no_grad("weight", value)
    shape, value = target.shape, _of_samples(value, target.shape)
    # Two comparisons, for torch.compile, in this order: as in `checks`.
    if value.dim() != len(shape) or any(a != b and a != 1 for a, b in zip(value.shape, shape, strict=True)):
        raise ValueError(
            f"weight has shape {list(value.shape)}, target has {list(shape)}: expected [{shape[0]}], one a sample, or "
            f"{len(shape)} dimensions, each 1 or the target's"
        )
    return value.expand(shape)


def spread(weight, shape):
    """A weight of which it is known that it is good, expanded to the target's shape."""
    return _of_samples(weight, shape).expand(shape)


def _of_samples(weight, shape):
    """One of a number a sample, [B], as [B, 1, ...]."""
    if weight.dim() == 1 and len(shape) > 1 and weight.shape[0] == shape[0]:
        return weight.view(-1, *(1 for _ in shape[1:]))
    return weight


def sample(binarize, seed, generator, target, scale, row, backend):
    """(target, seed or None, scale): with `binarize` a seed to sample the target by, or the sampled target itself."""
    if binarize is False and seed is None and generator is None:  # nearly always: microseconds count
        return target, None, scale
    check_binarize(binarize, row)
    checks.one_source(seed=seed, generator=generator)
    if not binarize:
        for name, value in (("seed", seed), ("generator", generator)):
            if value is not None:
                raise ValueError(f"{name} was given without binarize=True: nothing is drawn")
    if seed is not None or backend == "triton":
        return target, seeds.of(seed, generator, "target", target), scale
    if generator is not None:
        checks.generator(generator, "target", target)
    # On the eager path Philox costs more than the loss at small sizes: the sample is drawn, and kept for backward.
    grey = eager.read(target, scale, torch.float32)
    # Left out, not None: beside that argument torch.compile takes no symbolic shape.
    given = {} if generator is None else {"generator": generator}
    u = torch.rand(grey.shape, **given, dtype=grey.dtype, device=grey.device)
    return eager.binary(u, grey), None, 1.0


def check_binarize(value, row):
    checks.boolean("binarize", value)
    if value and row.name != "bernoulli":
        raise ValueError(f"binarize is True: expected likelihood 'bernoulli', it is {row.name!r}")
