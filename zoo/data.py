"""Data sets, held in memory or decoded on demand, and whether they fit a model."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from zoo import progress
from zoo.arrays import arrays_sha256 as arrays_sha256
from zoo.arrays import as_labels as as_labels
from zoo.arrays import as_pixels as as_pixels
from zoo.arrays import check_range, describe
from zoo.augment import Augmentation as Augmentation
from zoo.augment import augment as augment
from zoo.errors import UnknownName, ZooError, unknown
from zoo.grammar import parse_call
from zoo.registry import registry
from zoo.spec import Dataset, resolve

CHUNK = 1024  # images that are decoded between two reports of progress

_root: ContextVar[str | Path | None] = ContextVar("root", default=None)


class Stream(Protocol):
    """Images that are decoded when they are asked for; `zoo.images.ImageFiles` is one."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image; H and W are 0 where images differ in size and come one by one."""

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int]) -> Tensor:
        """uint8 `[n,C,H,W]`, the same at every call and from every thread."""

    def select(self, rows: Sequence[int]) -> Stream:
        """Some of the images, in the order of `rows`."""

    def sha256(self) -> str:
        """A digest, in hex, of what decides the pixels."""


@dataclass(frozen=True, eq=False)
class Data:
    """A split of a data set, in memory (`lazy` is False) or decoded on demand (`lazy` is True).

    `source` is uint8 `[N,C,H,W]` or a `Stream`; `labels` is int64 `[N]` in 0..num_classes-1, or None where
    there are none. `load_data(name, ...)` gives the same data again.
    """

    source: Tensor | Stream
    labels: Tensor | None
    name: str
    num_classes: int

    def __len__(self) -> int:
        return len(self.source)

    @property
    def lazy(self) -> bool:
        """Whether images are decoded when they are asked for."""
        return not isinstance(self.source, Tensor)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image; H and W are 0 where images differ in size: then `batch` takes one row."""
        channels, height, width = self.source.shape[-3:]
        return channels, height, width

    @property
    def images(self) -> Tensor:
        """All images, uint8 `[N,C,H,W]`; those of a lazy set are decoded anew at every use of this.

        Raises:
            ZooError: a lazy set that would fill more than half of the machine's memory.
        """
        return self.source if isinstance(self.source, Tensor) else self._decode(range(len(self)), 1)

    def batch(self, rows: Tensor) -> Tensor:
        """Some images, uint8 `[n,C,H,W]`, the same at every call; a lazy set may be asked from any thread.

        Args:
            rows: int64 `[n]`, in any order, on any device.

        Returns:
            A tensor where the images are: on the CPU for a lazy set.

        Raises:
            ZooError: an image of a lazy set cannot be decoded; the message names the file.
        """
        if isinstance(self.source, Tensor):
            return self.source[rows.to(self.source.device)]
        return self.source.batch(rows.tolist())

    def pixels(self, index: slice | Tensor = slice(None)) -> Tensor:
        """The images of `index` as the tensor contract wants them: float32 in [0,1].

        Raises:
            ZooError: as `images` and `batch`.
        """
        if isinstance(self.source, Tensor):
            return self.source[index].float().div_(255)
        return self._decode(torch.arange(len(self))[index].tolist(), 4).float().div_(255)

    def _decode(self, rows: Sequence[int], size: int) -> Tensor:
        """The images of a stream, if they fit into memory with `size` bytes per number."""
        assert not isinstance(self.source, Tensor)
        if 0 in self.shape:
            raise ZooError(
                f"the images of {self.name} differ in size and only come one by one: data.batch(rows)"
            )
        need, memory = len(rows) * size * int(np.prod(self.shape)), _memory()
        if memory is not None and need > memory / 2:
            raise ZooError(
                f"{len(rows)} images of {self.name} need {need / 2**30:.1f} GiB, this machine has "
                f"{memory / 2**30:.1f}; take fewer: -n 1000, data.subset(1000) or data.batch(rows)"
            )
        images = torch.empty(len(rows), *self.shape, dtype=torch.uint8)
        with progress.show(f"decoding {self.name}"):
            for start in range(0, len(rows), CHUNK):
                part = rows[start : start + CHUNK]
                images[start : start + len(part)] = self.source.batch(part)
                progress.report(start + len(part), len(rows))
        return images

    def select(self, rows: Tensor) -> Data:
        """The images and labels of `rows` (int64 `[n]`), in that order, as a data set of the same name."""
        source = self.batch(rows) if isinstance(self.source, Tensor) else self.source.select(rows.tolist())
        return replace(self, source=source, labels=self._labels(rows))

    def _labels(self, index: slice | Tensor) -> Tensor | None:
        return None if self.labels is None else self.labels[index]

    def subset(self, n: int) -> Data:
        """The first `n` images.

        Raises:
            ZooError: there are not that many, or `n` is below 1.
        """
        if not 1 <= n <= len(self):
            raise ZooError(f"n={n} images of {self.name} cannot be had; it has {len(self)}")
        if isinstance(self.source, Tensor):  # a view: no pixel is copied
            return replace(self, source=self.source[:n], labels=self._labels(slice(n)))
        return self.select(torch.arange(n))

    def split(self, count: int, seed: int = 0) -> tuple[Data, Data]:
        """Put `count` images aside: `(rest, held)`, disjoint, together everything, each in the old order.

        The draw depends on `seed`, `count` and the number of images only; classes are not balanced.

        Raises:
            ZooError: not at least one image would be in each part.
        """
        if not 1 <= count < len(self):
            raise ZooError(f"{count} of the {len(self)} images of {self.name} cannot be held out")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        held, rest = order[:count].sort().values, order[count:].sort().values
        return self.select(rest), self.select(held)

    @cached_property
    def sha256(self) -> str:
        """A digest in hex, the same on every machine.

        Of a set in memory that of the arrays (shapes, pixels, labels); of a lazy set that of the files' names
        and sizes, what is done to them, and the labels: an edit that leaves a file's size goes unseen.
        """
        if isinstance(self.source, Tensor):
            return arrays_sha256(self.source, self.labels)
        labels = "none" if self.labels is None else arrays_sha256(self.labels, None)
        return hashlib.sha256(f"{self.source.sha256()} {labels}".encode()).hexdigest()


def _memory() -> int | None:
    """The bytes of memory of this machine; None where that cannot be asked."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def data_root(root: str | Path | None = None) -> Path | None:
    """The folder of local data: `root`, else that of `use_root`, else `ZOO_DATA`'s, else None.

    It need not exist.
    """
    value = root or _root.get() or os.environ.get("ZOO_DATA")
    return Path(value).expanduser() if value else None


