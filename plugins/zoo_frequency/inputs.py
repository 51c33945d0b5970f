"""The first layer of a frequency-domain network: from pixels in [0,1] to standardised DCT coefficients, in the graph.

Everything is in grey levels (pixels times 255), as in JPEG. It is computed in float32 under autocast too: in
bfloat16 a brightness of 100 would be off by more than the detail channels vary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ContractError
from zoo.nn import straight_through
from zoo_frequency import channels as sets
from zoo_frequency.transform import (
    TO_YCC,
    check_tiles,
    image_dct,
    image_idct,
    tile_idct,
    tile_kernels,
    ycc_to_rgb,
)

LEVELS = 255.0
SCALINGS = ("whole", "each")


class FrequencyInput(nn.Module):
    """What both kinds of input share: (coefficients - mean) / std, and rounding of the coefficients.

    `mean` and `std` are buffers that are saved with the weights. Rounding has the gradient of the identity
    (straight-through).

    Args:
        in_channels: planes of the images.
        rounding: round coefficients to whole numbers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, in_channels: int, rounding: bool) -> None:
        super().__init__()
        self.in_channels, self.rounding = in_channels, rounding

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set mean and std, of the shape of one image's coefficients (or of one number per channel)."""
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def exact(self, x: Tensor) -> Tensor:
        """Coefficients in grey levels, before they are rounded."""
        raise NotImplementedError

    def coefficients(self, x: Tensor) -> Tensor:
        """Coefficients in grey levels, rounded where the layer rounds.

        Args:
            x: pixels in [0,1], `[N,C,H,W]`.

        Raises:
            ContractError: images of other channels or sizes than the layer takes.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ContractError(self._refuse_channels(x))
        with torch.autocast(x.device.type, enabled=False):
            found = self.exact(x if x.dtype == torch.float64 else x.float())
            return straight_through(found.round(), found) if self.rounding else found

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in [0,1] `[N,C,H,W]` in, standardised coefficients out."""
        found = self.coefficients(x)
        return (found - self.mean) / self.std

    def _refuse_channels(self, x: Tensor) -> str:
        seen = f"{x.shape[1]} channel{'s' * (x.shape[1] != 1)}" if x.ndim == 4 else f"shape {tuple(x.shape)}"
        if self.in_channels == 3:
            remedy = "repeat a grey plane with x.expand(-1, 3, -1, -1), or build the model with in_chans=1"
            return f"the pipeline takes RGB images [N,3,H,W], these have {seen}; {remedy}"
        return (
            f"the pipeline takes images of {self.in_channels} channel{'s' * (self.in_channels != 1)}, these have "
            f"{seen}; build the model with in_chans= to match"
        )


class TileInput(FrequencyInput):
    """Some DCT coefficients of every 8x8 tile as channels: the input of Xu et al. 2020 and of the thesis on ImageNet.

    Resize (shorter side, bilinear, without antialiasing as OpenCV's; the thesis says to 512x512, which is the same for
    square images), crop the middle, YCbCr (full-range BT.601), subtract 128, DCT, round, choose channels, standardise.
    Colour conversion and DCT are one strided convolution.

    Deviations: the reference codes JPEG files of quality 100, chroma from an image of twice the size whose 4:2:0
    subsampling gives the size of the image back; here chroma is that of the image itself, a little sharper, and
    neither pixels nor YCbCr are rounded to 8 bits on the way.

    Args:
        channels: 6, 24, 32, 48 or 64 (`zoo_frequency.channels.SETS`).
        in_channels: 3 for colour; other numbers of planes are each taken as luminance, with Y's coefficients only.
        resize: the shorter side after resizing; 0 leaves the size.
        crop: side of the middle square that is kept; 0 keeps all.
        rounding: as JPEG rounds; see `FrequencyInput`.

    Raises:
        ContractError: an unknown set, or sizes that do not divide into tiles.
    """

    def __init__(
        self,
        channels: int = 24,
        in_channels: int = 3,
        resize: int = 512,
        crop: int = 448,
        rounding: bool = True,
    ) -> None:
        super().__init__(in_channels, rounding)
        self.chosen = tuple(sets.chosen(channels, in_channels))
        self.resize, self.crop = resize, crop
        for side in (crop, resize * (not crop)):
            if side:
                check_tiles(side, side, sets.TILE)
        if resize and crop > resize:
            raise ContractError(f"crop={crop} is larger than resize={resize}; crop at most {resize}")
        numbers = [(sets.MEANS[name][index], sets.STDS[name][index]) for _, index, name in self.chosen]
        mean, std = (torch.tensor(column).view(1, -1, 1, 1) for column in zip(*numbers, strict=True))
        self.set_statistics(mean, std)

    @property
    def out_channels(self) -> int:
        """Channels that the network behind sees."""
        return len(self.chosen)

    def framed(self, x: Tensor) -> Tensor:
        """The images whose tiles are transformed: resized and cropped.

        Raises:
            ContractError: they do not divide into tiles, or are smaller than the crop.
        """
        if self.resize and min(x.shape[2:]) != self.resize:
            scale = self.resize / min(x.shape[2:])
            size = [round(side * scale) for side in x.shape[2:]]
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        if self.crop:
            height, width = x.shape[2:]
            if min(height, width) < self.crop:
                raise ContractError(
                    f"images of {height}x{width} pixels are smaller than crop={self.crop}; give larger ones, or resize="
                )
            top, left = (height - self.crop) // 2, (width - self.crop) // 2
            x = x[:, :, top : top + self.crop, left : left + self.crop]
        check_tiles(x.shape[2], x.shape[3], sets.TILE)
        return x

    def exact(self, x: Tensor) -> Tensor:
        """`[N,channels,H/8,W/8]`, in grey levels."""
        weight, bias = _kernels(self.chosen, self.in_channels, x.device, x.dtype)
        return F.conv2d(self.framed(x), weight, bias, stride=sets.TILE)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """The pixels of coefficients in grey levels `[N,channels,h,w]`; coefficients outside of the set are 0.

        With a set of all coefficients it would be the inverse; with others it is the low-pass image.
        """
        n, _, rows, columns = coefficients.shape
        size = sets.TILE**2
        places = torch.tensor([plane * size + i for plane, i, _ in self.chosen], device=coefficients.device)
        whole = coefficients.new_zeros(n, self.in_channels * size, rows, columns)
        planes = tile_idct(whole.index_copy(1, places, coefficients), sets.TILE)
        lifted = [128.0 * (plane == 0 or self.in_channels != 3) for plane in range(self.in_channels)]
        planes = planes + planes.new_tensor(lifted).view(1, -1, 1, 1)
        return (ycc_to_rgb(planes) if self.in_channels == 3 else planes) / LEVELS


