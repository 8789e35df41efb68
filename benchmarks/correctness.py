"""The gate: no speed is reported for a result that does not match the float64 reference.

The reference is the formula that users write, in float64, or for a likelihood the NumPy reference, on the same inputs
and the same noise. That is first the noise of the contract, which the fused op makes from a seed; then what a contender
draws for itself, read back from its sample. As when it is timed, a fused op has been called before.
"""

import copy
import math

import torch
from torch import nn

from vae_fast.benchmarks import peers, steps
from vae_fast.benchmarks.formulas import OPS
from vae_fast.eager import noise

SEED = 2**40 + 1
CHUNK = 2**23  # elements that the reference takes at a time: float64 and autograd take many times the inputs' memory

# Largest error of each result over the largest magnitude in it. Float32 formulas err by 1e-6 here; a bfloat16 result
# is rounded to 4e-3, and a formula of several bfloat16 steps several times.
ALLOWED = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
ALLOWED_IN_STEP = 1e-4
ALLOWED_IN_TF32 = 1e-1  # of a step that was compiled with it: gradients of eager ones err by 6e-2
WARM_UP = 3  # calls of a kind after which its launches are played: as `ops.kinds` and then `kernels.launching` have it
SIGMAS = 6  # of the mean and the variance of drawn noise


class Wrong(Exception):
    """A contender's result does not match the reference."""


def draw_noise(case, device):
    """(seed, eps in float32): the same noise in both spellings; two Nones where the op has none."""
    shape = OPS[case.op].latents(case)
    if shape is None:
        return None, None
    seed = torch.full((1,), SEED, dtype=torch.int64, device=device)
    return seed, noise.normal(seed, torch.empty(shape, device=device))


def check_op(case, contender, function, inputs, eps_and_seed) -> float:
    """The largest relative error of the outputs and gradients. Raises Wrong if it is more than allowed."""
    seed, eps = eps_and_seed
    given = seed if contender.fused else eps if eps is None else eps.to(case.dtype)
    for _ in range(WARM_UP if contender.fused else 0):
        _call(function, inputs, given)
    _poison(inputs)
    errors = _Errors()
    _compare_with_reference(case, errors, inputs, eps, *_call(function, inputs, given))
    errors.check(ALLOWED[case.dtype])
    if eps is not None:
        outputs, gradients = _call(function, inputs, None)
        drawn = OPS[case.op].drawn(inputs.leaves, outputs)
        _check_noise(drawn, ALLOWED[case.dtype])
        _compare_with_reference(case, errors, inputs, drawn, outputs, gradients)
    return errors.check(ALLOWED[case.dtype])


def _call(function, inputs, noise):
    """(outputs, gradients)"""
    outputs = function(inputs.leaves, inputs.target, noise)
    gradients = torch.autograd.grad(outputs, inputs.leaves, upstream_for(outputs, inputs))
    return [o.detach() for o in outputs], gradients


def _check_noise(eps, rounding):
    """Raise Wrong where it is not that of a standard normal, as far as so many numbers tell."""
    for what, actual, wanted, spread in (("mean", eps.mean(), 0, 1), ("mean square", eps.square().mean(), 1, 2)):
        if not abs(actual.item() - wanted) <= SIGMAS * (spread / eps.numel()) ** 0.5 + rounding:
            raise Wrong(f"wrong: the noise that it drew has a {what} of {actual.item():.3f}, expected {wanted}")


def check_step(case, contender, device) -> float:
    """The same of one training step: its loss, and the gradient of every weight."""
    if contender.mode or device.type != "cuda":
        return _check_step(case, contender, device)
    # TF32, which convolutions on a GPU take unless told otherwise, would hide an error of the loss. (Code compiled
    # without it could be taken up again when the step is timed.)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return _check_step(case, contender, device)


