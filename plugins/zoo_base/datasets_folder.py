"""Data sets that are folders of image files, one sub-folder per class: `folder`, `imagenette`, `imagenet`, `imgnet10`.

They are lazy: files are listed now and decoded when they are used. In every split the first file of each class
comes first, then the second of each, and so on, so that the first n images are as balanced as can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch

from zoo.data import Data
from zoo.errors import ZooError, unknown
from zoo.grammar import Call
from zoo.images import ImageFiles, Transform, common_size, find_images
from zoo_base.dataset_specs import IMAGENETTE, IMGNET10
from zoo_base.datasets_parquet import check_split

SPLITS = {"train": ("train",), "test": ("test", "val", "validation", "valid")}
IMAGENET_PLACES = ("imagenet", "ILSVRC/Data/CLS-LOC", "imagenet/ILSVRC/Data/CLS-LOC", "")
IMAGENET_CLASSES = 1000
IMAGENET_LEAST = 732  # training images of the smallest synset of ILSVRC 2012 (the largest have 1,300)
IMGNET10_TEST, IMGNET10_TRAIN = 300, 3000  # of each class
VARIANTS = {"160": "imagenette2-160", "320": "imagenette2-320", "full": "imagenette2"}
URL = "https://s3.amazonaws.com/fast-ai-imageclas"
LAYOUT = "DIR/train/<class>/*.jpg and DIR/test/<class>/*.jpg"

Shape = tuple[int, int, int]


def folder(
    split: str,
    root: Path | None = None,
    *,
    input_size: Shape | None = None,
    size: int | None = None,
    channels: int | None = None,
    fit: str = "crop",
    crop: float = 1.0,
    interpolation: str = "bilinear",
) -> Data:
    """Any folder of images: `root/train/<class>/` and `root/test/<class>/` (or val, validation, valid).

    A root that holds the class folders themselves is a test split. Classes are numbered in the order of
    their names, those of train where there is a train folder. Files may lie in sub-folders of a class.

    Args:
        split: "train" or "test".
        root: the folder.
        input_size: (C, H, W) of the model, taken where `size` and `channels` are not given.
        size: side of the square that images become; without it and a model's, all must be of one size.
        channels: 1 or 3; without it and a model's, 3.
        fit, crop, interpolation: see `zoo.images.Transform`.

    Raises:
        UnknownName: no such split, fit or interpolation.
        ZooError: no such folder; no class folders, or only one; a class of test that train has not; no
            images; images of different sizes and none to bring them to.
    """
    root = _existing(root, "the images", "")
    check_split(split)
    places = {name: _first(root, SPLITS[name]) for name in SPLITS}
    place = places[split]
    if place is None:
        if split == "train" or any(places.values()):
            raise ZooError(f"{root} has no folder {' or '.join(SPLITS[split])}; set it up as {LAYOUT}")
        place = root
    classes = _class_folders(places["train"] or place)
    if len(classes) < 2:
        raise ZooError(_too_few(places["train"] or place, classes))
    if strange := sorted(set(_class_folders(place)) - set(classes)):
        raise ZooError(f"{place / strange[0]}: train has no class {strange[0]!r}, only {_some(classes)}")
    files = _files(place, [[name] for name in classes], least=int(split == "train"))
    shape = _shape(size, channels, input_size)
    if shape is None:
        height, width = common_size(place, [name for names in files for name in names])
        shape = (3 if channels is None else channels, height, width)
    return _data("folder", place, files, Transform(shape, fit, crop, interpolation), Transform((3, 1, 1)))


def imagenette(
    split: str,
    root: Path | None = None,
    *,
    variant: int | str = 160,
    size: int | None = None,
    fit: str = "crop",
    crop: float = 1.0,
    interpolation: str = "bilinear",
) -> Data:
    """Imagenette, version 2 (9,469 and 3,925 images of ten classes of ImageNet): `train/<wnid>`, `val/<wnid>`.

    Args:
        split: "train", or "test", which is the validation set.
        root: the folder that holds `imagenette2-160` (or -320, or `imagenette2`), or that folder itself.
        variant: 160 or 320, the shorter side of the files, or "full".
        size: side of the square that is cut out, 160 unless given.
        fit, crop, interpolation: see `zoo.images.Transform`. By default files of the variant 160 are not
            scaled: the square of the shorter side is cut out of their centre.

    Raises:
        UnknownName, ZooError: as `folder`.
    """
    if str(variant) not in VARIANTS:
        raise unknown("variant of imagenette", str(variant), VARIANTS)
    name = VARIANTS[str(variant)]
    root = _existing(root, "the images of imagenette", remedy := f"curl -L {URL}/{name}.tgz | tar -xz -C DIR")
    bases = [root / "imagenette", root]
    found = [base / name for base in bases if (base / name).is_dir()] + [root] * (root.name == name)
    if not found:
        other = [base / sub for base in bases for sub in VARIANTS.values() if (base / sub).is_dir()]
        seen = f", only {other[0].name}" if other else ""
        raise ZooError(f"{root} has no folder {name}{seen}; fetch it with '{remedy}', DIR being that folder")
    place = _split_of(found[0], split)
    _check_classes(place, list(IMAGENETTE), "imagenette")
    files = _files(place, [[wnid] for wnid in IMAGENETTE])
    default = Transform((3, 160, 160))
    transform = Transform(_shape(size, 3, default.shape) or default.shape, fit, crop, interpolation)
    params = {} if str(variant) == "160" else {"variant": variant}
    return _data("imagenette", place, files, transform, default, params)


def imagenet(
    split: str,
    root: Path | None = None,
    *,
    input_size: Shape | None = None,
    size: int | None = None,
    fit: str = "crop",
    crop: float = 0.875,
    interpolation: str = "bilinear",
) -> Data:
    """ImageNet (ILSVRC 2012) as `train/<wnid>` and `val/<wnid>`, below `root` or `root/imagenet`.

    Args:
        split: "train", or "test", which is the validation set: that of the challenge has no labels.
        root: the folder.
        input_size: (C, H, W) of the model, taken where `size` is not given; without both 224x224.
        size: side of the square that images become.
        fit, crop, interpolation: see `zoo.images.Transform`; by default the shorter side becomes 256 and the
            224 in the middle are kept.

    Raises:
        UnknownName, ZooError: as `folder`; or not 1,000 class folders, by whose order classes are numbered.
    """
    place = _split_of(_imagenet(root), split)
    classes = _class_folders(place)
    if len(classes) != IMAGENET_CLASSES:
        raise ZooError(
            f"{place} holds {len(classes)} class folders, imagenet has {IMAGENET_CLASSES:,}; sort the images into "
            "<wnid>/ folders, or read a part of it with --data folder"
        )
    transform = Transform(_shape(size, None, input_size) or (3, 224, 224), fit, crop, interpolation)
    files = _files(place, [[wnid] for wnid in classes])
    return _data("imagenet", place, files, transform, Transform((3, 224, 224), crop=0.875))


def imgnet10(
    split: str,
    root: Path | None = None,
    *,
    size: int = 128,
    fit: str = "stretch",
    crop: float = 1.0,
    interpolation: str = "bilinear",
) -> Data:
    """ImgNet10 (Yan, thesis, section 3.3 and table 3.6): ten classes of three synsets of ImageNet each.

    The thesis took 3,000 training and 300 test images per class and resized them to 128x128; which images,
    and how they were resized, it does not say. Here both splits come from ImageNet's training images (of the
    others there are 150 per class): with the files of a class's three synsets taken in turn by name, the first
    300 are the test images and the next 3,000 the training images. Both sides are scaled to 128.

    Args:
        split: "train" or "test".
        root: the folder of ImageNet (see `imagenet`); of it `train/` with these 30 synsets is enough.
        size, fit, crop, interpolation: see `zoo.images.Transform`.

    Raises:
        UnknownName, ZooError: as `folder`; or a synset is missing or has fewer images than any of ImageNet's.
    """
    check_split(split)
    place = _split_of(_imagenet(root), "train")
    _check_classes(place, list(chain.from_iterable(IMGNET10.values())), "imgnet10", others=True)
    files = _files(place, list(IMGNET10.values()), least=IMAGENET_LEAST)
    part = slice(IMGNET10_TEST) if split == "test" else slice(IMGNET10_TEST, IMGNET10_TEST + IMGNET10_TRAIN)
    transform = Transform((3, size, size), fit, crop, interpolation)
    default = Transform((3, 128, 128), fit="stretch")
    return _data("imgnet10", place, [found[part] for found in files], transform, default)


def _existing(root: Path | None, what: str, remedy: str) -> Path:
    fetch = f"fetch it with '{remedy}' and " if remedy else ""
    if root is None:
        raise ZooError(f"where {what} lie is not known; {fetch}pass --data-root DIR (or set ZOO_DATA=DIR)")
    if not root.is_dir():
        raise ZooError(f"{root} is no folder; {fetch}set --data-root or ZOO_DATA to that of {what}")
    return root


def _imagenet(root: Path | None) -> Path:
    """The folder that holds ImageNet's `train` or `val`."""
    root = _existing(root, "the images of ImageNet", "")
    for place in IMAGENET_PLACES:
        if (root / place / "train").is_dir() or (root / place / "val").is_dir():
            return root / place
    raise ZooError(
        f"{root} has neither train/ nor val/, nor has {root / 'imagenet'}; get the images from "
        "https://image-net.org/download (an account is needed) and set them up as DIR/imagenet/train/<wnid>/*.JPEG"
    )


