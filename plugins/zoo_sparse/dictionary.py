"""Learning the dictionary from patches of training images, by scikit-learn's online algorithm (Mairal et al. 2009).

Sampling, which the thesis does not describe and the code does by shuffling all patches: `count` patches, each of an
image and a place on the stride grid that are drawn uniformly and independently; raw pixels / 255, no mean removed, no
whitening, no augmentation. They are met once, in mini-batches of five: scikit-learn 0.22, which the authors used,
counted mini-batches in `n_iter`, so 1,000 iterations saw 5,000 patches; newer versions count epochs. For Imagenette the
code cuts random crops of 160 pixels and flips them; here the images are those of the data set.

Measured on CIFAR-10 as JPEG with scikit-learn 1.9: L1 norms 5.03 / 6.60 / 6.93 (least, median, largest), 99 % of the
atoms almost constant, median nearest-atom coherence 0.985. The authors' dictionary: 4.72 / 6.48 / 6.93, 68 %, 0.976.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zoo.data import Data
from zoo.errors import ContractError, MissingExtra, ZooError
from zoo_sparse.encoder import SparseEncoder, encoders

BATCH = 5
CHUNK = 256  # images that are decoded at a time


def cifar(model: nn.Module, data: Data, *, seed: int) -> None:
    """`learn` as for CIFAR-10: lambda 1, 1,000 mini-batches."""
    learn(model, data, seed=seed, penalty=1.0, iterations=1000)


def imagenette(model: nn.Module, data: Data, *, seed: int) -> None:
    """`learn` as for Imagenette: lambda 0.5, 10,000 mini-batches."""
    learn(model, data, seed=seed, penalty=0.5, iterations=10000)


def quick(model: nn.Module, data: Data, *, seed: int) -> None:
    """`learn` with 100 mini-batches and lambda 0.5, for digits and tests."""
    learn(model, data, seed=seed, penalty=0.5, iterations=100)


def learn(model: nn.Module, data: Data, *, seed: int, penalty: float, iterations: int) -> None:
    """Learn the dictionary of the model's encoder, in place.

    Args:
        model: with a sparse encoder.
        data: training images, whose labels are not used.
        seed: of the sampling and of the algorithm.
        penalty: lambda of the L1 norm of the codes.
        iterations: mini-batches of five patches.

    Raises:
        ContractError: the model has no encoder, or the images do not fit it.
        ZooError: with the new dictionary no training patch has a coefficient above the threshold.
        MissingExtra: scikit-learn is not installed.
    """
    encoder = encoder_of(model)
    patches = sample_patches(encoder, data, iterations * BATCH, seed)
    atoms = torch.from_numpy(_learned(patches.flatten(1).numpy(), encoder.atoms, penalty, seed))
    atoms = atoms.view(encoder.atoms, *patches.shape[1:])
    strongest = (patches.flatten(1) @ atoms.flatten(1).T).abs() / atoms.abs().sum((1, 2, 3))
    if float(strongest.max()) < encoder.threshold:
        raise ZooError(
            f"no patch of {data.name} passes the threshold of {encoder.threshold:.3g}: every code would be empty; "
            f"lower beta={encoder.beta:g}"
        )
    with torch.no_grad():
        encoder.dictionary.copy_(atoms.to(encoder.dictionary))


def encoder_of(model: nn.Module) -> SparseEncoder:
    """The encoder of a model.

    Raises:
        ContractError: it has none.
    """
    found = encoders(model)
    if not found:
        raise ContractError(
            f"{type(model).__name__} has no sparse encoder; take sparse-resnet32, for example"
        )
    return found[0]


def sample_patches(encoder: SparseEncoder, data: Data, count: int, seed: int) -> Tensor:
    """`count` patches `[count,C,n,n]` in [0,1] as the head of this file says."""
    encoder.check(data.batch(torch.tensor([0])))
    channels, height, width = data.shape
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(data), (count,), generator=draw)
    places = [torch.randint(encoder.side(size), (count,), generator=draw) for size in (height, width)]
    tops, lefts = (place * encoder.stride for place in places)
    n = encoder.patch
    patches = torch.empty(count, channels, n, n)
    for images, found in _images(data, rows):
        for place, image in zip(found.tolist(), images, strict=True):
            top, left = int(tops[place]), int(lefts[place])
            patches[place] = image[:, top : top + n, left : left + n].float() / 255
    return patches


def _images(data: Data, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and the places in `rows` where they are wanted; each image is decoded once."""
    for places in rows.argsort(stable=True).split(CHUNK):
        unique, where = rows[places].unique(return_inverse=True)
        yield data.batch(unique)[where].cpu(), places


def _learned(patches: NDArray[np.float32], atoms: int, penalty: float, seed: int) -> NDArray[np.float32]:
    """Atoms `[atoms,n]` of unit L2 norm; one that the algorithm left at zero becomes a patch."""
    try:
        from sklearn.decomposition import MiniBatchDictionaryLearning
    except ImportError:
        raise MissingExtra("data", "learning a dictionary") from None
    learner = MiniBatchDictionaryLearning(
        n_components=atoms, alpha=penalty, batch_size=BATCH, max_iter=1, shuffle=False, random_state=seed,
        tol=0.0, max_no_improvement=None,
    )  # fmt: skip
    found = np.asarray(learner.fit(patches.astype(np.float64)).components_)
    norms = np.linalg.norm(found, axis=1)
    spare = np.random.default_rng(seed).permutation(len(patches))
    bright = [row for row in spare if np.linalg.norm(patches[row]) > 1e-6]
    for place, atom in enumerate(np.flatnonzero(norms < 1e-8)):
        if not bright:
            raise ZooError("all patches of the training images are black; a dictionary cannot be learned")
        found[atom] = patches[bright[place % len(bright)]]
    unit: NDArray[np.float32] = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return unit
