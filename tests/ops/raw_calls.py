"""Calls of the raw ops, op by op, with tensors of every layout."""

import torch

SHAPE = torch.Size((2, 4, 2, 3))  # the channel halves are [2, 2, 2, 3]


def _channels_last(t):
    return t.to(memory_format=torch.channels_last)


def _padded(t):
    """Rows with a stride, as a chunk has them."""
    return torch.cat([t, t], dim=-1)[..., : t.shape[-1]]


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": _channels_last,
    "chunk": lambda t: torch.cat([t, t], dim=1).chunk(2, dim=1)[1],
    "chunk_channels_last": lambda t: _channels_last(torch.cat([t, t], dim=1)).chunk(2, dim=1)[0],
    "transposed": lambda t: t.transpose(1, -1).contiguous().transpose(1, -1),
    "batch_last": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "expanded": lambda t: t[:1].expand(t.shape),
    "stepped": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
    "padded": _padded,
}


def tensor(layout, *, seed=0, device="cpu", dtype=torch.float32, shape=SHAPE):
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
    return LAYOUTS[layout](values)


def latent_forward(
    layout, backend, reduction="sample", prior=False, packed=False, clamp=False, scale=("logvar", 0.0, 0.0),
    kl="closed_form", samples=None, keep=False, beside=None, **options,
):  # fmt: skip
    """Arguments of gaussian_forward; only eager keeps. beside: the dtype of all parameters but mu."""
    mu = tensor(layout, device=backend.device, **options)
    others = options if beside is None else {**options, "dtype": beside}
    logvar = None if packed else tensor(layout, seed=1, device=backend.device, **others)
    priors = (tensor("expanded", device=backend.device, **others),) * 2 if prior else (None, None)
    seed = torch.full((1,), 5, device=backend.device)
    low, high = (0.25, 0.75) if clamp else (None, None)
    return (
        mu,
        logvar,
        *priors,
        seed,
        None,
        reduction,
        low,
        high,
        *scale,
        kl,
        samples,
        1,
        backend.name,
        keep and backend.name == "eager",
    )


def latent_backward(layout, backend, *, grad_z=True, grad_kl=True, **options):
    """Arguments of gaussian_backward, with upstream gradients of the outputs' shapes."""
    *arguments, keep = latent_forward(layout, backend, **options)
    z, kl, *kept = torch.ops.vae_fast.gaussian_forward(*arguments, keep)
    upstream = (torch.ones_like(z) if grad_z else None, torch.ones_like(kl) if grad_kl else None)
    return (*upstream, *arguments, options.get("prior", False) and grad_kl, kept)


def reconstruction_forward(
    layout, backend, likelihood="bernoulli", reduction="batchmean", extras=False, shared=None, keep=False, beside=None,
    **options,
):  # fmt: skip
    """keep: by eager. extras: bytes as the target, scaled and sampled; a weight. shared: a second parameter's shape.

    beside: the second parameter's dtype.
    """
    count = 1 if likelihood in ("bernoulli", "mse") else 2
    keep = keep and backend.name == "eager"
    wanted = keep or reduction not in ("none", "sample")  # forward makes the gradient of scalar losses
    params = [tensor(layout, seed=i, device=backend.device, **options) for i in range(count)]
    if shared is not None:
        params[1] = tensor("contiguous", seed=1, device=backend.device, shape=shared, **options)
    params[1:] = (p.to(beside or p.dtype) for p in params[1:])
    target = tensor("contiguous", seed=9, device=backend.device)
    weight, seed, scale = None, None, 1.0
    if extras:
        target, scale = (target * 255).to(torch.uint8), 1 / 255
        seed = torch.full((1,), 5, device=backend.device) if likelihood == "bernoulli" else None
        weight = tensor("contiguous", seed=8, device=backend.device)[:, :1].expand(target.shape)
    return (params, target, weight, seed, scale, likelihood, reduction, [wanted] * count, backend.name, keep)


def reconstruction_backward(layout, backend, **options):
    *arguments, wanted, name, keep = reconstruction_forward(layout, backend, **options)
    loss, *made = torch.ops.vae_fast.reconstruction_forward(*arguments, wanted, name, keep)
    return (torch.ones_like(loss), *arguments, [True] * len(wanted), name, made if keep else [])


