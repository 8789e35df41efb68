"""The reference: every formula of vae_fast in float64 NumPy, value and gradient, written to be read and to be trusted.

It imports numpy alone, so it also runs where torch is not installed. It follows the floor plan of the other two rooms
(`vae_fast.kernels` in Triton, `vae_fast.eager` in PyTorch): the same formula stands at the same address in each.

Arguments are anything `numpy.asarray` takes, converted to float64. Dimension 0 is the batch. Losses are in nats. NaN in
gives NaN out, without warnings.
"""

from . import gaussian, likelihoods, noise, reconstruction, reductions, special, targets

__all__ = ["gaussian", "likelihoods", "noise", "reconstruction", "reductions", "special", "targets"]
