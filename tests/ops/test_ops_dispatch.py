"""What the ops do on the host: which backend they pick and keep, what they launch, and that they never wait."""

import collections
import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops.cases import CASES, MAIN, SEED, case_id, scalar, tupled, values
from vae_fast import elbo_loss, gaussian_kl, reconstruction_loss, reparameterize, sample_kl, use_backend
from vae_fast.ops import backend as backends
from vae_fast.ops import kinds


class Calls(TorchDispatchMode):
    """Counts the operators called, ours and PyTorch's; those inside ours are not ours to see."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))

    @property
    def ours(self):
        return sum(n for name, n in self.counts.items() if name.startswith("vae_fast"))


class NoSynchronisation(TorchDispatchMode):
    """Raises where a number is read from a tensor: item() is an operator of its own inside an op."""

    FORBIDDEN = (
        "aten._local_scalar_dense", "aten.item", "aten.is_nonzero", "aten.nonzero", "aten.equal", "aten.allclose",
        "aten.masked_select",
    )  # fmt: skip

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if str(function).startswith(self.FORBIDDEN):
            raise AssertionError(f"{function} waits for the device")
        return function(*args, **(kwargs or {}))


class Watched:
    """A room's module, whose functions run under NoSynchronisation: from outside, a mode does not see into an op."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        def watched(*args, **kwargs):
            with NoSynchronisation():
                return getattr(self.module, name)(*args, **kwargs)

        return watched


@pytest.fixture
def no_synchronisation(monkeypatch):
    module = backends._module
    monkeypatch.setattr(backends, "_module", lambda package, name: Watched(module(package, name)))
    with NoSynchronisation():
        yield


@pytest.mark.usefixtures("no_synchronisation")
def test_nothing_waits_for_the_device(backend):
    if str(backend) == "eager-cpu":
        pytest.skip("a CPU has nothing to wait for, and eager skips its scaling by 1 there")
    for case in CASES:
        leaves = case.leaves(backend.device)
        loss = scalar(case.call(*leaves))
        torch.autograd.grad(loss, leaves, retain_graph=True)
        torch.autograd.grad(2 * loss, leaves)


