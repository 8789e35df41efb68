"""A whole training step as one CUDA graph."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vae_fast import checks
from vae_fast.functional import ELBO

WARM_UP = 3  # steps before the capture: kernels are compiled, cuDNN plans, and the optimiser makes its state


def capture_step(model: nn.Module, optimizer: torch.optim.Optimizer, example: Tensor) -> Callable[[Tensor], ELBO]:
    """Capture forward, backward and the optimiser's step on one batch as a CUDA graph, for any number of batches.

    At small sizes a training step is bound by the host, which launches dozens of kernels; a graph launches them at
    once. Each replay draws fresh noise, as `torch.manual_seed` decides. Capturing takes three training steps on
    `example`, as warm-up. What Python does in the step is fixed by the capture: `train()` or `eval()`, a learning rate
    or a `model.beta` that is a number. To change one of these two between steps, make it a 0-d tensor on the device,
    and write into it. Weights and optimizer state stay where they are: `model.load_state_dict()` may come later, but
    `optimizer.load_state_dict()` and `model.to()`, which replace them, come before. Losses of earlier steps of the
    model must be let go before (`del loss`): their graphs belong to another stream.

    Args:
        model: a `VAE`, or any module whose method `loss(x)` returns an `ELBO`, on a CUDA device.
        optimizer: of the model's parameters, made with `capturable=True`; or SGD, which needs no such option, but
            `fused=True` where its learning rate is a tensor.
        example: a batch [B, ...] on the model's device, of the shape and dtype of all later ones.

    Returns:
        A callable: step(x) copies x in, takes one training step, and returns `ELBO(total, reconstruction, kl)` of x.
        The three 0-d tensors are overwritten by the next call: read or clone them before. The call does not wait for
        the device: do not write to an x in pinned memory before the step has run. It keeps model and optimizer alive.

    Raises:
        RuntimeError: example is not on a CUDA device.
        TypeError, ValueError: an argument has the wrong type or device, or the optimizer is not capturable. The
            returned callable raises ValueError for a batch of another shape or dtype, and RuntimeError where weights
            or optimizer state have been replaced.

    >>> optimizer = torch.optim.Adam(model.parameters(), capturable=True)  # doctest: +SKIP
    >>> step = capture_step(model, optimizer, batches[0])  # doctest: +SKIP
    >>> for x in batches:
    ...     loss = step(x).total  # doctest: +SKIP
    """
    _check_model(model)
    _check_optimizer(optimizer)
    _check_example(example, model)

    def clear():
        optimizer.zero_grad(set_to_none=True)
        model.zero_grad(set_to_none=True)  # what is not the optimizer's

    def step(x):
        clear()
        losses = model.loss(x)
        losses.total.backward()
        optimizer.step()
        return ELBO(*(loss.detach() for loss in losses))

    try:
        return CapturedStep(step, optimizer, example)
    except BaseException:
        clear()  # no kernel has written to the gradients that a capture made
        raise


class CapturedStep:
    """`step(x)` as one CUDA graph, for any x like the example; what it returns is overwritten by the next call.

    The step must set its gradients to None before it makes them: they are then the graph's own.
    """

    def __init__(self, step: Callable[[Tensor], object], optimizer: torch.optim.Optimizer, example: Tensor):
        self._step, self._optimizer = step, optimizer  # a graph does not keep what it writes to: weights, their moments
        self._x = example.detach().clone()
        with torch.cuda.device(example.device), _uncached_autocast(example.device.type):
            self._graph = torch.cuda.CUDAGraph()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(side):
                    for _ in range(WARM_UP):
                        step(self._x)
            finally:  # a step that fails may follow one that still writes to the weights
                torch.cuda.current_stream().wait_stream(side)
            optimizer.zero_grad(set_to_none=True)  # those of the warm-up would stay beside the graph's
            self._result = self._capture(step)
        self._state = optimizer.state
        self._weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        self._addresses = self._addresses_now()

    def _capture(self, step):
        pool = torch.cuda.graph_pool_handle()
        try:
            return _captured(self._graph, step, self._x, pool)
        except BaseException:
            with contextlib.suppress(Exception):  # what went wrong first is what the user is to read
                self._end_what_the_capture_began(pool)
            raise

    def _end_what_the_capture_began(self, pool):
        """PyTorch does not where CUDA ends the capture with an error."""
        with contextlib.suppress(Exception):  # RuntimeError where it did; and it is PyTorch's own function
            # Else nothing frees the cache any more, not even for a lack of memory: a capture seems to be under way.
            torch.cuda.memory._cuda_endAllocateToPool(self._x.device.index, pool)
            torch.cuda.memory._cuda_releasePool(self._x.device.index, pool)  # a graph that has not ended does not
        # torch 2.11 leaves its generator in the midst of the capture, too, and draws from it only when one has ended.
        _captured(torch.cuda.CUDAGraph(), Tensor.clone, self._x, torch.cuda.graph_pool_handle())

    def _addresses_now(self):
        return [weight.data_ptr() for weight in self._weights]

    def __call__(self, x):
        checks.is_tensor("x", x)
        if (x.shape, x.dtype) != (self._x.shape, self._x.dtype):
            raise ValueError(f"x is {_describe(x)}, the captured example was {_describe(self._x)}: they must be equal")
        if self._optimizer.state is not self._state or self._addresses_now() != self._addresses:
            raise RuntimeError(
                "the graph writes to tensors that have been replaced since its capture, as model.to() and "
                "optimizer.load_state_dict() do: capture the step again"
            )
        if x.requires_grad:
            x = x.detach()  # or each x would be kept, with all that it was made of
        with torch.cuda.device(self._x.device):
            self._x.copy_(x, non_blocking=True)
            self._graph.replay()
        return self._result


def _captured(graph, step, x, pool):
    """What the step gave while `graph` recorded it, with its memory in the pool."""
    # A new stream: what cuBLAS works in on that of the warm-up lies outside the graph's memory, and may be freed.
    # PyTorch's own stream for captures is of the device that captured first. "thread_local": by default any thread ends
    # the capture by what is forbidden in one, as a DataLoader's does that page-locks memory (`pin_memory`). The outer
    # context is for a capture that fails, which PyTorch leaves without its own.
    capture = torch.cuda.graph(graph, pool=pool, stream=torch.cuda.Stream(), capture_error_mode="thread_local")
    with torch.cuda.stream(torch.cuda.current_stream()), capture:
        return step(x)


def _uncached_autocast(kind):
    """Autocast as it is on this kind of device, without its cache: the graph would take weights cast in the warm-up.

    Where it is off nothing is set: compiled code asks for such settings, and would be compiled again.
    """
    return torch.autocast(kind, cache_enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def _check_model(model):
    if not isinstance(model, nn.Module) or not callable(getattr(model, "loss", None)):
        raise TypeError(f"model is {type(model).__name__}: expected a module with a method loss(x), such as a VAE")


def _check_optimizer(optimizer):
    name = type(optimizer).__name__
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer is {name}: expected a torch.optim.Optimizer")
    for group in optimizer.param_groups:
        if not group.get("capturable", isinstance(optimizer, torch.optim.SGD)):
            raise ValueError(f"optimizer is {name} without capturable=True: expected one with it, or SGD")
        if "capturable" not in group and isinstance(group["lr"], Tensor) and not group["fused"]:
            raise ValueError(f"optimizer is {name}, which reads a tensor lr on the host: expected one with fused=True")


def _check_example(example, model):
    checks.is_tensor("example", example)
    if not example.is_cuda:
        raise RuntimeError(f"example is on {example.device}: capture_step needs a CUDA device")
    for name, parameter in model.named_parameters():
        if parameter.device != example.device:
            raise ValueError(
                f"example is on {example.device}, the model's {name} on {parameter.device}: they must be on one device"
            )


def _describe(tensor):
    return f"{checks.dtype_name(tensor.dtype)} {list(tensor.shape)}"
