"""Channel selection at points of a backbone: what CIFS and CAS share.

At each of two points a probe classifies the pooled feature GAP(z) into raw logits, and the feature goes on as
mask * z, where the mask says how relevant each channel is to the likeliest classes (`zoo_cifs.masks`).

The feature that enters a mask is detached: no gradient reaches it through the mask, only the probe's weights,
as in the authors' code. `forward_heads(through_mask=True)` keeps that path for attacks. In train mode the
label takes the place of the best class, whatever its rank; it may then be counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from zoo.nn import Classifier, Tap, keep, last
from zoo_cifs.masks import (
    POSITIONS,
    LinearProbe,
    Mask,
    MlpProbe,
    check_choice,
    check_k,
    class_counts,
    make_probe,
)


class ChannelSelection(Classifier):
    """Mix it in before the backbone's class and call `set_probes` at the end of the constructor."""

    selected: dict[str, str] = {}  # tap point: name of its probe, in the order of the forward
    k: int = 1

    def set_probes(
        self,
        points: dict[int, tuple[str, int]],
        *,
        positions: str,
        probe1: str,
        probe2: str,
        hidden: int,
        mask: str,
        k: int,
        kappa: float | None,
        alpha: float | None,
    ) -> None:
        """Create the probes.

        Args:
            points: for 1 (the last place) and 2 (the one before) the tap point and its channels.
            positions, probe1, probe2, hidden, mask, k, kappa, alpha: as `zoo_cifs.cifs.CifsResNet`.

        Raises:
            ContractError: one of them is not among the allowed values, which the message names.
        """
        check_choice("positions", positions, POSITIONS)
        self.masking = Mask(mask, k, kappa, alpha)
        classes = self.num_classes or 10  # a backbone without a head still needs classes to compare
        check_k(k, classes)
        self.k, self.selected = k, {}
        kinds = {1: probe1, 2: probe2}
        for place in sorted(POSITIONS[positions], reverse=True):
            point, channels = points[place]
            name = f"probe{place}"
            self.add_module(name, make_probe(kinds[place], channels, classes, hidden, name))
            self.selected[point] = name

    def probes(self) -> list[LinearProbe | MlpProbe]:
        """The probes in the order of the forward."""
        found = [self.get_submodule(name) for name in self.selected.values()]
        return [probe for probe in found if isinstance(probe, LinearProbe | MlpProbe)]

    @property
    def smooth_masks(self) -> bool:
        """Whether a mask moves with its feature; that of a linear probe depends on its best classes alone."""
        return any(isinstance(probe, MlpProbe) for probe in self.probes())

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Fresh last layers for the head and the probes; 0 classes keep the probes, which the masks need."""
        if num_classes:
            check_k(self.k, num_classes)
        super().reset_classifier(num_classes, global_pool)
        for probe in self.probes() if num_classes else ():
            old = probe.fc.weight
            probe.fc = nn.Linear(old.shape[1], num_classes, device=old.device, dtype=old.dtype)

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """The backbone's stages with masks; `tap` sees what leaves a mask."""
        return super().stages(x, lambda name, z: tap(name, self._select(name, z, None, None, False)))

    def forward_heads(
        self, x: Tensor, y: Tensor | None = None, *, through_mask: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """(final logits, [raw logits of each probe in the order of the forward]), all `[N,K]`.

        Args:
            x: pixels in [0,1], `[N,C,H,W]`.
            y: labels `[N]`: in train mode they replace the best class in the masks; without effect in
                eval mode, so that no attack and no test ever sees them.
            through_mask: let the gradient flow through the masks to the features too (for attacks; the
                values are the same).
        """
        raw: list[Tensor] = []
        select = partial(self._select, y=y if self.training else None, raw=raw, through=through_mask)
        return self.forward_head(last(super().stages(x, select))), raw

    def _select(
        self, name: str, z: Tensor, y: Tensor | None, raw: list[Tensor] | None, through: bool
    ) -> Tensor:
        if name not in self.selected:
            return z
        probe: Any = self.get_submodule(self.selected[name])
        pooled = z.mean((2, 3))
        if raw is not None:
            raw.append(probe(pooled))
        logits = probe(pooled.detach()) if raw is None else raw[-1]
        counts = class_counts(logits.detach(), self.k, y)
        relevance = probe.relevance(pooled if through else pooled.detach(), counts)
        return z * self.masking(relevance)[:, :, None, None]


class View(nn.Module):
    """One head of a model with probes as a plain classifier, for attacks that know a single output.

    Args:
        head: index of the raw head, or None for the final logits with the gradient through the masks.
    """

    def __init__(self, model: ChannelSelection, head: int | None) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in [0,1] `[N,C,H,W]` in, logits `[N,K]` of the head out."""
        final, raw = self.model.forward_heads(x, through_mask=self.head is None)
        return final if self.head is None else raw[self.head]


def views(model: ChannelSelection) -> dict[str, nn.Module]:
    """What an attack may target besides the logits: every raw head, and the masks' own gradient."""
    names = list(model.selected.values())
    heads: dict[str, nn.Module] = {name: View(model, index) for index, name in enumerate(names)}
    return {**heads, "through-mask": View(model, None)} if model.smooth_masks else heads
