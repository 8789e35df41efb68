"""The bytes that shared parameters and their gradients take: their own size for each row of tiles, and partial sums."""

import pytest
import torch

from tests.kernels.recording import bytes_moved, second_stage
from tests.kernels.sharing import Case
from tests.kernels.test_traffic_reconstruction import CPU, grads_of
from vae_fast import use_backend
from vae_fast.kernels import tiling

pytestmark = pytest.mark.interpreter_only

# layout -> (programs, numbers of the parameter that they read, partial sums of its gradient)
MOVED = {
    "one number": (3, 3, 3),  # a tile of 4096
    "one number, full tiles": (2, 2, 2),
    "one number, rows with a stride": (1, 1, 1),  # 8 rows of 256
    "one number, long samples": (3, 3, 3),
    "features": (3 * 3, 3 * 129, 3 * 129),  # tiles of 32 x 64, and so the next ones
    "features, full tiles": (2 * 2, 2 * 128, 2 * 128),
    "features, more than a tile's rows": (5, 4099, 4099),  # 2 rows of 1024
    "features, rows with a stride": (2, 2 * 12, 2 * 12),
    "the last of three dimensions": (1, 5 * 7, 5 * 7),
    "channels of 16 x 16": (3, 3 * 768, 3 * 3),  # 2 rows of 1024
    "channels of 8 x 8, full tiles": (4, 4, 4),  # 32 x 64: each tile has one number
    "channels of 33 x 32": (4, 4 * 2112, 4 * 66),  # as 66 x 32 no tile would be full: a row of 4096
    "channels of 32 x 96": (2 * 6, 2 * 6, 2 * 6),  # 2 rows of 1024
    "channels of 7 x 7": (1, 3 * 49, 3 * 49),  # 49 is odd: 8 rows of 256
    "channels, channels_last": (1, 216, 216),
}


@pytest.fixture(autouse=True)
def _triton():
    with use_backend("triton"):
        yield


def first_stage(case, read, sums, **others):
    size = 4 * case.target.numel()
    moved = {"parameters[0][0]": ("load", size), "parameters[1][0]": ("load", 4 * read), "target[0]": ("load", size)}
    moved |= {"grads[0][0]": ("store", size), "grads[1][0]": ("store", 4 * sums), **others}
    return {("_reconstruct", name, kind): count for name, (kind, count) in moved.items()}


@pytest.mark.parametrize("layout", MOVED)
def test_a_scalar_loss(layout):
    case = Case(layout, CPU)
    programs, read, partials = MOVED[layout]
    table, loss = bytes_moved(case.loss)
    first = first_stage(case, read, partials, partials=("store", 4 * programs))
    assert table == first | second_stage((4 * programs, 4), (4 * partials, 4 * case.params[1].numel()))
    scaling = 4 * tiling.ceil_div(case.target.numel(), tiling.FLAT_TILE)
    assert grads_of(loss, case) == {("_scale", "scalars[1]", "load"): scaling}


@pytest.mark.parametrize("layout", ["one number, rows with a stride", "features", "channels of 7 x 7"])
def test_a_loss_a_sample(layout):
    case = Case(layout, CPU)
    programs, read, partials = MOVED[layout]
    loss = case.loss("sample")
    columns = tiling.ceil_div(programs, tiling.ceil_div(len(case.target), 32))  # that the tiles of a row are
    upstream = ("load", 4 * len(case.target) * columns)
    first = first_stage(case, read, partials, **{"upstream[0]": upstream})
    second = second_stage((4 * partials, 4 * case.params[1].numel()))
    assert grads_of(loss, case, torch.ones_like(loss)) == first | second


def test_an_upstream_gradient_of_2_moves_each_gradient_twice():
    case = Case("features", CPU)
    table = grads_of(case.loss(), case, torch.tensor(2.0))
    for k, param in enumerate(case.params):
        for kind in ("load", "store"):
            assert table.pop(("_scale", f"grads[{k}]", kind)) == 4 * param.numel()
    assert table == {("_scale", "scalars[1]", "load"): 4 * 3}


def test_elbo_loss():
    case = Case("one number", CPU)
    kl = torch.rand(67, requires_grad=True)
    table, _ = bytes_moved(lambda: case.elbo(kl, 1.0))
    first = first_stage(case, 3, 3, partials=("store", 4 * 3))
    second = second_stage((4 * 3, 4), (4 * 67, 4), (4 * 3, 4), kernel="_total")
    assert table == first | second | {("_total", "total", "store"): 4}


@pytest.mark.parametrize("layout", ["samples", "two dimensions"])
def test_the_gradient_of_any_other_shape_is_made_for_every_element(layout):
    case = Case(layout, CPU)
    table, _ = bytes_moved(case.loss)
    assert table["_reconstruct", "grads[1][0]", "store"] == 4 * case.target.numel()
