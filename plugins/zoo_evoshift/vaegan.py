"""VAEGAN on attacked images: sections 2.5.4 and 2.8.9 of Chaudhury's thesis, after Larsen et al. 2016 (1512.09300).

An encoder and a generator whose reconstruction is compared in the features of a discriminator, which in turn tells
images from reconstructions and from samples. The thesis takes "the implementation of [57]" without its settings; here
are the paper's losses: the divergence of the code; the squared distance of discriminator features (`LAYER`), half the
square summed over them, as unit normal log-likelihood; the discriminator's binary cross-entropy for images,
reconstructions and samples. The encoder gets divergence and distance, the generator GAMMA times the distance minus the
discriminator's loss, the discriminator its own. Widths are smaller, sides are of 4 times a power of 2 (others are
padded), and the optimiser is Adam (2e-4, 0.5) where the paper has RMSProp.

The thesis does not say between which images its PSNR is. Here `psnr` compares clean test images with their
reconstructions, and `psnr_attacked` clean training images with what comes of their attacked copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import progress
from zoo.errors import ZooError
from zoo.loading import find_device

GAMMA = 1e-3  # weight of the distance in the generator's loss; the distance is a sum over features
LEAST = 4  # side of the smallest feature map


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a VAEGAN is trained."""

    epochs: int = 20
    batch_size: int = 64
    latent: int = 64
    width: int = 32
    lr: float = 2e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size - 1, self.latent, self.width) < 1 or self.lr <= 0:
            raise ZooError(
                f"epochs={self.epochs}, batch_size={self.batch_size}, latent={self.latent}, width={self.width}, "
                f"lr={self.lr}: each must be positive, and a batch have two images for its norms"
            )


