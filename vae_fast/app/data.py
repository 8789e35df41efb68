"""Images as tensors: the digits that come with scikit-learn, or a user's own array."""

import os
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from vae_fast.extras import import_extra

TEST_FRACTION = 0.2


class Split(NamedTuple):
    """Images for training and for testing, float32, one sample along dimension 0.

    labels: the class of each test image, int64 [len(test)], or None where it is not known.
    """

    train: Tensor
    test: Tensor
    labels: Tensor | None


def digits() -> Split:
    """The 1,797 handwritten digits that come with scikit-learn: 8 x 8 pixels in [0, 1], split the same way each time.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    bunch = import_extra("sklearn.datasets").load_digits()
    return split(torch.from_numpy(bunch.images / 16).float(), torch.from_numpy(bunch.target))


def split(images: Tensor, labels: Tensor | None = None) -> Split:
    """Shuffle with a fixed seed, and keep a fifth for testing."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order.tensor_split([max(1, round(TEST_FRACTION * len(images)))])
    return Split(images[train], images[test], None if labels is None else labels[test])


def load_images(path: str | os.PathLike) -> Tensor:
    """Read images from a `.npy` file.

    The array is [N, height, width], or has 1 or 3 channels, either before or after height and width.
    Pixels that are uint8 are divided by 255; those that are bool or floating point stay as they are, as float32.

    Raises:
        OSError: the file is not there or cannot be read.
        ValueError: it is not a `.npy` file, or does not hold images, or its uint8 are 0 and 1 alone.
        MemoryError: it holds, or says that it holds, more than there is memory for.
    """
    array = _read(Path(path))
    if array.dtype not in (np.uint8, np.bool_) and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{path} holds {array.dtype}: expected uint8, bool or floating point pixels")
    has_channels = array.ndim == 4 and (array.shape[1] in (1, 3) or array.shape[3] in (1, 3))
    if array.ndim != 3 and not has_channels:
        raise ValueError(
            f"{path} has shape {list(array.shape)}: "
            "expected images [N, height, width], or [N, ...] with 1 or 3 channels before or after height and width"
        )
    if len(array) < 2 or array.size == 0:
        raise ValueError(f"{path} has shape {list(array.shape)}: expected 2 images or more, of 1 pixel or more")
    if array.dtype == np.uint8 and array.max() <= 1:  # divided by 255 they would all be black
        raise ValueError(f"{path} holds uint8 of 0 and 1 alone: expected 0 to 255, or bool for pixels on or off")
    images = torch.from_numpy(array.astype(np.float32))
    if not images.isfinite().all():
        raise ValueError(f"{path} has pixels that are NaN or infinite: expected finite ones")
    return images / 255 if array.dtype == np.uint8 else images


def _read(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, BadZipFile, TokenError) as error:
        # Another format, or truncated, or Python objects; or a header that is not Python.
        raise ValueError(f"{path} is not a whole .npy file: expected an array of numbers by numpy.save") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an .npz archive: expected a .npy file with one array")
    return array
