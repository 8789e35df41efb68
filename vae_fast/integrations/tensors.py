"""What the patches ask of the tensors of other projects."""

import torch

from vae_fast.ops.plain import PLAIN


def is_like(tensor, other):
    return (tensor.shape, tensor.dtype, tensor.device) == (other.shape, other.dtype, other.device)


def result_dtype(tensor):
    """What torch.exp makes of it: another dtype in some autocast regions."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensor.dtype
    return torch.exp(tensor.new_empty(0)).dtype


def unexpanded(tensor):
    """The tensor that this is an expanded view of, so that a fused op sums its gradient itself; else the tensor.

    Only where the graph says that there is nothing between the two, and nobody waits for the view's gradient: no hook
    of the tensor's (those of its graph node do not show). Only a patch may ask: of a user's own tensors autograd would
    lose sight of the expanded one, which is theirs.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return tensor
    if type(tensor) not in PLAIN or tensor.grad_fn is None or tensor.grad_fn.name() != "ExpandBackward0":
        return tensor
    base = tensor._base
    if base is None or tensor._backward_hooks or tensor.retains_grad:
        return tensor
    return base if tensor.grad_fn.next_functions[0] == _edge(base) else tensor


def _edge(tensor):
    edge = torch.autograd.graph.get_gradient_edge(tensor)
    return edge.node, edge.output_nr
