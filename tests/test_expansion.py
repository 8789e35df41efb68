"""Which tensors of a patched project are taken at their size before it expanded them, and which are left alone."""

import pytest
import torch
from torch.autograd import forward_ad

from vae_fast.integrations.tensors import unexpanded

SHAPE = (5, 7)


def leaf(*shape):
    return torch.rand(shape, dtype=torch.float64).requires_grad_()


BASES = {
    "leaf": leaf(7),
    "Parameter": torch.nn.Parameter(torch.rand(7)),
    "computed": leaf(7).exp(),
    "of as many dimensions": leaf(1, 7).exp(),
    "one number": leaf(),
    "one of several outputs": leaf(7).sort()[0],
}


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_an_expanded_view_is_its_base(base):
    assert unexpanded(base.expand(SHAPE)) is base


def test_it_stays_the_base_after_a_change_in_place():
    base = leaf(7).exp()
    view = base.expand(SHAPE)
    base.mul_(2)
    found = unexpanded(view)
    (grad,) = torch.autograd.grad(found.expand(SHAPE).sum(), base)
    torch.testing.assert_close(grad, torch.full_like(grad, 5.0))
    assert torch.equal(found.expand(SHAPE), view)


def no_grad(base):
    with torch.no_grad():
        return base.expand(SHAPE)


def watched(base):
    view = base.expand(SHAPE)
    view.register_hook(lambda grad: grad * 0)
    return view


def retained(base):
    view = base.expand(SHAPE)
    view.retain_grad()
    return view


LEFT = {
    "no view": lambda base: base * torch.ones(SHAPE, dtype=base.dtype),
    "without a gradient": lambda base: base.detach().expand(SHAPE),
    "made under no_grad": no_grad,
    "a leaf of its own": lambda base: base.detach().expand(SHAPE).requires_grad_(),
    "with a hook": watched,
    "retained": retained,
    "of a part": lambda base: base[None].expand(2, 7)[0].expand(SHAPE),
    "of a negative": lambda base: base._neg_view().expand(SHAPE),
    "twice": lambda base: base.expand(1, 7).expand(SHAPE),
    "computed with": lambda base: base.expand(SHAPE) + 0,
    "transposed": lambda base: base.expand(7, 7)[:5].t().t(),
}


@pytest.mark.parametrize("make", LEFT.values(), ids=LEFT)
def test_any_other_is_left_alone(make):
    tensor = make(leaf(7))
    assert unexpanded(tensor) is tensor


def test_inference_tensors_are_left_alone():
    with torch.inference_mode():
        tensor = torch.rand(7).expand(SHAPE)
        assert unexpanded(tensor) is tensor


def test_tangents_stay():
    base = leaf(7)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(base, torch.ones_like(base)).expand(SHAPE)
        assert unexpanded(dual) is dual


def test_transforms_and_compilers_see_what_was_given():
    base = leaf(7)

    def loss(base):
        view = base.expand(SHAPE)
        return (unexpanded(view) * torch.arange(5.0).unsqueeze(1)).sum()  # [5, 7] whether expanded or not

    (expected,) = torch.autograd.grad(loss(base), base)
    torch.testing.assert_close(torch.func.grad(loss)(base.detach()), expected)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(base), base)[0], expected)