def _split_of(base: Path, split: str) -> Path:
    """`train`, or `val` for the test split."""
    place = base / {"train": "train", "test": "val"}[check_split(split)]
    if not place.is_dir():
        raise ZooError(f"{base} has no folder {place.name}, which holds the {split} images; fetch that too")
    return place


def _first(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _class_folders(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.name[0] != "." and path.is_dir())


def _too_few(place: Path, classes: list[str]) -> str:
    seen = f"holds one class folder, {classes[0]}" if classes else "holds no class folders"
    return f"{place} {seen}; at least two are needed, set it up as {LAYOUT}"


def _check_classes(place: Path, wanted: Sequence[str], name: str, others: bool = False) -> None:
    """Refuse a folder that lacks one of the classes, or has others where there should be none."""
    found = _class_folders(place)
    if missing := sorted(set(wanted) - set(found)):
        raise ZooError(f"{place} lacks the class folders {_some(missing)} of {name}; fetch them")
    if not others and len(found) > len(wanted):
        strange = sorted(set(found) - set(wanted))
        raise ZooError(f"{place} holds {_some(strange)}, which {name} has not; read it with --data folder")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _files(place: Path, classes: Sequence[Sequence[str]], least: int = 1) -> list[list[str]]:
    """The files of every class, relative to `place`; those of a class's several folders are taken in turn.

    Raises:
        ZooError: a folder has fewer than `least` images, or (also where that is 0) none has any.
    """
    found = []
    for folders in classes:
        below = [[f"{name}/{file}" for file in find_images(place / name)] for name in folders]
        for name, files in zip(folders, below, strict=True):
            if len(files) < least:
                raise ZooError(
                    f"{place / name} holds {len(files)} image files (.jpg, .png, ...); at least {least} are needed"
                )
        found.append([file for file, _ in _in_turn(below)])
    if not any(found):
        raise ZooError(f"the class folders of {place} hold no image files (.jpg, .png, ...)")
    return found


def _in_turn(lists: Sequence[Sequence[str]]) -> list[tuple[str, int]]:
    """The first of every list, then the second, and so on, each with the number of its list."""
    rows = zip_longest(*lists)
    return [(name, number) for row in rows for number, name in enumerate(row) if name is not None]


def _shape(size: int | None, channels: int | None, input_size: Shape | None) -> Shape | None:
    """What is given, completed by what the model takes; None where nobody names a size."""
    if channels is None:
        channels = input_size[0] if input_size else 3
    if size is not None:
        return (channels, size, size)
    return (channels, *input_size[1:]) if input_size else None


def _data(
    name: str,
    place: Path,
    files: Sequence[Sequence[str]],
    transform: Transform,
    default: Transform,
    params: dict[str, Any] | None = None,
) -> Data:
    """A lazy data set under the name by which `load_data` finds it again, with all that is not default."""
    shown: dict[str, Any] = dict(params or {})
    channels, height, width = transform.shape
    if transform.shape[1:] != default.shape[1:] and height == width:
        shown["size"] = height
    if channels != default.shape[0]:
        shown["channels"] = channels
    for key in ("fit", "crop", "interpolation"):
        if (value := getattr(transform, key)) != getattr(default, key):
            shown[key] = value
    order = _in_turn(files)
    labels = torch.tensor([label for _, label in order], dtype=torch.int64)
    images = ImageFiles(place, [file for file, _ in order], transform)
    return Data(images, labels, str(Call(name, shown)), len(files))
