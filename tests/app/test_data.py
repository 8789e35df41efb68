"""The digits, and a user's own file: what is read, and what is said of a file that does not hold images."""

import os

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from vae_fast.app import cli
from vae_fast.app.data import digits, load_images, split

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="data does not depend on the backend")


def saved(path, array):
    np.save(path, array)
    return path


def test_digits():
    data = digits()
    assert data.train.shape == (1438, 8, 8)
    assert data.test.shape == (359, 8, 8)
    assert data.train.dtype == torch.float32
    assert (data.train.min(), data.train.max()) == (0, 1)
    assert data.labels.shape == (359,)
    assert data.labels.unique().tolist() == list(range(10))
    torch.testing.assert_close(data.test, digits().test, rtol=0, atol=0)


def test_split_keeps_each_image_once_and_labels_with_their_images():
    images = torch.arange(50.0).view(50, 1, 1)
    data = split(images, torch.arange(50))
    assert sorted(torch.cat((data.train, data.test)).flatten().tolist()) == list(range(50))
    assert data.labels.tolist() == data.test.flatten().tolist()


def test_the_smallest_split():
    data = split(torch.zeros(2, 3, 3))
    assert (len(data.train), len(data.test), data.labels) == (1, 1, None)


SHAPES = [
    (5, 4, 6),  # grey
    (5, 1, 4, 6),  # one channel, first
    (5, 3, 4, 6),  # colour, channels first
    (5, 4, 6, 3),  # colour, channels last
]


@pytest.mark.parametrize("shape", SHAPES)
def test_float_images_stay_as_they_are(tmp_path, shape):
    array = np.random.default_rng(0).random(shape)
    images = load_images(saved(tmp_path / "a.npy", array))
    assert images.dtype == torch.float32
    np.testing.assert_array_equal(images.numpy(), array.astype(np.float32))


def test_bool_images_are_0_and_1(tmp_path):
    array = np.array([[[False, True]], [[True, True]]])
    assert load_images(saved(tmp_path / "a.npy", array)).tolist() == [[[0, 1]], [[1, 1]]]


def test_uint8_images_are_divided_by_255(tmp_path):
    array = np.array([[[0, 51]], [[102, 255]]], dtype=np.uint8)
    images = load_images(saved(tmp_path / "a.npy", array))
    torch.testing.assert_close(images, torch.tensor([[[0.0, 0.2]], [[0.4, 1.0]]]))


BAD_ARRAYS = [
    (np.zeros((4, 3, 3), np.int32), r"a.npy holds int32: expected uint8, bool or floating point pixels"),
    (np.ones((4, 3, 3), np.uint8), r"a.npy holds uint8 of 0 and 1 alone: expected 0 to 255, or bool"),
    (np.zeros((4, 3, 3), complex), r"a.npy holds complex128: expected uint8"),
    (np.array(["cat", "dog"]), r"a.npy holds <U3: expected uint8"),
    (np.zeros((4, 9)), r"a.npy has shape \[4, 9\]: expected images \[N, height, width\]"),
    (np.zeros((4, 5, 6, 7)), r"a.npy has shape \[4, 5, 6, 7\]: expected images .* with 1 or 3 channels"),
    (np.zeros((5, 2, 6, 4)), r"a.npy has shape \[5, 2, 6, 4\]: expected images .* with 1 or 3 channels"),
    (np.zeros((2, 1, 3, 4, 4)), r"a.npy has shape \[2, 1, 3, 4, 4\]: expected images"),
    (np.array(1.0), r"a.npy has shape \[\]: expected images"),
    (np.zeros((1, 3, 3)), r"a.npy has shape \[1, 3, 3\]: expected 2 images or more"),
    (np.zeros((4, 0, 3)), r"a.npy has shape \[4, 0, 3\]: expected 2 images or more, of 1 pixel or more"),
    (np.full((2, 3, 3), np.nan), r"a.npy has pixels that are NaN or infinite: expected finite ones"),
    (np.full((2, 3, 3), 1e300), r"a.npy has pixels that are NaN or infinite"),  # in float32
    (np.array([{}, {}]), r"a.npy is not a whole .npy file: expected an array of numbers by numpy.save"),
]


@pytest.mark.parametrize(("array", "message"), BAD_ARRAYS, ids=[message for _, message in BAD_ARRAYS])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_arrays_that_are_not_images(tmp_path, array, message):
    with pytest.raises(ValueError, match=message):
        load_images(saved(tmp_path / "a.npy", array))


def header(text):
    return b"\x93NUMPY\x01\x00\x76\x00" + text.ljust(118)


HUGE = header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 400, 400)}")


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 broken", b"P5 8 8 255", b"\x93NUMPY\x01\x00", header(b"{'descr' (((")],
)
def test_files_of_another_kind(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.npy is not a whole .npy file"):
        load_images(tmp_path / "a.npy")


def test_more_than_there_is_memory_for(tmp_path):
    """Which a whole file may hold, too: it must not be called a broken one."""
    (tmp_path / "a.npy").write_bytes(HUGE)
    with pytest.raises(MemoryError, match="Unable to allocate"):
        load_images(tmp_path / "a.npy")
    result = CliRunner().invoke(cli.app, ["train", "--data", str(tmp_path / "a.npy")])
    assert result.exit_code == 2
    assert "'--data': Unable to allocate" in result.output


def test_a_truncated_file(tmp_path):
    path = saved(tmp_path / "a.npy", np.zeros((4, 3, 3)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"a.npy is not a whole .npy file"):
        load_images(path)


def test_an_archive(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 3, 3)))
    with pytest.raises(ValueError, match=r"a.npz is an .npz archive: expected a .npy file with one array"):
        load_images(tmp_path / "a.npz")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a.npy cannot be read: No such file or directory"):
        load_images(tmp_path / "a.npy")
    with pytest.raises(IsADirectoryError, match=r"cannot be read: Is a directory"):
        load_images(tmp_path)
