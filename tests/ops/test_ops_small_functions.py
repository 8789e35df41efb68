"""Small float32 losses on the CPU by a Function of their own: the numbers of the long way."""

import pytest
import torch

from tests.ops.cases import values
from vae_fast import Categorical, classes, reconstruction_loss, use_backend
from vae_fast.eager import likelihoods
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.ops import small


@pytest.fixture(autouse=True)
def _eager():
    with use_backend("eager"):
        yield


def node(output, target, name, **options):
    loss = reconstruction_loss(output, target, name, **options)
    return loss.grad_fn.name()  # for as long as the loss is there


SHARING = [name for name in LIKELIHOODS if name != "categorical" and getattr(likelihoods, name).both is not None]
WEIGHTS = {"none": None, "of samples": values(5, dtype=torch.float32, seed=4), "mask": values(5, 7, seed=4) > 0.5}


def parameters(name, samples=5, elements=7):
    row = LIKELIHOODS[name]
    drawn = [values(samples, elements, dtype=torch.float32, seed=3 + k) for k in range(len(row.parameters))]
    target = values(samples, elements, dtype=torch.float32, seed=2).round()
    return [p.detach().requires_grad_() for p in row.linked(drawn)], target


def single(params):
    return params[0] if len(params) == 1 else tuple(params)


@pytest.mark.parametrize("dtype", classes.DTYPES, ids=str)
@pytest.mark.parametrize("likelihood", ["categorical", Categorical(), Categorical(ignore_index=2)], ids=str)
@pytest.mark.parametrize("reduction", ["sum", "mean", "batchmean"])
def test_classes_give_what_the_op_gives(reduction, likelihood, dtype):
    logits = (values(4, 3, 5, dtype=torch.float32) * 4 - 2).requires_grad_()
    target = (torch.arange(12).view(4, 3) % 5).to(dtype)
    target[1, 1] = 5  # no class: NaN
    results = []
    for weight, function in ((None, "Short"), (torch.ones(4), "Ordinary")):
        loss = 3 * reconstruction_loss(logits, target, likelihood, reduction=reduction, weight=weight)
        assert function in node(logits, target, likelihood, reduction=reduction, weight=weight)
        (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
        (again,) = torch.autograd.grad(loss, logits)  # which computes it again
        results += [(loss, first), (loss, again)]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], equal_nan=True)
    assert results[0][1].isnan().sum() == 5


def test_classes_that_are_not_plain_take_the_long_way():
    logits, target = values(4, 5, dtype=torch.float32).requires_grad_(), torch.arange(4)
    assert "Short" in node(logits, target, "categorical")
    assert "Ordinary" in node(logits.double(), target, "categorical")
    assert "Ordinary" in node(logits, target, "categorical", reduction="sample")
    for bad in (target.float(), target[:3], target.to("meta"), [0, 1, 2, 3]):
        with pytest.raises((TypeError, ValueError)):
            reconstruction_loss(logits, bad, "categorical")
    with pytest.raises(ValueError, match="expected"):
        reconstruction_loss(logits[0], torch.tensor(1), "categorical")


@pytest.mark.parametrize("reduction", ["sum", "mean", "batchmean", "sample", "none"])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if name != "categorical"])
def test_the_function_without_layers_gives_what_the_op_gives(name, weight, reduction):
    params, target = parameters(name)
    weight = WEIGHTS[weight]
    given, options = (single(params), target, name), {"reduction": reduction, "weight": weight}
    formulas = getattr(likelihoods, name)
    is_native = formulas.native is not None and (formulas.least is None or reduction != "none")
    results = []
    for way in ("_Reconstruction", "Ordinary"):
        with pytest.MonkeyPatch.context() as patch:
            if way == "Ordinary":
                patch.setattr(small, "reconstruct", lambda *_: None)
            loss = reconstruction_loss(*given, **options)
            with torch.no_grad():
                torch.testing.assert_close(reconstruction_loss(*given, **options), loss)
        assert is_native or way in loss.grad_fn.name()
        upstream = torch.arange(3.0, 3 + loss.numel()).view(loss.shape)
        first = torch.autograd.grad(loss, params, upstream, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(loss, params, upstream), first)  # which computes them again
        results.append((loss, first))
    torch.testing.assert_close(*results)


def test_the_function_without_layers_takes_gradients_of_some_and_of_the_first_order():
    (mean, logvar), target = parameters("gaussian")
    expected = torch.autograd.grad(reconstruction_loss((mean, logvar), target, "gaussian"), logvar)
    loss = reconstruction_loss((mean.detach(), logvar), target, "gaussian")
    torch.testing.assert_close(torch.autograd.grad(loss, logvar, create_graph=True), expected)
    loss = reconstruction_loss((mean, logvar), target, "gaussian")
    (gradient,) = torch.autograd.grad(loss, mean, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradient.sum().backward()


def test_what_wants_the_layers_has_them():
    (mean, logvar), target = parameters("gaussian")
    for output in ((mean, logvar[:1, 0]), [mean, logvar], (mean.double(), logvar.double())):
        assert "Ordinary" in node(output, target, "gaussian")
    with torch.no_grad():
        assert reconstruction_loss((mean, logvar), target, "gaussian").grad_fn is None
    with pytest.raises(TypeError, match="the tuple"):
        reconstruction_loss((mean,), target, "gaussian")


@pytest.mark.parametrize("reduction", small.SEVERAL)
@pytest.mark.parametrize("name", SHARING)
def test_derivatives_that_share_their_work_with_several_losses_are_made_with_them(name, reduction, monkeypatch):
    params, target = parameters(name)
    loss = reconstruction_loss(single(params), target, name, reduction=reduction)
    upstream = torch.arange(3.0, 3 + loss.numel()).view(loss.shape)
    expected = torch.autograd.grad(loss, params, upstream)
    loss = reconstruction_loss(single(params), target, name, reduction=reduction)
    monkeypatch.setattr(likelihoods, name, getattr(likelihoods, name)._replace(derivatives=None))
    torch.testing.assert_close(torch.autograd.grad(loss, params, upstream), expected, rtol=0, atol=0)
