"""The noise of a call: its seed, one int64 on the device, given by the user or drawn; or the numbers themselves."""

import torch

from vae_fast import checks
from vae_fast.eager.general import sampled_like
from vae_fast.eager.reductions import accumulator


def given(seed, name, like):
    """The seed of an int or a tensor, on the device of `like`, which errors call `name`."""
    if isinstance(seed, torch.Tensor):
        checks.seed_tensor(seed, name, like)
        return seed.reshape(1)
    return torch.full((1,), checks.seed_int(seed), dtype=torch.int64, device=like.device)


def drawn(generator, like):
    """A seed from the generator, or from torch's default one for the device."""
    return torch.randint(2**63 - 1, (1,), generator=generator, device=like.device)


def noise(mu, num_samples, seed, generator, eps, chosen):
    """(seed tensor, None) or (None, eps)."""
    checks.one_source(seed=seed, generator=generator, eps=eps)
    if eps is not None:
        checks.eps(eps, mu.shape, mu, num_samples)
        return None, eps
    if seed is not None:
        return given(seed, "mu", mu), None
    if generator is not None:
        checks.generator(generator, "mu", mu)
    if chosen == "triton":
        return drawn(generator, mu), None
    # On the eager path Philox costs more than the whole loss at small sizes: eps is drawn, and kept for backward.
    return None, sampled_like(mu, num_samples, accumulator(mu.dtype)).normal_(generator=generator)