def _check_step(case, contender, device):
    x, kind = steps.draw_batch(case, device), steps.STEPS[case.op]
    model = kind.quieten(steps.build_model(case.op, device))
    step = contender.step(case.op, model, x)
    before = copy.deepcopy(model)  # a capture has taken steps of its own; their gradients are not copied
    peers.switch(kind.project, contender.fused)
    loss = step(x)
    peers.switch(kind.project, False)
    right = before.double()
    value = kind.exact(right, x.double())
    value.backward()
    errors = _Errors()
    errors.add("loss", loss, value.detach())
    pairs = {
        name: (_present(name, parameter.grad), reference.grad)
        for (name, parameter), reference in zip(model.named_parameters(), right.parameters())
        if reference.grad is not None
    }
    if kind.project:  # taken together: that of a bias before batch normalisation is 0, and all of it rounding
        pairs = {"the weights": [torch.cat([g.flatten() for g in grads]) for grads in zip(*pairs.values())]}
    for name, (ours, reference) in pairs.items():
        errors.add(f"gradient of {name}", ours, reference)
    return errors.check(ALLOWED_IN_TF32 if _takes_tf32(model, device) else ALLOWED_IN_STEP)


def _takes_tf32(model, device):
    is_convolutional = any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules())
    return device.type == "cuda" and is_convolutional and torch.backends.cudnn.allow_tf32


def upstream_for(outputs, inputs):
    """The upstream gradients in the outputs' own dtypes: a kl may be float32 or bfloat16."""
    return tuple(None if u is None else u.to(o.dtype) for u, o in zip(inputs.upstream, outputs))


def _present(name, gradient):
    if gradient is None:
        raise Wrong(f"wrong: {name} got no gradient")
    return gradient


def _compare_with_reference(case, errors, inputs, eps, outputs, gradients):
    """Chunk by chunk of the batch, over which every op is separable; scalar outputs are added up."""
    op, batch = OPS[case.op], case.shape[0]
    rows = max(CHUNK // max(case.elements // batch, 1), 1)
    scalars = [0.0] * len(outputs)
    for start in range(0, batch, rows):
        part = slice(start, min(start + rows, batch))
        weight = (part.stop - part.start) / batch if op.averages else 1.0
        leaves = [leaf[part].detach().double().requires_grad_() for leaf in inputs.leaves]
        target = None if inputs.target is None else inputs.target[part].double()
        right = (op.oracle or op.eager)(leaves, target, None if eps is None else eps[part].double())
        upstream = [o.new_tensor(weight) if u is None else u[part].double() for o, u in zip(right, inputs.upstream)]
        for number, (actual, reference) in enumerate(zip(outputs, right)):
            if reference.dim():
                errors.add(f"output {number}", actual[part], reference.detach())
            else:
                scalars[number] += weight * reference.item()
        for number, reference in enumerate(torch.autograd.grad(right, leaves, upstream)):
            errors.add(f"gradient {number}", gradients[number][part], reference)
    for number, (actual, upstream) in enumerate(zip(outputs, inputs.upstream)):
        if upstream is None:
            errors.add(f"output {number}", actual, torch.tensor(scalars[number], device=actual.device))


def _poison(inputs):
    """Fill memory that is about to be used again with NaN: what a kernel forgets to write must not look right."""
    poison = [torch.full_like(t, math.nan) for t in (*inputs.leaves, *inputs.leaves)]
    del poison


class _Errors:
    """Largest difference and largest magnitude of each named result, over all its chunks."""

    def __init__(self):
        self.largest: dict[str, torch.Tensor] = {}

    def add(self, name, actual, reference):
        if actual.shape != reference.shape:
            raise Wrong(f"wrong: {name} has shape {list(actual.shape)}, the reference's is {list(reference.shape)}")
        pair = torch.stack(((actual.double() - reference).abs().max(), reference.abs().max())).cpu()
        before = self.largest.get(name)
        self.largest[name] = pair if before is None else torch.maximum(pair, before)  # NaN stays NaN

    def check(self, allowed: float) -> float:
        """The largest relative error; raises Wrong if one is more than allowed, or not a number."""
        relative = {name: float(pair[0] / pair[1]) for name, pair in self.largest.items()}
        for name, error in relative.items():
            if not error <= allowed:
                raise Wrong(f"wrong: {name} is off by {error:.1e} of its largest value, allowed {allowed:.0e}")
        return max(relative.values())