def elbo_forward(layout, backend, likelihood="bernoulli", kl_shape=SHAPE[:1], beta_tensor=False, **options):
    params, *read, _, _, wanted, name, _ = reconstruction_forward(layout, backend, likelihood, **options)
    kl = torch.ones(kl_shape, device=backend.device)
    beta = torch.full((), 0.5, device=backend.device) if beta_tensor else None
    return (params, *read, kl, beta, 1.0, likelihood, wanted, name)


def elbo_backward(layout, backend, total=True, reconstruction=True, kl=True, **options):
    upstream = [torch.full((), 2.0, device=backend.device) if given else None for given in (total, reconstruction, kl)]
    return (*upstream, *elbo_forward(layout, backend, **options))


def categorical_forward(layout, backend, reduction="batchmean", ignore_index=None, weighted=False, **options):
    logits = tensor(layout, device=backend.device, **options)
    target = torch.arange(SHAPE[:-1].numel(), device=backend.device).view(SHAPE[:-1]) % SHAPE[-1]
    weight = (
        tensor("contiguous", seed=8, device=backend.device)[:, :1, 0, :1].expand(target.shape) if weighted else None
    )
    return (logits, target, weight, ignore_index, reduction, reduction not in ("none", "sample"), backend.name)


def categorical_backward(layout, backend, **options):
    *arguments, wanted, name = categorical_forward(layout, backend, **options)
    loss = torch.ops.vae_fast.categorical_forward(*arguments, wanted, name)[0]
    return (torch.ones_like(loss), *arguments, name)


def reconstruction_scale_(layout, backend, shared=SHAPE):
    grads = [tensor("contiguous", seed=i, device=backend.device, shape=s) for i, s in enumerate((SHAPE, shared))]
    return (grads, torch.full((), 3.0, device=backend.device), backend.name)


def elbo_scale_(layout, backend, beta_tensor=False):
    grads, upstream, name = reconstruction_scale_(layout, backend)
    kl = torch.ones(SHAPE[0], device=backend.device)
    beta = upstream.clone() if beta_tensor else None
    return (grads, upstream, None, upstream.clone(), kl, beta, 1.0, name)


KEEP = {"keep": True, "reduction": "sample"}
MIXED = {"dtype": torch.bfloat16, "beside": torch.float32}

