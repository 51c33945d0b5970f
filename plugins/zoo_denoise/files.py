"""Image files as a denoiser takes them, and back in the same form: depth, palette, alpha, colour profile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.errors import MissingExtra, ZooError
from zoo.files import atomic

KEPT = ("icc_profile", "exif", "dpi")  # of what a file says beside its pixels
SAVED: dict[str, dict[str, Any]] = {
    ".jpg": {"quality": 95},
    ".jpeg": {"quality": 95},
    ".webp": {"lossless": True},
}
EIGHT, SIXTEEN = 255, 65535


@dataclass
class Picture:
    """The colours of a file, and what is to be put back around them.

    `pixels` is float32 `[1,C,H,W]` in [0,1] with C = 1 (gray) or 3 (RGB); `alpha` is uint8 `[H,W]` or None, and
    goes through untouched; `depth` is the largest value of a channel in the file.
    """

    pixels: Tensor
    alpha: NDArray[Any] | None = None
    depth: int = EIGHT
    info: dict[str, Any] = field(default_factory=dict)


def read_picture(path: Path) -> Picture:
    """Read a file in 8 bits, or gray in 16; palettes become colours (gray ones stay gray), transparency alpha.

    Pillow gives colour of 16 bits per channel as 8 bits, so its lower half is lost.

    Raises:
        ZooError: it is no image, holds several or floating-point numbers; one line that names it.
        MissingExtra: pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("data", "reading image files") from None
    try:
        with Image.open(path) as image:
            if (count := getattr(image, "n_frames", 1)) > 1:
                raise ZooError(f"{path} holds {count} images; save the one that is wanted")
            image.load()
            return _picture(image, path)
    except ZooError:
        raise
    except Exception as error:  # Pillow's readers raise what they like
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise ZooError(f"{path} is no image that can be read ({reason}); fetch or save it again") from error


def _picture(image: Any, path: Path) -> Picture:
    info = {key: image.info[key] for key in KEPT if image.info.get(key)}
    if image.mode == "F":
        raise ZooError(f"{path} holds floating-point numbers; save it with 8 or 16 bits")
    if image.mode[0] == "I":
        array = np.asarray(image).astype(np.int64)
        if array.min() < 0 or array.max() > SIXTEEN:
            raise ZooError(
                f"{path} has values from {array.min()} to {array.max()}, not 16 bits; save it with 16"
            )
        return Picture(_tensor(array[None], SIXTEEN), None, SIXTEEN, info)
    clear = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    gray, palette = image.mode in ("1", "L", "LA", "La"), image.mode in ("P", "PA")
    image = image.convert(("LA" if gray else "RGBA") if clear else ("L" if gray else "RGB"))
    array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    alpha = array[..., -1].copy() if clear else None
    colours = array[..., : array.shape[2] - clear].transpose(2, 0, 1)
    if palette and bool((colours == colours[:1]).all()):
        colours = colours[:1]
    return Picture(_tensor(colours, EIGHT), alpha, EIGHT, info)


def _tensor(array: Any, depth: int) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))[None] / depth


def write_picture(path: Path, picture: Picture) -> None:
    """Write a picture in the format of the name's ending, atomically.

    Raises:
        ZooError: the format cannot hold it (alpha or 16 bits in a JPEG) or is not known, or the place takes no file.
    """
    from PIL import Image

    values = (picture.pixels[0].double().clamp(0, 1) * picture.depth).round().numpy()
    if picture.depth == SIXTEEN:
        image = Image.fromarray(values[0].astype(np.uint16))
    else:
        array = values.astype(np.uint8)
        alpha = [] if picture.alpha is None else [picture.alpha[None]]
        array = np.concatenate([array, *alpha]).transpose(1, 2, 0)
        image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    ending = path.suffix.lower()
    Image.init()
    if ending not in Image.EXTENSION:
        raise ZooError(f"{path}: no image format ends in {ending or 'nothing'!r}; write .png")
    try:
        with atomic(path) as temporary:
            image.save(temporary, format=Image.EXTENSION[ending], **SAVED.get(ending, {}), **picture.info)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's doing, not the format's
            raise ZooError(f"{path} cannot be written: {error.strerror}; name another place") from error
        raise ZooError(f"{path} cannot be written: {error}; a .png can hold it") from error


def through(
    model: Callable[[Tensor], Tensor], picture: Picture, channels: int | None, each_channel: bool, name: str
) -> Picture:
    """Denoise the colours of a picture.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to pixels.
        picture: what was read.
        channels: that the model takes; None for any.
        each_channel: give a gray model red, green and blue apart.
        name: of the model, for the message.

    Returns:
        A picture of the same form; of a gray picture and a colour model the mean of the three channels. Three
        equal channels are a gray picture to a gray model.

    Raises:
        ZooError: a colour image for a gray model.
    """
    x = picture.pixels
    if channels == 3 and x.shape[1] == 1:
        out = model(x.expand(-1, 3, -1, -1).contiguous()).mean(1, keepdim=True)
    elif channels == 1 and x.shape[1] == 3 and bool((x == x[:, :1]).all()):
        out = model(x[:, :1].contiguous()).expand(-1, 3, -1, -1)
    elif channels == 1 and x.shape[1] == 3:
        if not each_channel:
            raise ZooError(
                f"it has colours and {name} takes gray images; add --each-channel or take a colour model"
            )
        out = model(x.transpose(0, 1).contiguous()).transpose(0, 1)
    else:
        out = model(x)
    return Picture(out, picture.alpha, picture.depth, picture.info)
