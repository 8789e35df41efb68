"""The noise of a call: its seed, one int64 on the device, given by the user or drawn; or the numbers themselves."""

import torch

from vae_fast import checks
from vae_fast.eager.general import sampled_like
from vae_fast.eager.reductions import accumulator


def check_int(seed, what="an int"):
    """Raise unless `seed` is an int of 64 bits, signed or not; returns the signed one of the same bits."""
    value = checks.integer("seed", seed, what)
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"seed is {seed}: expected an int in [-2^63, 2^64)")
    return value - 2**64 if value >= 2**63 else value


def given(seed, name, like):
    """The seed of an int or a tensor, on the device of `like`, which errors call `name`."""
    if not isinstance(seed, torch.Tensor):
        signed = check_int(seed, "an int or an int64 tensor of one element")
        return torch.full((1,), signed, dtype=torch.int64, device=like.device)
    if seed.dtype != torch.int64:
        raise TypeError(f"seed is {checks.dtype_name(seed.dtype)}: expected int64")
    if seed.numel() != 1:
        raise ValueError(f"seed has shape {list(seed.shape)}: expected one element")
    checks.same_device("seed", seed, name, like)
    return seed.reshape(1)


def of(seed, generator, name, like):
    """The seed that is given, or one from the generator, or from torch's default one for the device."""
    if seed is not None:
        return given(seed, name, like)
    if generator is not None:
        checks.generator(generator, name, like)
    return torch.randint(2**63 - 1, (1,), generator=generator, device=like.device)


def noise(mu, num_samples, seed, generator, eps, chosen):
    """(seed tensor, None) or (None, eps)."""
    checks.one_source(seed=seed, generator=generator, eps=eps)
    if eps is not None:
        checks.eps(eps, mu.shape, mu, num_samples)
        return None, eps
    if seed is not None or chosen == "triton":
        return of(seed, generator, "mu", mu), None
    if generator is not None:
        checks.generator(generator, "mu", mu)
    # On the eager path Philox costs more than the whole loss at small sizes: eps is drawn, and kept for backward.
    dtype = accumulator(mu.dtype)
    if torch._C._are_functorch_transforms_active() or (generator is None and torch.compiler.is_compiling()):
        # Not normal_: AOTAutograd merges two calls of it on tensors alike, and vmap must make the tensor itself.
        shape = mu.shape if num_samples is None else (num_samples, *mu.shape)
        given = {} if generator is None else {"generator": generator}  # as in `targets.sample`
        return None, torch.randn(shape, **given, dtype=dtype, device=mu.device)
    return None, sampled_like(mu, num_samples, dtype).normal_(generator=generator)
