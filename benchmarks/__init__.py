"""Speed, memory, traffic and machine code of the fused kernels. `traffic` and `audit` work on any Triton kernel."""
