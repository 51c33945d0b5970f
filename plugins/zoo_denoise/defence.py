"""A denoiser before a classifier, as one classifier."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.errors import ContractError


class Composed(nn.Module):
    """classifier(clamp(denoiser(x), 0, 1)): pixels in, logits out; no `nn.Sequential`, which ART would unroll.

    The gradient goes through both, which is the white box. An attack on the classifier alone that is judged
    here is the grey box: the attacker does not know of the denoiser.

    Args:
        denoiser: images to images.
        classifier: images to logits `[N,K]`.
    """

    def __init__(self, denoiser: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.denoiser, self.classifier = denoiser, classifier

    @property
    def num_classes(self) -> int:
        """Of the classifier."""
        return int(getattr(self.classifier, "num_classes", 0))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N,K]` of pixels `[N,C,H,W]` in [0,1]."""
        logits: Tensor = self.classifier(self.denoiser(x).clamp(0, 1))
        return logits


def compose(denoiser: nn.Module, classifier: nn.Module) -> Composed:
    """`Composed` in the mode of the classifier.

    Raises:
        ContractError: the two take different numbers of channels, as far as they say.
    """
    takes, needs = (getattr(first_conv(model), "in_channels", None) for model in (denoiser, classifier))
    if takes is not None and needs is not None and takes != needs:
        raise ContractError(
            f"the denoiser gives images of {takes} channels, the classifier takes {needs}; take a denoiser of "
            f"{needs}"
        )
    return Composed(denoiser, classifier).train(classifier.training)


def first_conv(model: nn.Module) -> nn.Module | None:
    """The first convolution of a model, or None."""
    return next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
