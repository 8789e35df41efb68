"""What the tests of played launches share."""

import torch

from vae_fast.kernels import categorical, elbo, gaussian, plans, reconstruction
from vae_fast.ops import kinds

LAUNCHERS = (
    gaussian.forward, gaussian.backward, gaussian.forward_packed, gaussian.backward_packed,
    reconstruction.forward, reconstruction.backward, reconstruction.scale_,
    elbo.forward, elbo.backward, elbo.scale_, categorical.forward, categorical.backward,
)  # fmt: skip
CALLS = 4  # the first is planned, the second written down, the others are played


def draw(seed, *shape, device):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def count_plays(monkeypatch):
    """A list that grows by one with each call that is played; nothing is known of any kind of call when it begins."""
    counts, plan = [], plans.Tape.plan

    def counted(*written):
        play = plan(*written)

        def counting(*given):
            made = play(*given)
            counts.extend([1] if made is not None else [])
            return made

        return None if play is None else counting

    monkeypatch.setattr(plans.Tape, "plan", counted)
    monkeypatch.setattr(kinds, "_kinds", kinds.Table())
    for launcher in LAUNCHERS:
        launcher.plans.clear()
    return counts
