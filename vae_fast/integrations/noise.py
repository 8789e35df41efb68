"""diffusers' own noise."""


def draw(posterior, generator):
    """What `sample(generator=...)` draws: generator may be a list, one a sample, and on another device."""
    from diffusers.utils.torch_utils import randn_tensor

    like = posterior.parameters
    return randn_tensor(posterior.mean.shape, generator=generator, device=like.device, dtype=like.dtype)
