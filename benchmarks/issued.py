"""The instructions that a launch may issue per element, from the numbers `ISSUED...` beside the kernels."""

from vae_fast.kernels import (
    categorical,
    latent_backward,
    latent_forward,
    likelihoods,
    shared,
    targets,
    tiling,
    upstreams,
)


def issued_limit(launch, operands):
    """Instructions per element on sm_90 in a layout that allows wide accesses; None where there is no number.

    operands: (tensor, strides) of the tensors that have an element for each lane. float64 has no number: it is there
    for checking gradients. Nor have the sums of partial sums, a thousandth of the work, and samples of an eps that is
    given. A likelihood without a number may issue none, so the audit fails and says how many it issues.
    """
    sizes = [tensor.element_size() for tensor, _ in operands]
    if launch.name not in LIMITS or max(sizes) > 4:
        return None
    number = LIMITS[launch.name](launch.arguments)
    if number is None:
        return None
    widths = {"half": sizes.count(2), "mixed": len(set(sizes)) > 1}
    return number + _layout(launch.arguments) + _sum(tiling.ISSUED, widths)


def _forward(arguments):
    _, _, prior, _, z, eps, _ = arguments["operands"]
    kl = None if arguments["REDUCTION"] is None else arguments["KL"]
    return _latent(latent_forward, arguments, z is not None, eps, kl, prior is not None, {})


def _backward(arguments):
    _, _, prior, _, grad_z, grad_kl, eps, _, _, grad_prior, _ = arguments["operands"]
    kl = None if grad_kl is None else arguments["KL"]
    drawn = grad_z is not None or kl == "monte_carlo"
    more = {"gradient of the prior": grad_prior is not None}
    return _latent(latent_backward, arguments, drawn, eps, kl, kl is not None and prior is not None, more)


def _latent(kernel, arguments, drawn, eps, kl, prior, more):
    """kl: None for none."""
    if arguments["MANY"] and drawn and eps is not None:
        return None  # the compiler unrolls so short a loop, or not: what the code issues is not what an element does
    scale = arguments["SCALE"] + (
        " with epsilon" if arguments["SCALE"] == "soft_clamp" and arguments["EPSILON"] else ""
    )
    wanted = {
        "tensors": True,
        "sample": drawn,
        "noise": drawn and eps is None,
        "prior": prior,
        "clamp": arguments["LOW"] is not None,
        "samples": arguments["MANY"] and drawn,
        **more,
    }
    of_kl = 0 if kl is None else kernel.ISSUED[kl]
    return _sum(kernel.ISSUED, wanted) + of_kl + (1 + prior) * kernel.ISSUED_SCALES[scale][kl]


def _reconstruct(arguments):
    number = likelihoods.ISSUED.get(arguments["LIKELIHOOD"].__name__, likelihoods.Issued(0, 0, 0, 0))
    summed = arguments["partials"] is not None
    more = _sum(targets.ISSUED, _target(arguments)) + _sum(shared.ISSUED, _shared(arguments))
    if summed and arguments["weight"] is not None:
        more += max(number.each - number.sum, 0)  # a logarithm for each element
    if all(grad is None for grad in arguments["grads"]):
        return more + (number.sum if summed else number.each)
    return more + (number.both if summed else number.gradient)


def _target(arguments):
    """What is done to the target beside its likelihood."""
    read = [operand[0] for operand in (arguments["target"], arguments["weight"]) if operand is not None]
    return {
        "integers": sum(not tensor.is_floating_point() for tensor in read),
        "scale": arguments["SCALED"],
        "binarize": arguments["seed"] is not None,
        "weight": len(read) == 2,
        "weight of rows": arguments["WEIGHT"] == "latent" and arguments["AXES"] != "columns",
    }


def _shared(arguments):
    """The gradients of shared parameters, of each kind."""
    made = [spread for spread, group in zip(arguments["SPREADS"], arguments["GROUPS"], strict=True) if group]
    whole = made.count("sum")
    kind = "dimensions" if len(arguments["shape"]) > 1 else "columns"
    first, name = arguments["parameters"][0][0], arguments["LIKELIHOOD"].__name__
    few = likelihoods.portion(name, first.dtype, arguments["weight"] is not None) > 1  # elements in a thread
    if kind == "columns" and few and first.element_size() == 2:
        kind = "columns of one row"
    return {"one number": whole, kind: len(made) - whole}


def _categorical(arguments):
    number = categorical.ISSUED_PASSES if arguments["PASSES"] else categorical.ISSUED
    of_row = max(arguments["COLUMNS"] // 32, 16 // arguments["logits"][0].element_size())  # that a thread has
    element = categorical.ISSUED_ELEMENT / min(of_row, categorical.ELEMENTS_PER_THREAD)
    if arguments["PACKED"]:
        number, element = categorical.ISSUED_PACKED, categorical.ISSUED_PACKED_ROW / arguments["COLUMNS"]
    if arguments["upstream"] is not None:
        return element + number.gradient
    if arguments["grad"] is not None:
        return element + number.both
    return element + (number.each if arguments["loss"] is not None else number.sum)


def _scale(arguments):
    number = upstreams.ISSUED_SCALE_WIDE if arguments["WIDE"] else upstreams.ISSUED_SCALE
    return number * len(arguments["grads"])


LIMITS = {
    "_forward": _forward,
    "_backward": _backward,
    "_reconstruct": _reconstruct,
    "_categorical": _categorical,
    "_scale": _scale,
}


def _layout(arguments):
    """What the layout adds."""
    rows = arguments.get("AXES", "columns") != "columns" or arguments.get("REDUCTION") == "latent"
    parts = {"rows": rows, "dimension": len(arguments.get("shape", " ")) - 1, "wide": arguments["WIDE"]}
    return _sum(tiling.ISSUED, parts)


def _sum(numbers, wanted):
    """The numbers of what is wanted, each as often as it is."""
    return sum(numbers[part] * times for part, times in wanted.items())