READS = {
    "item": lambda t: t.item(),
    "float": lambda t: float(t),
    "int": lambda t: int(t),
    "bool": lambda t: bool(t),
    "comparison": lambda t: t == 1 and None,
    "equal": lambda t: torch.equal(t, t),
    "allclose": lambda t: torch.allclose(t, t),
    "nonzero": lambda t: t.nonzero(),
    "masked_select": lambda t: t.masked_select(t == 1),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_the_check_for_synchronisation_sees_every_read(read, monkeypatch):
    """In an op that is called through the dispatcher, and outside of any."""
    with NoSynchronisation(), pytest.raises(AssertionError, match="waits for the device"):
        read(torch.ones(()))

    class Reading:
        def forward(self, *arguments):
            read(torch.ones(()))

    monkeypatch.setattr(backends, "_module", lambda package, name: Watched(Reading()))
    logits = torch.zeros(2, 3, dtype=torch.float64)
    with NoSynchronisation(), use_backend("eager"), pytest.raises(AssertionError, match="waits for the device"):
        reconstruction_loss(logits, logits)


@pytest.mark.usefixtures("no_synchronisation")
def test_the_check_for_synchronisation_sees_inside_the_ops():
    """On the CPU, eager does compare an upstream gradient on the host."""
    logits = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    with use_backend("eager"), pytest.raises(AssertionError, match="waits for the device"):
        reconstruction_loss(logits, logits.detach()).backward()


@pytest.fixture
def rooms(monkeypatch):
    """The rooms that the ops enter, in order; a call of a kind that an earlier test had known would enter none."""
    monkeypatch.setattr(kinds, "_kinds", kinds.Table())
    entered = []
    module = backends._module

    def note(package, name):
        entered.append(package)
        return module(package, name)

    monkeypatch.setattr(backends, "_module", note)
    return entered


def room_of(name):
    return "kernels" if name == "triton" else "eager"


def losses(backend):
    leaves = [values(2, 3, device=backend.device, seed=i).requires_grad_() for i in range(3)]
    z, kl = sample_kl(leaves[0], leaves[1], seed=SEED)
    return elbo_loss(leaves[2] + z, leaves[0].detach(), kl).total + gaussian_kl(leaves[1], leaves[0])


def test_backward_uses_the_backend_of_its_forward(rooms, backend):
    for _ in range(4):  # the kernels play the last ones
        loss = losses(backend)
        with use_backend("eager" if backend.name == "triton" else "auto"):
            loss.backward(retain_graph=True)
            (3 * loss).backward()
    assert set(rooms) == {room_of(backend.name)}
    assert len(rooms) > 6  # the first time: three forward and, twice, three backward


def test_use_backend_nests_and_is_restored_after_an_error(rooms, backend):
    mu = torch.zeros(2, 3, dtype=torch.float64, device=backend.device)  # small float32 calls enter no room

    def fails():
        with use_backend("eager"):
            gaussian_kl(mu, mu)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    gaussian_kl(mu, mu)
    assert rooms == ["eager", room_of(backend.name)]


def test_an_empty_tensor_launches_nothing(rooms, backend):
    mu = torch.zeros(0, 3, device=backend.device, requires_grad=True)
    z, kl = sample_kl(mu, mu, seed=0)
    (z.sum() + kl.sum() + reconstruction_loss(mu, mu.detach(), reduction="sum")).backward()
    assert mu.grad.shape == (0, 3)
    assert set(rooms) == {"eager"}


# (what is called, operators of ours in forward, operators of ours in backward)
OPERATORS = [
    ("sample_kl", lambda a, b: sample_kl(a, b, seed=SEED)[1].sum(), 1, 1),
    ("reparameterize", lambda a, b: reparameterize(a, b, seed=SEED).sum(), 1, 1),
    ("gaussian_kl", gaussian_kl, 1, 1),
    ("reconstruction", lambda a, b: reconstruction_loss(a, b.detach()), 1, 1),
    ("elbo", lambda a, b: elbo_loss(a, b.detach(), b.sum(1)).total, 1, 1),
]


@pytest.mark.parametrize(("name", "function", "forward", "backward"), OPERATORS, ids=[o[0] for o in OPERATORS])
def test_operators_of_a_call(name, function, forward, backward, backend):
    leaves = [values(2, 3, device=backend.device, dtype=torch.float32, seed=i).requires_grad_() for i in range(2)]
    with Calls() as calls:
        loss = function(*leaves)
        assert calls.ours == forward
        loss.backward()
    assert calls.ours == forward + backward


def test_nothing_but_the_seed_is_made_outside_the_ops(backend):
    mu, logvar = (values(2, 3, device=backend.device, dtype=torch.float32, seed=i).requires_grad_() for i in range(2))
    target = mu.detach()
    with Calls() as calls:
        _, kl = sample_kl(mu, logvar, seed=SEED)
        elbo_loss(mu, target, kl)
    views = {"aten.detach.default", "aten.alias.default", "aten.view.default"}
    assert {n for n in calls.counts if not n.startswith("vae_fast")} - views == {"aten.full.default"}


@pytest.mark.parametrize("case", MAIN, ids=case_id)
def test_a_call_is_the_same_whether_the_dispatcher_is_listened_to_or_not(case, backend):
    results = []
    for mode in (Calls(), contextlib.nullcontext(), torch.profiler.profile()):
        leaves = case.leaves(backend.device)
        with mode:
            outputs = tupled(case.call(*leaves))
            gradients = torch.autograd.grad(scalar(outputs), leaves)
        results.append((outputs, gradients))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=0)


def lazily_negated(tensor):
    """A view whose numbers in memory are the negatives, as `c.conj().imag` is of a complex tensor."""
    view = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert view.is_neg()
    return view


@pytest.mark.parametrize("case", MAIN, ids=case_id)
def test_lazily_negated_inputs(case, backend):
    plain = case.leaves(backend.device)
    negated = [lazily_negated(t.detach()).requires_grad_() for t in plain]
    results = []
    for leaves in (plain, negated):
        outputs = tupled(case.call(*leaves))
        results.append((outputs, torch.autograd.grad(scalar(outputs), leaves)))
    torch.testing.assert_close(*results)


def test_a_lazily_negated_target(backend):
    logits = values(2, 3, device=backend.device).requires_grad_()
    target = values(2, 3, device=backend.device, seed=2)
    for likelihood in ("bernoulli", "mse"):
        losses = [reconstruction_loss(logits, x, likelihood) for x in (target, lazily_negated(target))]
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*(torch.autograd.grad(loss, logits) for loss in losses))


def test_a_lazily_negated_upstream_gradient(backend):
    logits = values(2, 3, device=backend.device).requires_grad_()
    loss = reconstruction_loss(logits, logits.detach().clamp(0, 1), reduction="none")
    upstream = values(2, 3, device=backend.device, seed=2)
    gradients = [
        torch.autograd.grad(loss, logits, g, retain_graph=True)[0] for g in (upstream, lazily_negated(upstream))
    ]
    torch.testing.assert_close(*gradients)


def test_zeros_that_have_no_memory(backend):
    """As PyTorch makes of tangents that nobody gave."""
    leaf = values(2, 3, device=backend.device, dtype=torch.float32).requires_grad_()
    zeros = torch._efficientzerotensor((2, 3), device=backend.device)
    assert zeros._is_zerotensor()
    for loss in (lambda x: reconstruction_loss(leaf, x, "mse"), lambda x: gaussian_kl(leaf, x)):
        losses = [loss(x) for x in (torch.zeros_like(leaf), zeros)]
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), leaf)[0] for loss in losses))