@contextlib.contextmanager
def use_root(root: str | Path | None) -> Iterator[None]:
    """Inside, `root` is the folder of local data for whoever names none; None changes nothing.

    It serves attacks that bring images of their own, whose arguments are those of any attack.
    """
    token = _root.set(root or _root.get())
    try:
        yield
    finally:
        _root.reset(token)


def load_data(
    dataset: str | Dataset,
    split: str,
    *,
    root: str | Path | None = None,
    input_size: tuple[int, int, int] | None = None,
) -> Data:
    """Load one split of a data set.

    Args:
        dataset: a registered name, a call with parameters such as "folder(size=64)", or a spec.
        split: "train" or "test" (a data set may have others).
        root: the folder of local data; None takes that of `use_root`, then `ZOO_DATA`. Data sets that ship
            with a library need none.
        input_size: (C, H, W) that the model takes, for data sets that adapt to it; see `declared_shape`.

    Raises:
        UnknownName, AmbiguousName: nobody, or two plugins, registered the name; or it has no such parameter.
        ZooError: the data cannot be found or read, or is not what its spec says.
        MissingExtra: a library that reads it is not installed.
    """
    params: dict[str, Any] = {}
    if isinstance(dataset, Dataset):
        spec = dataset
    elif "(" in dataset:
        call = parse_call(dataset)
        spec, params = registry().dataset(call.name), call.params
    else:
        spec = registry().dataset(dataset)
    load = resolve(spec.load)
    known = set(inspect.signature(load).parameters) - {"split", "root"}
    for key in params:
        if key not in known or key == "input_size":
            raise _no_parameter(spec.name, key, known - {"input_size"})
    own = {"input_size": input_size} if "input_size" in known else {}
    found = load(split, data_root(root), **params, **own)
    if isinstance(found, Data):
        return _check(spec, split, found, fixed=not params)
    images, labels = found
    arrays = Data(_tensor(images), None if labels is None else _tensor(labels), spec.name, spec.num_classes)
    return _check(spec, split, arrays, fixed=True)


def _no_parameter(name: str, key: str, known: set[str]) -> UnknownName:
    if known:
        return unknown(f"parameter of {name}", key, known)
    return UnknownName(f"the data set {name} takes no parameters, not {key!r}")


