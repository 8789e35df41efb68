"""A thin VAE: an encoder, a decoder, and between and after them the fused sample, KL and reconstruction."""

import numbers
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae_fast import checks, functional
from vae_fast.distributions import DiagonalGaussian
from vae_fast.likelihoods import LikelihoodLike, lookup
from vae_fast.models import storage
from vae_fast.models.mlp import MLPDecoder, MLPEncoder


class VAEOutput(NamedTuple):
    """What `VAE.forward` returns.

    output: what the decoder returned: the likelihood's parameter, shaped like x, or a tuple of its parameters.
    z, mu, logvar: [B, *latent], in the dtype of the encoder's output.
    kl: [B], in nats: the KL of each sample to N(0, I).
    """

    output: Tensor | tuple[Tensor, ...]
    z: Tensor
    mu: Tensor
    logvar: Tensor
    kl: Tensor


class VAE(nn.Module):
    """A variational autoencoder with a diagonal Gaussian posterior and the prior N(0, I).

    Give `input_shape` and `latent_dim`, for multilayer perceptrons with ReLU, or your own `encoder` and `decoder`.

    Args:
        input_shape: shape of one sample, such as (28, 28).
        latent_dim: number of latents of one sample. With your own modules: the shape of one sample's z, an int or a
            tuple such as (4, 32, 32); only `generate` needs it.
        hidden_dims: widths of the encoder's hidden layers, (256,) unless given; the decoder has them in reverse.
        encoder: maps x to moments: [B, 2 * latent, ...], mu first and logvar second along dimension 1.
        decoder: maps z [B, latent, ...] to the parameters of the likelihood, each shaped like x: a tensor, and for
            "gaussian" the tuple (mean, logvar).
        likelihood: as in `vae_fast.reconstruction_loss`: "bernoulli" (x in [0, 1], the decoder gives logits),
            "gaussian", or "mse", which is not an ELBO: it is the Gaussian at variance 1/2, less a constant. A
            categorical one wants your own modules: x [B, ...] holds class indices, and the decoder gives [B, ..., K].
        beta: weight of the KL in `loss`; 1 gives the ELBO. To anneal it, set the attribute: to a number, or to a 0-d
            tensor, for which torch.compile does not compile again.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, out of its range, missing, or one too many.

    >>> model = VAE(input_shape=(8, 8), latent_dim=2)
    >>> model.loss(torch.rand(5, 8, 8)).total.shape
    torch.Size([])
    """

    def __init__(
        self,
        input_shape: Sequence[int] | None = None,
        latent_dim: int | Sequence[int] | None = None,
        hidden_dims: Sequence[int] | None = None,
        *,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        likelihood: LikelihoodLike = "bernoulli",
        beta: float = 1.0,
    ):
        super().__init__()
        row = lookup(likelihood)
        self.likelihood = likelihood
        self.beta = checks.number("beta", beta)
        if encoder is None and decoder is None:
            self._build_mlp(row, input_shape, latent_dim, hidden_dims)
        else:
            self._take_modules(encoder, decoder, latent_dim, input_shape=input_shape, hidden_dims=hidden_dims)

    def _build_mlp(self, row, input_shape, latent_dim, hidden_dims) -> None:
        missing = [name for name, value in (("input_shape", input_shape), ("latent_dim", latent_dim)) if value is None]
        if missing:
            raise ValueError(f"{missing[0]} is missing: give input_shape and latent_dim, or encoder and decoder")
        shape = checks.counts("input_shape", input_shape)
        widths = (256,) if hidden_dims is None else checks.counts("hidden_dims", hidden_dims, may_be_empty=True)
        latents = checks.count("latent_dim", latent_dim)
        self.encoder = MLPEncoder(shape, latents, widths)
        if row.domain == "classes":
            raise ValueError(
                f"likelihood is {self.likelihood!r}, of class indices, which the built-in MLP does not read: "
                "give encoder and decoder"
            )
        self.decoder = MLPDecoder(shape, latents, widths, len(row.parameters), row.link)
        self.latent_shape: tuple[int, ...] | None = (latents,)
        self._architecture = {"input_shape": shape, "latent_dim": latents, "hidden_dims": widths}

    def _take_modules(self, encoder, decoder, latent_dim, **mlp_only) -> None:
        for name, module in (("encoder", encoder), ("decoder", decoder)):
            if module is None:
                raise ValueError(f"{name} is missing: give encoder and decoder together, or neither")
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name} is {type(module).__name__}: expected a torch.nn.Module")
        for name, value in mlp_only.items():
            if value is not None:
                raise ValueError(f"{name} is {value}: it describes the built-in MLP, and encoder and decoder are given")
        self.encoder = encoder
        self.decoder = decoder
        shape = [latent_dim] if isinstance(latent_dim, numbers.Integral) else latent_dim
        self.latent_shape = None if shape is None else checks.counts("latent_dim", shape)
        self._architecture = {"latent_dim": self.latent_shape}

    def forward(self, x: Tensor, *, seed: int | Tensor | None = None, eps: Tensor | None = None) -> VAEOutput:
        """Encode x, draw one z for each sample, and decode it.

        Args:
            x: [B, ...], what the encoder takes.
            seed, eps: fix the noise, as in `vae_fast.sample_kl`; without them it is drawn from PyTorch's generator.
        """
        moments = self.encoder(x)
        z, kl = functional.sample_kl_packed(moments, dim=1, seed=seed, eps=eps)
        mu, logvar = moments.chunk(2, dim=1)
        return VAEOutput(self.decoder(z), z, mu, logvar, kl)

    def loss(self, x: Tensor, *, seed: int | Tensor | None = None, eps: Tensor | None = None) -> functional.ELBO:
        """The loss of the batch x, to be minimised: total = reconstruction + beta * kl, each 0-d, in nats per sample.

        With beta = 1 and any likelihood but "mse", total is the negative ELBO, estimated with one z for each sample.
        Arguments are those of `forward`. `torch.compile(model).loss` compiles nothing: take `torch.compile(model.loss)`
        or, for all but the `elbo_loss` at its end, `model.compile()`. Under DistributedDataParallel call the wrapper,
        and `elbo_loss` on the output and the kl that it returns.
        """
        out = self(x, seed=seed, eps=eps)
        return functional.elbo_loss(out.output, x, out.kl, likelihood=self.likelihood, beta=self.beta)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """The posterior q(z | x)."""
        return DiagonalGaussian.from_moments(self.encoder(x), dim=1)

    def decode(self, z: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The likelihood's parameters at z: logits for "bernoulli", (mean, logvar) for "gaussian"."""
        return self.decoder(z)

    @torch.no_grad()
    def generate(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw z from the prior and return the likelihood's mean there: [num_samples, *input_shape], in the units of x.

        No gradients. Layers such as dropout behave as `train()` or `eval()` left them.
        """
        if self.latent_shape is None:
            raise ValueError(
                "latent_dim is missing: to generate, VAE(..., latent_dim=...) wants the shape of a sample's z"
            )
        parameter = next(self.decoder.parameters(), torch.empty(0))
        shape = (checks.count("num_samples", num_samples), *self.latent_shape)
        return self._mean(torch.randn(shape, generator=generator, device=parameter.device, dtype=parameter.dtype))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The likelihood's mean at the posterior's mean: shaped like x, in its units. No noise, no gradients."""
        return self._mean(self.encode(x).mode())

    def _mean(self, z: Tensor) -> Tensor:
        output = self.decode(z)
        return lookup(self.likelihood).mean(*(output if isinstance(output, tuple) else (output,)))

    def save(self, path: str | os.PathLike) -> None:
        """Write `model.safetensors` and `config.json` into the folder `path`, made if need be.

        Raises:
            ImportError: safetensors, of the extra `app`, is not installed: `pip install -e ".[app]"`.
            OSError: the folder cannot be written. Files that were there are then as they were.
            TypeError: the likelihood is not a name, or beta not a number.
        """
        if not isinstance(self.likelihood, str):
            raise TypeError(f"likelihood is {self.likelihood!r}: expected a name, which alone is saved")
        beta = self.beta.item() if isinstance(self.beta, Tensor) else self.beta
        beta = checks.number("beta", beta)
        config: dict[str, Any] = {"likelihood": self.likelihood, "beta": beta, **self._architecture}
        if "input_shape" in config:
            config["dtype"] = checks.dtype_name(next(self.parameters()).dtype)
        storage.save(self, config, path)

    @classmethod
    def load(
        cls, path: str | os.PathLike, *, encoder: nn.Module | None = None, decoder: nn.Module | None = None
    ) -> "VAE":
        """Read a model that `save` wrote into the folder `path`.

        A model made of your own modules is saved without their code: give modules of the same kind as `encoder` and
        `decoder`, and the weights are copied into them. A built-in MLP is loaded on the CPU, in the dtype it had.

        Raises:
            OSError: a file is missing or cannot be read.
            ValueError: a file is truncated or not ours, or it does not fit the modules given.
        """
        config = storage.load_config(path)
        is_mlp = "input_shape" in config
        if is_mlp and (encoder is not None or decoder is not None):
            raise ValueError(f"encoder and decoder are given, but {path} holds a built-in MLP: expected neither")
        if not is_mlp and (encoder is None or decoder is None):
            raise ValueError(
                f"{path} holds a model made of its author's own modules, whose code is not saved: "
                "expected VAE.load(path, encoder=..., decoder=...) with modules of the same kind"
            )
        dtype = config.pop("dtype", None)
        try:
            with torch.device("cpu"):  # where the default device is another, too
                model = cls(**config, encoder=encoder, decoder=decoder)
            if dtype is not None:
                model.to(getattr(torch, dtype))
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:  # the last: of sizes beyond all memory
            raise ValueError(f"{path}: {storage.CONFIG} does not describe a VAE: {error}") from error
        storage.load_weights(model, path)
        return model

    def extra_repr(self) -> str:
        return f"likelihood={self.likelihood!r}, beta={self.beta}"