# (op, how its arguments are made, options that distinguish the call)
CALLS = [
    ("gaussian_forward", latent_forward, {}),
    ("gaussian_forward", latent_forward, {"reduction": "none", "prior": True, "clamp": True}),
    ("gaussian_forward", latent_forward, {"reduction": "latent", "packed": True}),
    ("gaussian_forward", latent_forward, {"reduction": "mean", "dtype": torch.bfloat16}),
    ("gaussian_forward", latent_forward, {"reduction": "sum", "scale": ("std", 0.0, 0.0), "kl": "monte_carlo"}),
    ("gaussian_forward", latent_forward, {"reduction": "latent", "kl": "monte_carlo", "samples": 2}),
    ("gaussian_forward", latent_forward, {"samples": 2}),
    ("gaussian_forward", latent_forward, {"reduction": "none", "kl": "monte_carlo", "samples": 2, "packed": True}),
    ("gaussian_forward", latent_forward, {**MIXED, "prior": True}),
    ("gaussian_forward", latent_forward, {"keep": True}),
    ("gaussian_forward", latent_forward, {"keep": True, "packed": True, "reduction": "none", "dtype": torch.bfloat16}),
    ("gaussian_backward", latent_backward, {}),
    ("gaussian_backward", latent_backward, {"keep": True, "prior": True}),
    ("gaussian_backward", latent_backward, {**MIXED, "prior": True}),
    ("gaussian_backward", latent_backward, {**MIXED, "keep": True}),
    ("gaussian_backward", latent_backward, {"kl": "monte_carlo", "samples": 2, "prior": True}),
    ("gaussian_backward", latent_backward, {"samples": 2, "grad_kl": False}),
    ("gaussian_backward", latent_backward, {"scale": ("softplus", 0.0, 1e-4), "kl": "monte_carlo", "prior": True}),
    ("gaussian_backward", latent_backward, {"scale": ("soft_clamp", 5.0, 0.0), "grad_kl": False}),
    ("gaussian_backward", latent_backward, {"reduction": "latent", "prior": True}),
    ("gaussian_backward", latent_backward, {"packed": True, "grad_z": False, "dtype": torch.bfloat16}),
    ("gaussian_backward", latent_backward, {"packed": True, "grad_kl": False}),
    ("gaussian_backward", latent_backward, {"grad_kl": False, "clamp": True}),
    ("reconstruction_forward", reconstruction_forward, {}),
    ("reconstruction_forward", reconstruction_forward, {"reduction": "none", "dtype": torch.bfloat16}),
    ("reconstruction_forward", reconstruction_forward, {"likelihood": "gaussian", "reduction": "sample"}),
    ("reconstruction_forward", reconstruction_forward, KEEP),
    ("reconstruction_forward", reconstruction_forward, {"likelihood": "negative_binomial", **KEEP}),
    ("reconstruction_backward", reconstruction_backward, {"likelihood": "negative_binomial", **KEEP}),
    ("reconstruction_backward", reconstruction_backward, {}),
    ("reconstruction_backward", reconstruction_backward, {"likelihood": "gaussian", "reduction": "none"}),
    ("reconstruction_forward", reconstruction_forward, {"extras": True}),
    ("reconstruction_backward", reconstruction_backward, {"extras": True}),
    ("reconstruction_backward", reconstruction_backward, {"extras": True, "likelihood": "mse", "reduction": "none"}),
    ("reconstruction_forward", reconstruction_forward, {"likelihood": "gaussian", "shared": ()}),
    ("reconstruction_forward", reconstruction_forward, {"likelihood": "gaussian", "shared": (4, 1, 1)}),
    ("reconstruction_backward", reconstruction_backward, {"likelihood": "gaussian", "shared": (), "reduction": "none"}),
    ("reconstruction_backward", reconstruction_backward, {"likelihood": "gaussian", "shared": SHAPE[-1:]}),
    ("reconstruction_forward", reconstruction_forward, {"likelihood": "gaussian", "shared": (), **MIXED}),
    ("reconstruction_backward", reconstruction_backward, {"likelihood": "gaussian", **MIXED}),
    ("reconstruction_backward", reconstruction_backward, {"likelihood": "negative_binomial", **KEEP, **MIXED}),
    ("categorical_forward", categorical_forward, {}),
    ("categorical_forward", categorical_forward, {"reduction": "sample", "ignore_index": 1, "dtype": torch.bfloat16}),
    ("categorical_forward", categorical_forward, {"reduction": "none"}),
    ("categorical_backward", categorical_backward, {"ignore_index": 1}),
    ("categorical_backward", categorical_backward, {"reduction": "sample"}),
    ("categorical_forward", categorical_forward, {"weighted": True}),
    ("categorical_backward", categorical_backward, {"weighted": True, "reduction": "none"}),
    ("reconstruction_scale_", reconstruction_scale_, {}),
    ("reconstruction_scale_", reconstruction_scale_, {"shared": ()}),
    ("elbo_forward", elbo_forward, {}),
    ("elbo_forward", elbo_forward, {"likelihood": "gaussian", "kl_shape": (), "beta_tensor": True}),
    ("elbo_backward", elbo_backward, {}),
    ("elbo_backward", elbo_backward, {"dtype": torch.bfloat16}),
    ("elbo_backward", elbo_backward, {"likelihood": "gaussian", "beta_tensor": True, "reconstruction": False}),
    ("elbo_forward", elbo_forward, {"extras": True}),
    ("elbo_backward", elbo_backward, {"extras": True}),
    ("elbo_forward", elbo_forward, {"likelihood": "gaussian", "shared": ()}),
    ("elbo_backward", elbo_backward, {"likelihood": "gaussian", "shared": (4, 1, 1)}),
    ("elbo_backward", elbo_backward, {"likelihood": "gaussian", "shared": (4, 1, 1), **MIXED}),
    ("elbo_scale_", elbo_scale_, {}),
    ("elbo_scale_", elbo_scale_, {"beta_tensor": True}),
]  # fmt: skip


def call_id(call):
    op, _, options = call
    return "-".join([op, *(f"{k}={v}".replace("torch.", "") for k, v in options.items())])