class VaeGan(nn.Module):
    """Encoder, generator and discriminator for images of one size.

    Args:
        shape: (C, H, W) of the images.
        latent: numbers of the code.
        width: channels of the first convolution; each further one has twice as many.
    """

    def __init__(self, shape: tuple[int, int, int], latent: int = 64, width: int = 32) -> None:
        super().__init__()
        channels, height, width_of_image = shape
        self.shape, self.latent = shape, latent
        side, steps = LEAST, 0
        while side < max(height, width_of_image):
            side, steps = 2 * side, steps + 1
        self.side = side
        widths = [width * 2**i for i in range(steps)]
        flat = widths[-1] * LEAST**2
        self.encoder = nn.Sequential(*_down([channels, *widths]), nn.Flatten(), nn.Linear(flat, 2 * latent))
        self.widen = nn.Sequential(
            nn.Linear(latent, flat),
            nn.Unflatten(1, (widths[-1], LEAST, LEAST)),
            nn.BatchNorm2d(widths[-1]),
            nn.ReLU(),
        )
        self.generator = nn.Sequential(*_up([*reversed(widths), channels]))
        self.features = nn.Sequential(*_down([channels, *widths]))
        self.verdict = nn.Sequential(nn.Flatten(), nn.Linear(flat, 1))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance `[N,latent]` of the codes of pixels `[N,C,H,W]` in [0,1]."""
        mean, spread = self.encoder(self._padded(x)).chunk(2, 1)
        return mean, spread.clamp(-10, 10)

    def decode(self, z: Tensor) -> Tensor:
        """Images `[N,C,H,W]` in [0,1] of codes `[N,latent]`."""
        made: Tensor = self.generator(self.widen(z)).sigmoid()
        return made[:, :, : self.shape[1], : self.shape[2]]

    def judge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the discriminator says of images, `[N]` (above 0: real), and its features."""
        found = self.features(self._padded(x))
        return self.verdict(found).squeeze(1), found

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Images `[N,C,H,W]` in [0,1], on the CPU, from the mean codes of uint8 images; in eval mode."""
        place = next(self.parameters()).device
        parts = [
            self.decode(self.encode(part.to(place).float() / 255)[0]).cpu() for part in images.split(500)
        ]
        return torch.cat(parts)

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.side - x.shape[3], 0, self.side - x.shape[2]))


def _down(widths: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
    return layers


def _up(widths: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return layers[:-2]


def train_vaegan(
    images: Tensor, settings: Settings, *, device: str | None = "cpu", keep: Tensor | None = None
) -> tuple[VaeGan, list[dict[str, float]], list[Tensor]]:
    """Train a VAEGAN from scratch.

    Args:
        images: uint8 `[N,C,H,W]`, attacked or not.
        settings: how.
        device: None for the first GPU.
        keep: uint8 images `[M,C,H,W]` that are reconstructed after every epoch (figure 2-12), or None.

    Returns:
        (the model in eval mode; the mean losses of each epoch; the reconstructions of `keep` after each epoch).

    Raises:
        ZooError: fewer than two images, or a loss that is not finite.
    """
    if len(images) < 2:
        raise ZooError(f"a VAEGAN cannot be trained on {len(images)} image")
    place = find_device(device)
    order = torch.Generator().manual_seed(settings.seed)
    shown: list[Tensor] = []
    log: list[dict[str, float]] = []
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(settings.seed)
        model = VaeGan(tuple(images.shape[1:]), settings.latent, settings.width).to(place)  # type: ignore[arg-type]
        players = {
            "encoder": [*model.encoder.parameters()],
            "generator": [*model.widen.parameters(), *model.generator.parameters()],
            "discriminator": [*model.features.parameters(), *model.verdict.parameters()],
        }
        steps = {name: torch.optim.Adam(p, lr=settings.lr, betas=(0.5, 0.999)) for name, p in players.items()}
        for epoch in range(settings.epochs):
            model.train()
            batches = [
                b
                for b in torch.randperm(len(images), generator=order).split(settings.batch_size)
                if len(b) > 1
            ]
            sums: dict[str, float] = {}
            for rows in batches:
                losses = _losses(model, images[rows].to(place).float() / 255)
                _update(losses, players, steps)
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + float(value.detach()) / len(batches)
            if not all(value == value and abs(value) < float("inf") for value in sums.values()):
                raise ZooError(
                    f"a loss of the VAEGAN is not finite in epoch {epoch + 1}: {sums}; take a smaller lr"
                )
            log.append(sums)
            model.eval()
            if keep is not None:
                shown.append(model.reconstruct(keep))
            progress.report(epoch + 1, settings.epochs)
    return model.eval(), log, shown


def _losses(model: VaeGan, x: Tensor) -> dict[str, Tensor]:
    """The loss of each player."""
    mean, spread = model.encode(x)
    again = model.decode(mean + torch.exp(0.5 * spread) * torch.randn_like(mean))
    sampled = model.decode(torch.randn_like(mean))
    real, wanted = model.judge(x)
    rebuilt, found = model.judge(again)
    made, _ = model.judge(sampled)
    divergence = 0.5 * (mean.square() + spread.exp() - 1 - spread).sum(1).mean()
    distance = 0.5 * (found - wanted).square().flatten(1).sum(1).mean()
    verdict = _bce(real, 1.0) + 0.5 * (_bce(rebuilt, 0.0) + _bce(made, 0.0))
    fooling = 0.5 * (_bce(rebuilt, 1.0) + _bce(made, 1.0))  # as -verdict, without its vanishing gradient
    return {
        "encoder": divergence + distance,
        "generator": GAMMA * distance + fooling,
        "discriminator": verdict,
    }


def _update(losses: dict[str, Tensor], players: dict[str, Any], steps: dict[str, torch.optim.Adam]) -> None:
    """One step of each player on its own loss only, all from the same point."""
    gradients = {
        name: torch.autograd.grad(losses[name], parameters, retain_graph=True)
        for name, parameters in players.items()
    }
    for name, parameters in players.items():
        for parameter, gradient in zip(parameters, gradients[name], strict=True):
            parameter.grad = gradient
        steps[name].step()


def _bce(verdict: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(verdict, torch.full_like(verdict, target))


def psnr(made: Tensor, images: Tensor) -> float:
    """The mean over images of the peak signal-to-noise ratio in dB, peak 1.

    Args:
        made: `[N,C,H,W]` in [0,1].
        images: uint8 `[N,C,H,W]`, what they should be.
    """
    error = (made - images.float() / 255).square().flatten(1).mean(1).clamp_min(1e-10)
    return float((-10 * torch.log10(error)).mean())
