"""The encoder and the decoder that `VAE` builds when it is given none: plain multilayer perceptrons with ReLU."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from vae_fast import checks


def _layers(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers through `sizes`, a ReLU between any two, none after the last."""
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class MLPEncoder(nn.Module):
    """Maps x [B, *input_shape] to the moments [B, 2 * latent_dim]: mu first, then logvar."""

    def __init__(self, input_shape: Sequence[int], latent_dim: int, hidden_dims: Sequence[int]):
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.layers = _layers([math.prod(input_shape), *hidden_dims, 2 * latent_dim])

    def forward(self, x: Tensor) -> Tensor:
        _check("x", x, self.input_shape, self.layers[0].weight)
        return self.layers(x.flatten(1))


class MLPDecoder(nn.Module):
    """Maps z [B, latent_dim] to the parameters of the likelihood, each [B, *input_shape].

    With one parameter the output is a tensor, with more it is a tuple. link: what makes them of the last layer's real
    numbers, such as probabilities; None if nothing.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int,
        hidden_dims: Sequence[int],
        num_parameters: int,
        link: Callable | None = None,
    ):
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.latent_dim = latent_dim
        self.num_parameters = num_parameters
        self.link = link
        self.layers = _layers([latent_dim, *reversed(hidden_dims), num_parameters * math.prod(input_shape)])

    def forward(self, z: Tensor) -> Tensor | tuple[Tensor, ...]:
        _check("z", z, (self.latent_dim,), self.layers[0].weight)
        output = self.layers(z)
        parameters = output.unflatten(1, (self.num_parameters, *self.input_shape)).unbind(1)
        if self.link is not None:
            return self.link(*parameters)
        return parameters[0] if self.num_parameters == 1 else parameters


def _check(name: str, value: Tensor, shape: tuple[int, ...], weight: Tensor) -> None:
    checks.is_tensor(name, value)
    if value.shape[1:] != shape or value.dim() == 0:
        wanted = ", ".join(["B", *map(str, shape)])
        raise ValueError(f"{name} has shape {list(value.shape)}: expected [{wanted}]")
    if not value.is_floating_point():
        raise TypeError(f"{name} is {checks.dtype_name(value.dtype)}: expected a floating point tensor")
    checks.same_arithmetic(name, value, "the model", weight)