def _tensor(array: Any) -> Tensor:
    return array if isinstance(array, Tensor) else torch.from_numpy(np.ascontiguousarray(array))


def _check(spec: Dataset, split: str, data: Data, fixed: bool) -> Data:
    """Refuse data that is not what `spec` promises; a wrong set must not become a wrong number."""
    what = f"data set {spec.name} ({split})"
    source, labels = data.source, data.labels
    if isinstance(source, Tensor):
        seen = describe(source)
        if source.dtype != torch.uint8 or source.dim() != 4 or not len(source):
            raise ZooError(f"{what}: images are {seen}, not uint8 [N,C,H,W] with N > 0")
    else:
        seen = f"{list(data.shape)} each"
    if fixed and spec.input_size is not None and data.shape != tuple(spec.input_size):
        raise ZooError(f"{what}: images are {seen}, but its spec says {list(spec.input_size)}")
    if spec.target == "label" and labels is None:
        raise ZooError(f"{what}: it has no labels, but its spec says it has")
    if labels is not None:
        if labels.dtype != torch.int64 or tuple(labels.shape) != (len(data),):
            raise ZooError(f"{what}: labels are {describe(labels)}, not int64 [{len(data)}]")
        check_range(labels, data.num_classes, what, ZooError)
    if spec.num_classes and data.num_classes != spec.num_classes:
        raise ZooError(f"{what}: it has {data.num_classes} classes, but its spec says {spec.num_classes}")
    return data


def declared_shape(model: nn.Module) -> tuple[int, int, int] | None:
    """(C, H, W) that a model's timm configuration declares, with the channels of its first layer.

    None where it declares none, as models that timm did not build.
    """
    cfg = getattr(model, "pretrained_cfg", None)
    shape = cfg.get("input_size") if isinstance(cfg, Mapping) else None
    if cfg is None or shape is None or len(shape) != 3:
        return None
    # timm leaves the configuration as it is when in_chans= is given; the first layer knows better.
    name = cfg.get("first_conv")
    first = dict(model.named_modules()).get(name) if isinstance(name, str) else None
    channels = first.in_channels if isinstance(first, nn.Conv2d) else int(shape[0])
    return channels, int(shape[1]), int(shape[2])


def check_fits(
    data: Data,
    in_chans: int,
    num_classes: int,
    input_size: Sequence[int] | None = None,
    model: str = "the model",
) -> None:
    """Refuse a data set that does not fit a classifier, before anything is computed.

    Args:
        data: with labels or without; only labelled data has classes to compare.
        in_chans: channels that the model takes.
        num_classes: logits that it gives.
        input_size: (H, W) or (C, H, W) that it takes; None for one that takes every size.
        model: its name, for the message.

    Raises:
        ZooError: one line with the first thing that differs and what to do.
    """
    channels, height, width = data.shape
    if channels != in_chans:
        raise ZooError(
            f"{data.name} has images of {_count(channels, 'channel')}, {model} takes {in_chans}; "
            f"build it with in_chans={channels} or take another data set"
        )
    if data.labels is not None and data.num_classes != num_classes:
        raise ZooError(
            f"{data.name} has {_count(data.num_classes, 'class')}, {model} gives {num_classes} logits; "
            f"build it with num_classes={data.num_classes} or take another data set"
        )
    if input_size is not None and (height, width) != tuple(input_size[-2:]):
        raise ZooError(
            f"{data.name} has images of {height}x{width} pixels, {model} takes "
            f"{input_size[-2]}x{input_size[-1]}; take a data set of that size, or one with size=, as folder"
        )


def check_images(data: Data, channels: int, model: str = "the model") -> None:
    """Refuse a data set whose images are neither targets nor pairs for a denoiser (`zoo.spec.Dataset`).

    Args:
        data: the set.
        channels: that the model takes and gives.
        model: its name, for the message.

    Raises:
        ZooError: one line with what differs and what to do.
    """
    found = data.shape[0]
    if found not in (channels, 2 * channels):
        raise ZooError(
            f"{data.name} has images of {_count(found, 'channel')}, {model} takes {channels} (or pairs of "
            f"{2 * channels}); take a model of {_count(found, 'channel')} or another data set"
        )


def _count(number: int, what: str) -> str:
    plural = what + ("es" if what.endswith("s") else "s")
    return f"{number} {what if number == 1 else plural}"
