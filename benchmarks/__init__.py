"""Speed, memory, traffic and machine code of the fused kernels. `traffic` and `audit` work on any Triton kernel."""

if __name__ != "vae_fast.benchmarks":
    # One module under two names would be two modules: the package holds this folder by a link, as it does `kernels`.
    raise ImportError(f"{__name__} must be imported as vae_fast.benchmarks")
