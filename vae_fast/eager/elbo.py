"""The negative ELBO in PyTorch."""

from vae_fast.eager import reconstruction, targets


def forward(params, target, kl, beta_tensor, beta, likelihood, wanted, extras=targets.PLAIN):
    """As `vae_fast.kernels.elbo.forward`."""
    nll, grads = reconstruction.forward(params, target, likelihood, "batchmean", wanted, extras)
    divergence = kl.sum().to(nll.dtype) / kl.numel() if kl.dim() else kl.to(nll.dtype, copy=True)
    return _weighted(nll, divergence, beta_tensor, beta), nll, divergence, grads


def compose(nll, kl, beta_tensor, beta):
    """(total, reconstruction, kl) of a nll averaged over the batch, by PyTorch's own operators and autograd."""
    divergence = (kl.mean() if kl.dim() else kl.clone()).to(nll.dtype)
    return _weighted(nll, divergence, beta_tensor, beta), nll, divergence


def _weighted(nll, divergence, beta_tensor, beta):
    if beta_tensor is None and beta == 1:
        return nll + divergence
    return (nll + divergence * (beta if beta_tensor is None else beta_tensor)).to(nll.dtype)


def backward(
    grad_total, grad_reconstruction, grad_kl, params, target, kl, beta_tensor, beta, likelihood, wanted,
    extras=targets.PLAIN,
):  # fmt: skip
    """As `vae_fast.kernels.elbo.backward`."""
    upstream, kl_grad = _upstream(grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta)
    return kl_grad, reconstruction.backward(upstream, params, target, likelihood, "batchmean", wanted, extras)


def scale_(grads, grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta):
    """As `vae_fast.kernels.elbo.scale_`."""
    upstream, kl_grad = _upstream(grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta)
    reconstruction.scale_(grads, upstream)
    return kl_grad


def _upstream(grad_total, grad_reconstruction, grad_kl, kl, beta_tensor, beta):
    """The reconstruction's upstream gradient, and the gradient of each kl."""
    weighted = None if grad_total is None else grad_total * (beta if beta_tensor is None else beta_tensor)
    kl_grad = _add(weighted, grad_kl, like=kl) / max(kl.numel(), 1)
    return _add(grad_total, grad_reconstruction, like=kl), kl_grad.to(kl.dtype)


def _add(a, b, like):
    """The sum of two upstream gradients, either of which may be None."""
    if a is None or b is None:
        present = b if a is None else a
        return like.new_zeros(()) if present is None else present
    return a + b