class WholeInput(FrequencyInput):
    """The DCT of the whole image, every channel for itself: the thesis's input for Fashion-MNIST and SVHN.

    The thesis does not say how coefficients are scaled, nor in which colours (RGB here). The scaling decides what noise
    does to the network. With one std for all ("whole", nearest to the plain float DCT) low frequencies, which vary a
    hundred times more than high ones, are most of what it sees. With a std for each coefficient ("each") all count
    alike, and noise of a few grey levels drowns the high ones: on digits at linf:0.1, 92 % stand images made against
    the image twin with "whole", 12 % with "each" (clean 99 %; the white box leaves 0 of either). The thesis's figures
    5-4 and 5-5 can only be those of something like "whole", which is therefore the default.

    Before `zoo_frequency.recipe:standardise` has seen the training images mean is 0 and std 1.

    Args:
        in_channels: of the images.
        size: their side; coefficients have their place, so other sizes are refused.
        rounding: the thesis's float DCT does not round.
        scaling: "whole", all coefficients of a channel divided by one number; or "each".

    Raises:
        ContractError: an unknown scaling.
    """

    def __init__(
        self, in_channels: int = 3, size: int = 32, rounding: bool = False, scaling: str = "whole"
    ) -> None:
        super().__init__(in_channels, rounding)
        if scaling not in SCALINGS:
            raise ContractError(f"scaling={scaling!r} is unknown; use {' or '.join(SCALINGS)}")
        self.size, self.scaling = size, scaling
        shape = (1, in_channels, size, size)
        self.set_statistics(torch.zeros(shape), torch.ones(shape))

    def exact(self, x: Tensor) -> Tensor:
        """`[N,C,H,W]`, in grey levels: the place of a coefficient is its frequency."""
        if tuple(x.shape[2:]) != (self.size, self.size):
            raise ContractError(
                f"images of {x.shape[2]}x{x.shape[3]} pixels; the whole-image DCT was built for {self.size}x{self.size}, "
                "resize them or build the model with size="
            )
        return image_dct(LEVELS * x)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """The pixels of coefficients in grey levels."""
        return image_idct(coefficients) / LEVELS


@lru_cache(maxsize=32)
def _kernels(
    chosen: tuple[tuple[int, int, str], ...], planes: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Colour conversion, times 255, DCT and choice as one convolution: weight `[channels,planes,8,8]` and bias.

    Only luminance has 128 taken off: the chroma of a grey image is 0.
    """
    with torch.inference_mode(False):
        basis = tile_kernels(sets.TILE, torch.device("cpu"), torch.float64)
        eye = torch.eye(planes, dtype=torch.float64, device="cpu").tolist()
        colour = torch.tensor(TO_YCC if planes == 3 else eye, dtype=torch.float64, device="cpu")
        weights, biases = [], []
        for plane, index, _ in chosen:
            weights.append(LEVELS * colour[plane][:, None, None] * basis[index])
            biases.append(-128.0 * sets.TILE * (index == 0 and (plane == 0 or planes != 3)))
        bias = torch.tensor(biases, device="cpu")
        return torch.stack(weights).to(device, dtype), bias.to(device, dtype)


@contextlib.contextmanager
def unrounded(model: nn.Module) -> Iterator[None]:
    """Inside, no frequency input of a network rounds; afterwards as before."""
    inputs = [module for module in model.modules() if isinstance(module, FrequencyInput)]
    before = [module.rounding for module in inputs]
    for module in inputs:
        module.rounding = False
    try:
        yield
    finally:
        for module, rounding in zip(inputs, before, strict=True):
            module.rounding = rounding
