"""torch.compile against eager mode: full graphs, static and dynamic shapes, recompilations."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend, EagerAndRecordGraphs

import vae_fast
from tests.kernels.scaled import SCALES
from tests.ops.cases import CASES, MAIN, SEED, Case, case_id, scalar, tupled, values
from tests.support.environment import inductor_for_cpu
from vae_fast import (
    elbo_loss,
    gaussian_kl,
    reconstruction_loss,
    sample_kl,
    sample_kl_packed,
    use_backend,
)

pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),  # Inductor's own
]


def counted(function, dynamic=None):
    """The function compiled as one graph without code generation, and the counter of its compilations."""
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, backend=counter, fullgraph=True, dynamic=dynamic), counter


def outputs_and_gradients(function, leaves):
    result = tupled(function(*leaves))
    return result, torch.autograd.grad(scalar(result), leaves)


# A sum and a mean differ from the batch's mean in a divisor alone.
COMPILED = [case for case in CASES if not case.name.endswith(("-sum", "-mean"))]


@pytest.mark.parametrize(
    ("case", "dynamic"),
    [*((c, False) for c in COMPILED), *((c, True) for c in MAIN)],
    ids=lambda value: value.name if isinstance(value, Case) else ("dynamic" if value else "static"),
)
def test_compiled_outputs_and_gradients_are_those_of_eager_mode(case, dynamic, backend):
    compiled, counter = counted(case.call, dynamic)
    leaves = case.leaves(backend.device, torch.float32)
    actual = outputs_and_gradients(compiled, leaves)
    torch.testing.assert_close(actual, outputs_and_gradients(case.call, leaves))
    assert counter.frame_count == 1 or dynamic


@pytest.mark.parametrize("case", MAIN, ids=case_id)
def test_compiled_without_gradients(case, backend):
    compiled, _ = counted(case.call)
    leaves = case.leaves(backend.device, torch.float32)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(compiled(*leaves), case.call(*leaves))
    constants = [leaf.detach() for leaf in leaves]
    torch.testing.assert_close(compiled(*constants), case.call(*constants))


@pytest.mark.parametrize("layout", ["channels_last", "chunk"])
def test_compiled_gradients_of_other_layouts(layout, backend):
    def loss(moments, logits):
        mu, logvar = moments.chunk(2, dim=1) if layout == "chunk" else (moments, moments * 0.5)
        z, kl = sample_kl(mu, logvar, seed=SEED)
        return elbo_loss(logits + z.mean(), values(*logits.shape, device=logits.device), kl).total

    leaves = [values(2, 4, 3, 3, device=backend.device, dtype=torch.float32, seed=i) for i in range(2)]
    leaves = [t.to(memory_format=torch.channels_last).requires_grad_() for t in leaves]
    compiled, _ = counted(loss)
    actual = outputs_and_gradients(compiled, leaves)
    torch.testing.assert_close(actual, outputs_and_gradients(loss, leaves))


def whole_loss(moments, logits, target):
    z, kl = sample_kl_packed(moments, seed=SEED)
    return elbo_loss(logits * z.mean(), target, kl).total


def batch(size, device):
    shapes = ((size, 4), (size, 5), (size, 5))
    moments, logits, target = (values(*s, device=device, dtype=torch.float32, seed=size) for s in shapes)
    return moments.requires_grad_(), logits.requires_grad_(), target


@pytest.mark.parametrize("dynamic", [None, True], ids=["automatic", "dynamic"])
def test_changing_batch_sizes_recompile_at_most_once(dynamic, backend):
    compiled, counter = counted(whole_loss, dynamic)
    compiled(*batch(3, backend.device)).backward()
    compilations = counter.frame_count
    for size in (7, 6, 64, 2):
        moments, logits, target = batch(size, backend.device)
        actual = torch.autograd.grad(compiled(moments, logits, target), (moments, logits))
        wanted = torch.autograd.grad(whole_loss(moments, logits, target), (moments, logits))
        torch.testing.assert_close(actual, wanted)
    assert counter.frame_count - compilations <= (0 if dynamic else 1)


def test_a_compiled_backward_pass_of_an_uncompiled_forward(backend):
    """It takes the raw ops as they are: how a kernel is launched is not traced."""
    recorder = EagerAndRecordGraphs()
    for size in (3, 3, 4):
        moments, logits, target = batch(size, backend.device)
        wanted = torch.autograd.grad(whole_loss(moments, logits, target), (moments, logits))
        loss = whole_loss(moments, logits, target)
        with torch._dynamo.config.patch(compiled_autograd=True):
            torch.compile(loss.backward, backend=recorder)()
        torch.testing.assert_close((moments.grad, logits.grad), wanted)
    assert any("vae_fast.gaussian_backward" in graph.code for graph in recorder.graphs)


def compiled_backward(loss):
    """The graphs into which a compiled loss.backward() breaks."""
    recorder = EagerAndRecordGraphs()
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(loss.backward, backend=recorder)()
    return recorder.graphs


class WholeLoss(torch.nn.Module):
    forward = staticmethod(whole_loss)


@pytest.mark.parametrize("is_exported", [False, True], ids=["loss", "program"])
def test_a_compiled_step_whose_graph_is_taken_as_it_is(is_exported, backend):
    """Of raw ops, whose own backward passes are compiled."""
    *leaves, target = batch(3, backend.device)
    wanted = torch.autograd.grad(whole_loss(*leaves, target), leaves)
    loss = torch.export.export(WholeLoss(), (*leaves, target)).module() if is_exported else whole_loss
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(lambda *inputs: loss(*inputs).backward(), backend="eager")(*leaves, target)
    torch.testing.assert_close([leaf.grad for leaf in leaves], list(wanted))


def test_a_compiled_backward_pass_of_a_clamp_is_one_graph(backend):
    mu, logvar = (values(4, 6, device=backend.device, dtype=torch.float32, seed=i) - 0.5 for i in (1, 2))
    logvar[0] = float("nan")
    kl = gaussian_kl(mu.requires_grad_(), logvar.requires_grad_(), logvar_clamp=(-0.2, 0.2))
    wanted = torch.autograd.grad(kl, (mu, logvar), retain_graph=True)
    assert len(compiled_backward(kl)) == 1
    torch.testing.assert_close((mu.grad, logvar.grad), wanted, equal_nan=True)


@pytest.mark.parametrize(("kl", "num_samples"), [("closed_form", None), ("monte_carlo", 3)])
@pytest.mark.parametrize("scale", SCALES)
def test_a_compiled_backward_pass_of_a_scale_is_one_graph(scale, kl, num_samples, backend):
    mu, raw = (values(4, 6, device=backend.device, dtype=torch.float32, seed=i).requires_grad_() for i in (1, 2))
    options = {"scale": SCALES[scale], "kl": kl, "num_samples": num_samples}
    z, divergence = sample_kl(mu, raw, prior=(raw, mu), **options)
    loss = z.sum() + divergence.sum()
    wanted = torch.autograd.grad(loss, (mu, raw), retain_graph=True)
    assert len(compiled_backward(loss)) == 1
    torch.testing.assert_close((mu.grad, raw.grad), wanted)


@pytest.mark.parametrize("reduction", ["batchmean", "sample"])
@pytest.mark.parametrize("weight", [None, "of samples", "mask"])
@pytest.mark.parametrize("name", ["bernoulli", "huber", "laplace", "log_cosh"])
def test_a_compiled_backward_pass_of_a_likelihood_is_one_graph(name, weight, reduction, backend):
    """Where the eager room looks at a CPU's numbers, a compiler would break its graph."""
    first, second, target = (values(4, 6, device=backend.device, dtype=torch.float32, seed=i) for i in (1, 2, 3))
    params = [p.requires_grad_() for p in ((first, second) if name == "laplace" else (first,))]
    weight = {None: None, "of samples": second.detach()[:, 0], "mask": second.detach() > 0.5}[weight]
    output = tuple(params) if len(params) > 1 else first

    def loss():  # a new one for each backward pass: the first takes what forward kept
        return reconstruction_loss(output, target, name, weight=weight, reduction=reduction).sum()

    wanted = torch.autograd.grad(loss(), params)
    assert len(compiled_backward(loss())) == 1
    torch.testing.assert_close([p.grad for p in params], list(wanted))


