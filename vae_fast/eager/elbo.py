"""The negative ELBO in PyTorch."""

from vae_fast.eager import reconstruction


def forward(params, target, kl, beta_tensor, beta, likelihood, wanted):
    """As `vae_fast.kernels.elbo.forward`."""
    nll, grads = reconstruction.forward(params, target, likelihood, "batchmean", wanted)
    divergence = kl.sum().to(nll.dtype) / kl.numel() if kl.dim() else kl.to(nll.dtype, copy=True)
    total = nll + divergence * (beta if beta_tensor is None else beta_tensor)
    return total.to(nll.dtype), nll, divergence, grads


def backward(grad_total, grad_reconstruction, grad_kl, params, target, kl, beta_tensor, beta, likelihood, wanted):
    """As `vae_fast.kernels.elbo.backward`."""
    upstream, kl_grad = _upstream(grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta)
    return kl_grad, reconstruction.backward(upstream, params, target, likelihood, "batchmean", wanted)


def scale_(grads, grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta):
    """As `vae_fast.kernels.elbo.scale_`."""
    upstream, kl_grad = _upstream(grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta)
    reconstruction.scale_(grads, upstream)
    return kl_grad


def _upstream(grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta):
    """The reconstruction's upstream gradient, and the gradient of each kl."""
    present = [g for g in (grad_total, grad_reconstruction, grad_kl) if g is not None]
    zero = present[0].new_zeros(())
    total = zero if grad_total is None else grad_total
    kl_grad = total * (beta if beta_tensor is None else beta_tensor)
    if grad_kl is not None:
        kl_grad = kl_grad + grad_kl
    upstream = total if grad_reconstruction is None else total + grad_reconstruction
    return upstream, (kl_grad / max(kl.numel(), 1)).to(kl.dtype)
