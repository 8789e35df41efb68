"""The Triton room: fused kernels and their launchers. Tensors in, tensors out.

No autograd, no modules and no argument checking happen here; `vae_fast.functional` checks, `vae_fast.ops`
differentiates.
"""

if __name__ != "vae_fast.kernels":
    # The name `kernels` belongs to another package on PyPI: this folder must never shadow it.
    raise ImportError(f"{__name__} must be imported as vae_fast.kernels")
