"""The seed of the noise, one int64 on the device: given by the user, or drawn."""

import torch

from vae_fast import checks


def given(seed, name, like):
    """The seed of an int or a tensor, on the device of `like`, which errors call `name`."""
    if isinstance(seed, torch.Tensor):
        checks.seed_tensor(seed, name, like)
        return seed.reshape(1)
    return torch.full((1,), checks.seed_int(seed), dtype=torch.int64, device=like.device)


def drawn(generator, like):
    """A seed from the generator, or from torch's default one for the device."""
    return torch.randint(2**63 - 1, (1,), generator=generator, device=like.device)
