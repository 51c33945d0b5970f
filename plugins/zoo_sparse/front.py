"""What makes a classifier of images one of sparse codes: encoder, decoder, ensemble, and what attacks may see."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ContractError, unknown
from zoo.nn import Classifier, Tap, keep, straight_through
from zoo_base.adversary import wide
from zoo_sparse.decoder import Decoder
from zoo_sparse.encoder import Backward, SparseEncoder, differentiated

# What an attack may take gradients of. The first four have the values of the model.
WAYS = {
    "identity": Backward("identity"),
    "smooth": Backward("smooth"),
    "top-u": Backward("smooth", 2.0),
    "full": Backward("identity", math.inf),
    "whole": Backward(),  # identity backward through encoder and decoder together
    "alone": Backward(),  # the classifier without its front end
}
OWN_VALUES = ("identity", "smooth", "top-u", "full", "whole")


class SparseFront(Classifier):
    """Mix it in before a backbone's class, whose constructor gets the arguments that are not named here.

    The backbone sees images that a decoder made of sparse codes, and normalises those. With an ensemble of E draws the
    model answers, in eval mode, by the logarithm of the mean of E softmax outputs; features are those of one draw.

    Args:
        in_chans: channels of the images, also of those that the backbone sees.
        img_size: of the images, which are square.
        atoms, patch, stride, top, drop, beta, signed, quantised: of `SparseEncoder`.
        widths, decoder: of `Decoder`, the latter its kind.
        ensemble: E; 10 in the thesis.
        **backbone: of the backbone.

    Raises:
        ContractError: numbers that do not fit each other.
    """

    def __init__(
        self,
        in_chans: int = 3,
        img_size: int = 32,
        atoms: int = 500,
        patch: int = 4,
        stride: int = 2,
        top: int = 50,
        drop: float = 0.95,
        beta: float = 3.0,
        signed: bool = True,
        quantised: bool = True,
        widths: Sequence[int] = (300, 100),
        decoder: str = "stride",
        ensemble: int = 1,
        **backbone: Any,
    ) -> None:
        super().__init__(in_chans=in_chans, **backbone)
        if img_size < patch:
            raise ContractError(f"img_size={img_size} is smaller than a patch of {patch} pixels")
        if ensemble < 1:
            raise ContractError(f"ensemble={ensemble} must be at least 1")
        self.encoder = SparseEncoder(in_chans, atoms, patch, stride, top, drop, beta, signed, quantised)
        self.decoder = Decoder(atoms, in_chans, img_size, patch, stride, widths, decoder)
        self.ensemble, self.shortcut = ensemble, ""

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """Those of the backbone, on restored images; see `Classifier.stages`."""
        yield from super().stages(self.restore(x), tap)

    def restore(self, x: Tensor) -> Tensor:
        """Images `[N,C,S,S]` in [0,1] to those that the decoder makes of their codes.

        Raises:
            ContractError: another number of channels, or images of another size than the decoder makes.
        """
        if self.shortcut == "alone":
            return x
        self.encoder.check(x)
        if tuple(x.shape[2:]) != (self.decoder.side, self.decoder.side):
            raise ContractError(
                f"images {list(x.shape)} must have {self.decoder.side} pixels a side (img_size)"
            )
        made = wide(self.decoder(self.encoder(x)))
        return straight_through(made, x) if self.shortcut == "whole" else made

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in [0,1] `[N,C,H,W]` in, logits `[N,K]` out; of an ensemble log probabilities."""
        if self.training or self.ensemble == 1 or not self.num_classes:
            return super().forward(x)
        draws = torch.stack([wide(super(SparseFront, self).forward(x)) for _ in range(self.ensemble)])
        return draws.log_softmax(-1).logsumexp(0) - math.log(self.ensemble)


@contextlib.contextmanager
def attacked(model: nn.Module, way: str, draws: int | None = 1) -> Iterator[None]:
    """Inside, the sparse front ends of a model have the gradient of a surrogate; afterwards as before.

    Args:
        model: any module; without a sparse front end nothing happens.
        way: of `WAYS`.
        draws: of the ensemble inside; the authors take gradients of one. None leaves it.

    Raises:
        UnknownName: of `way`.
    """
    if way not in WAYS:
        raise unknown("surrogate", way, WAYS)
    found = [module for module in model.modules() if isinstance(module, SparseFront)]
    before = [(module.shortcut, module.ensemble) for module in found]
    for module in found:
        module.shortcut = way if way in ("whole", "alone") else ""
        module.ensemble = module.ensemble if draws is None else draws
    try:
        with differentiated(model, WAYS[way]):
            yield
    finally:
        for module, (shortcut, ensemble) in zip(found, before, strict=True):
            module.shortcut, module.ensemble = shortcut, ensemble


class View(nn.Module):
    """A model behind one of its surrogates, as a plain classifier."""

    def __init__(self, model: nn.Module, way: str) -> None:
        super().__init__()
        self.model, self.way = model, way

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in [0,1] `[N,C,H,W]` in, logits `[N,K]` out."""
        with attacked(self.model, self.way, None):
            logits: Tensor = self.model(x)
        return logits


def views(model: nn.Module) -> dict[str, nn.Module]:
    """What an attack may take its gradient of."""
    return {way: View(model, way) for way in ("identity", "smooth", "top-u", "whole")}