@pytest.mark.filterwarnings("ignore:Error detected in")  # PyTorch's own, which says where
@pytest.mark.parametrize("argument", ["output", "target", "weight", "beta", "eps"])
def test_what_is_written_to_before_the_backward_pass_raises(argument, backend):
    """PyTorch's own losses raise too. A compiled Function would compute the gradient of what was written."""

    def loss(output, target):
        given = dict.fromkeys(("target", "weight", "eps"), target) | {"output": output, "beta": target.sum()}
        given = {name: 1 * tensor for name, tensor in given.items()}
        if argument == "eps":
            made = sample_kl(0 * output, given["output"], eps=given["eps"])[0].sum()
        else:
            options = {name: given[name] for name in ("weight", "beta")}
            made = elbo_loss(given["output"], given["target"], output[:, 0], **options).total
        given[argument].zero_()
        return made

    output, target = (values(4, 6, device=backend.device, dtype=torch.float32, seed=k) for k in (1, 2))
    with pytest.raises(Exception, match="modified by an inplace operation"):
        counted(loss)[0](output.requires_grad_(), target)


def test_a_tensor_in_two_places_of_one_call(backend):
    def losses(p, target):
        return gaussian_kl(target, p, prior=(p, p)) + reconstruction_loss((p, p), target, "gaussian")

    p, target = (values(4, 6, device=backend.device, dtype=torch.float32, seed=k) for k in (1, 2))
    leaves = p.requires_grad_(), target
    loss, expected = counted(losses)[0](*leaves), losses(*leaves)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, p), torch.autograd.grad(expected, p))


