"""Attacks on training data: from the text of an attack to another data set, and that set as files."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from zoo import progress
from zoo.attacks import check_params
from zoo.data import Data
from zoo.errors import ContractError, MissingExtra, ZooError
from zoo.files import atomic, atomic_folder, write_text
from zoo.grammar import Call, parse_call
from zoo.registry import registry
from zoo.spec import DataAttack, resolve

RECORD_FILE = "perturbed.json"
FORMATS = ("folder", "parquet")


def data_attacks() -> list[DataAttack]:
    """All attacks on training data, sorted by name."""
    return [spec for spec in registry().specs("attacks") if isinstance(spec, DataAttack)]


def perturb(data: Data, attack: str, *, seed: int = 0) -> Data:
    """The data set that an attack on training data makes of another.

    Args:
        data: with labels, such as `zoo.data.load_data("digits", "train")`; it is not changed.
        attack: a `DataAttack` of a plugin, such as "random-pixels(pixels=2)".
        seed: of everything random.

    Returns:
        Data of the same classes whose name says what was done to it.

    Raises:
        UnknownName: no such attack or parameter (nearest names).
        ZooError: the attack is none on data, the data have no labels, or the attack refuses them.
        ContractError: the attack gave something else than such data.
    """
    call = parse_call(attack)
    spec = registry().attack(call.name)
    if not isinstance(spec, DataAttack) or call.backend:
        known = ", ".join(other.name for other in data_attacks())
        raise ZooError(f"{call.name} attacks images before a model, not training data; these do: {known}")
    check_params(spec, call.params)
    if data.labels is None:
        raise ZooError(f"{data.name} has no labels, which an attack on training data needs")
    made = resolve(spec.run)(data, seed=seed, **{**spec.params, **call.params})
    check_perturbed(spec.name, data, made)
    name = f"{data.name} after {Call(spec.name, call.params)}" + f", seed {seed}" * bool(seed)
    return Data(made.source, made.labels, name, data.num_classes)


def check_perturbed(name: str, before: Data, after: object) -> None:
    """Refuse what is no data set of the classes and the size of `before`.

    Raises:
        ContractError: in one line.
    """

    def refuse(what: str) -> ContractError:
        return ContractError(
            f"attack {name}: {what}; return a zoo.data.Data of the classes and size of its input"
        )

    if not isinstance(after, Data):
        raise refuse(f"it returned a {type(after).__name__}")
    if after.labels is None or after.labels.dtype != torch.int64 or len(after.labels) != len(after):
        raise refuse("labels are not int64, one for each image")
    if after.shape != before.shape or not len(after):
        raise refuse(f"images are {list(after.shape)} instead of {list(before.shape)}")
    if int(after.labels.min()) < 0 or int(after.labels.max()) >= before.num_classes:
        raise refuse(f"there are labels outside of 0..{before.num_classes - 1}")


def write_data(
    out: str | Path,
    splits: Mapping[str, Data],
    *,
    label_names: Sequence[str] = (),
    formats: Sequence[str] = FORMATS,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """Write splits as files that data sets are read from: nothing is left where something fails.

    `out/folder/<split>/<class>/<row>.png` is for the data set `folder`, `out/parquet/<split>-00000-of-00001.parquet`
    with the columns image and label for `parquet` (and, where size and classes are theirs, for the readers of MNIST
    and its like); perturbed.json says what it is.

    Args:
        out: a folder that does not exist yet, or is empty.
        splits: {"train": ..., "test": ...}, with labels; images of 1 or 3 channels.
        label_names: of the classes; folders are numbered, so that their order stays that of the classes.
        formats: of `FORMATS`.
        record: further JSON values for perturbed.json.

    Raises:
        ZooError: the folder holds something, or images have another number of channels.
        MissingExtra: pillow or pyarrow is not installed.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ZooError(f"{target} exists already and is not empty; use another --out")
    about = {
        name: {"name": data.name, "n": len(data), "sha256": data.sha256, "num_classes": data.num_classes}
        for name, data in splits.items()
    }
    with atomic_folder(target) as folder:
        for name, data in splits.items():
            with progress.show(f"writing {name}"):
                _write_split(folder, name, data, list(label_names), formats)
        text = json.dumps({**(record or {}), "splits": about}, indent=2) + "\n"
        write_text(folder / RECORD_FILE, text)
    return target


def _write_split(out: Path, split: str, data: Data, names: list[str], formats: Sequence[str]) -> None:
    """One split in all formats; a picture is encoded once."""
    assert data.labels is not None
    channels = data.shape[0]
    if channels not in (1, 3):
        raise ZooError(f"{data.name} has images of {channels} channels; pictures have 1 or 3")
    labels = data.labels.tolist()
    folders = [_folder_name(number, data.num_classes, names) for number in range(data.num_classes)]
    if "folder" in formats:
        for name in folders:
            (out / "folder" / split / name).mkdir(parents=True)
    rows = []
    for row, label in enumerate(labels):
        encoded = _png(data.batch(torch.tensor([row]))[0])
        name = f"{row:06d}.png"
        if "folder" in formats:
            (out / "folder" / split / folders[label] / name).write_bytes(encoded)
        rows.append({"bytes": encoded, "path": name})
        progress.report(row + 1, len(labels))
    if "parquet" in formats:
        kept = names or [str(number) for number in range(data.num_classes)]
        _write_parquet(out / "parquet" / f"{split}-00000-of-00001.parquet", rows, labels, kept)


def _folder_name(number: int, count: int, names: Sequence[str]) -> str:
    """The number of a class, and its name where that is another, in characters for files."""
    text = f"{number:0{len(str(count - 1))}d}"
    if not names or names[number] == text:
        return text
    return f"{text}-" + re.sub(r"[^A-Za-z0-9]+", "_", names[number])


def _png(image: torch.Tensor) -> bytes:
    """uint8 [C,H,W] as the bytes of a file."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("data", "writing image files") from None
    pixels = image.cpu().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _write_parquet(path: Path, rows: list[dict[str, Any]], labels: list[int], names: list[str]) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("data", "writing parquet files") from None
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table(
        {"image": pyarrow.array(rows, kind), "label": pyarrow.array(labels, pyarrow.int64())}
    )
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    with atomic(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)
