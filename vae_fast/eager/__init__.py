"""The PyTorch room: the kernels' entry points for tensors that Triton cannot take. Analytic gradients, few passes."""