def test_drawn_noise_compiles_and_honours_manual_seed(backend):
    compiled, _ = counted(lambda mu, logvar: sample_kl(mu, logvar)[0])
    mu, logvar = (torch.zeros(16, 16, device=backend.device, requires_grad=True) for _ in range(2))
    samples = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        samples.append(compiled(mu, logvar))
    assert torch.equal(samples[0], samples[1])
    assert not torch.isclose(samples[0], samples[2]).any()


@pytest.mark.parametrize("where", ["inside", "around"])
def test_use_backend_under_compile(where, backend):
    def inside(logits, target):
        with use_backend(backend.name):
            return reconstruction_loss(logits, target)

    _, logits, target = batch(3, backend.device)
    compiled, counter = counted(inside if where == "inside" else reconstruction_loss)
    with use_backend("auto" if where == "inside" else backend.name):
        loss = compiled(logits, target)
    loss.backward()
    torch.testing.assert_close(loss, inside(logits, target))
    assert counter.frame_count == 1
    assert vae_fast.ops.backend._current == backend.name  # as the fixture set it


def test_another_backend_recompiles(backend):
    compiled, counter = counted(reconstruction_loss)
    _, logits, target = batch(3, backend.device)
    for name in dict.fromkeys(["eager", backend.name, "eager"]):
        with use_backend(name):
            compiled(logits, target)
    assert counter.frame_count == (1 if backend.name == "eager" else 2)


def test_an_error_under_compile_names_the_argument(backend):
    compiled = torch.compile(reconstruction_loss, backend="aot_eager")
    with pytest.raises(ValueError, match=r"target has shape \[2, 4\], output has \[2, 3\]"):
        compiled(torch.zeros(2, 3, device=backend.device), torch.zeros(2, 4, device=backend.device))


@inductor_for_cpu
def test_inductor_compiles_the_whole_loss(backend):
    compiled = torch.compile(whole_loss, fullgraph=True, dynamic=True)
    moments, logits, target = batch(6, backend.device)
    actual = torch.autograd.grad(compiled(moments, logits, target), (moments, logits))
    torch.testing.assert_close(actual, torch.autograd.grad(whole_loss(moments, logits, target), (moments, logits)))
