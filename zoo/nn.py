"""What two or more architectures share: a base class that answers as timm's models do, and wrappers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, cast

import torch
from timm.layers import create_classifier
from torch import Tensor, nn

from zoo.errors import ContractError

Tap = Callable[[str, Tensor], Tensor]


def keep(name: str, feature: Tensor) -> Tensor:
    """The tap that changes nothing."""
    return feature


class Normalize(nn.Module):
    """(x - mean) / std per channel; the identity where both are None.

    The buffers are not saved: they are arguments of the architecture, not weights.

    Args:
        mean, std: one number per channel, in units of pixels in [0,1]; both or neither.
        channels: the number of channels of the input, where it is to be checked.

    Raises:
        ContractError: the numbers do not fit each other or the channels, or a std is not positive.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ContractError("give pixel_mean and pixel_std, or neither of them")
        for numbers in (mean, std):
            if numbers is not None and channels is not None and len(numbers) != channels:
                raise ContractError(f"pixel_mean and pixel_std need {channels} numbers, one per channel")
        if std is not None and not all(number > 0 for number in std):
            raise ContractError("every pixel_std must be above 0")
        self.register_buffer("mean", _per_channel(mean), persistent=False)
        self.register_buffer("std", _per_channel(std), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[N,C,H,W]` pixels in, the same shape out."""
        return x if self.mean is None or self.std is None else (x - self.mean) / self.std


def _per_channel(numbers: Sequence[float] | None) -> Tensor | None:
    return (
        None if numbers is None else torch.tensor(numbers, dtype=torch.get_default_dtype()).view(1, -1, 1, 1)
    )


class Classifier(nn.Module):
    """Base of every classifier: the interface of timm's own models, derived from one iterator.

    A subclass states `feature_names` (module paths, one per stage), calls `set_head` and `set_features` in
    its constructor, and implements `stages`. The last stage is what the head pools: final norm and masks
    included, so that the last feature map is exactly `forward_features(x)`. A stage that needs further
    modules names them in `feature_parts`, so that pruning drops them with it.
    """

    feature_names: ClassVar[tuple[str, ...]] = ()
    feature_parts: ClassVar[dict[str, tuple[str, ...]]] = {}
    num_features: int
    head_hidden_size: int
    num_classes: int
    feature_info: list[dict[str, Any]]
    global_pool: nn.Module
    fc: nn.Module
    _depth: int | None = None  # number of stages left by prune_intermediate_layers; None is all

    def set_head(self, num_features: int, num_classes: int, global_pool: str = "avg") -> None:
        """Create `global_pool` and the linear classifier `fc` (the identity for 0 classes)."""
        self.num_features = self.head_hidden_size = num_features
        self.reset_classifier(num_classes, global_pool)

    def set_features(self, channels: Sequence[int], reductions: Sequence[int]) -> None:
        """Describe the stages: channels and the factor by which height and width have shrunk."""
        rows = zip(channels, reductions, self.feature_names, strict=True)
        self.feature_info = [{"num_chs": c, "reduction": r, "module": name} for c, r, name in rows]

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """Yield the feature map of each stage, `[N,C,H,W]`.

        Args:
            x: pixels in [0,1], `[N,C,H,W]`.
            tap: called with the name and the feature of every point where a defence may act; what it
                returns goes on in its place. A backbone documents its points.
        """
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage, `[N,C,H,W]`, unpooled."""
        return last(self._living(self.stages(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify what `forward_features` returned; only pool with `pre_logits`."""
        pooled: Tensor = self.global_pool(x)
        return pooled if pre_logits else cast(Tensor, self.fc(pooled))

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in [0,1] `[N,C,H,W]` in, logits `[N,K]` out."""
        return self.forward_head(self.forward_features(x))

    def forward_heads(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The logits and those of every auxiliary head (none here).

        Args:
            y: labels `[N]`; only some models use them, and only in train mode.
        """
        return self.forward(x), []

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a fresh one; 0 classes leave the pooled features.

        Args:
            global_pool: "avg", "max", "" (no pooling, 0 classes only) or None, which keeps it.
        """
        self.num_classes = num_classes
        pool = global_pool if global_pool is not None else self.global_pool.pool_type
        # create_classifier's own device and dtype are torch's defaults, so keep those of the old layer
        old = next(self.parameters(), None)
        made = create_classifier(self.num_features, num_classes, pool_type=cast(str, pool))
        self.global_pool, self.fc = (m if old is None else m.to(old.device, old.dtype) for m in made)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | tuple[int, ...] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The feature maps of some stages, as timm's models give them.

        Args:
            indices: which stages; an int n is the last n, None all.
            norm: accepted for timm; the last stage has its norm in any case.
            stop_early: compute no stage beyond the last one wanted.
            output_fmt: only "NCHW".
            intermediates_only: leave out the final feature map.
        """
        if output_fmt != "NCHW":
            raise ContractError(f"output_fmt={output_fmt!r} is not supported; use 'NCHW'")
        take = self._take(indices)
        found = []
        feature = x
        for index, feature in enumerate(self._living(self.stages(x))):
            if index in take:
                found.append(feature)
            if stop_early and index == max(take):
                break
        return found if intermediates_only else (feature, found)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] | tuple[int, ...] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages behind the last one wanted, and the head; return the indices made positive."""
        take = self._take(indices)
        self._depth = max(take) + 1
        for name in self.feature_names[self._depth :]:
            for path in (name, *self.feature_parts.get(name, ())):
                parent, _, leaf = path.rpartition(".")
                setattr(self.get_submodule(parent), leaf, nn.Identity())
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def _take(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.feature_names)
        if indices is None or isinstance(indices, int):
            indices = range(-(count if indices is None else indices), 0)
        take = [index + count if index < 0 else index for index in indices]
        if not take or not all(0 <= index < count for index in take):
            raise ContractError(f"indices={list(indices)} must lie in 0..{count - 1}: {self.feature_names}")
        return take

    def _living(self, stages: Iterator[Tensor]) -> Iterator[Tensor]:
        for index, feature in enumerate(stages):
            yield feature
            if self._depth is not None and index + 1 >= self._depth:
                return


class FlatClassifier(Classifier):
    """A classifier whose hidden layers take flattened features, which fits its weights to one size of image.

    A subclass implements `_hidden` and sets what it needs before its constructor calls `reset_classifier`, and
    `head_hidden_size`, the size of what `fc` takes.
    """

    hidden: nn.Module

    def _hidden(self) -> nn.Module:
        """Fresh hidden layers: feature maps `[N,C,H,W]` in, `[N,F]` out."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify what `forward_features` returned; with `pre_logits` what leaves the hidden layers, `[N,F]`."""
        hidden: Tensor = self.hidden(x)
        return hidden if pre_logits else cast(Tensor, self.fc(hidden))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a fresh one; 0 classes leave the hidden layers.

        Args:
            global_pool: None, or "" with 0 classes, which drops the hidden layers too; nothing is pooled.
        """
        if global_pool not in (None, "") or (global_pool == "" and num_classes):
            raise ContractError(f"global_pool={global_pool!r} is not possible: the features are flattened")
        self.num_classes = num_classes
        old = next(self.parameters())
        if global_pool == "":
            self.hidden = nn.Identity()
        elif isinstance(getattr(self, "hidden", nn.Identity()), nn.Identity):
            self.hidden = self._hidden().to(old.device, old.dtype)
        self.fc = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        self.fc.to(old.device, old.dtype)


def last(stages: Iterator[Tensor]) -> Tensor:
    """The last of several tensors, keeping none of the others."""
    feature = next(stages)
    for feature in stages:  # noqa: B007
        pass
    return feature


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, exactly, with the gradient of `soft` (BPDA); both of one shape, finite."""
    return hard.detach() + (soft - soft.detach())


class ExpectationOverTransformation(nn.Module):
    """A stochastic classifier's mean over several draws, as a plain module.

    Athalye et al., "Synthesizing Robust Adversarial Examples", 2018. The gradient flows through all draws.

    Args:
        model: a classifier whose forward is random.
        draws: how many forwards to average, at least 1.
        reduce: "logits" averages logits; "probs" gives the log of the mean softmax.
    """

    def __init__(self, model: nn.Module, draws: int, reduce: str = "logits") -> None:
        super().__init__()
        if draws < 1 or reduce not in ("logits", "probs"):
            raise ContractError(
                f"draws={draws}, reduce={reduce!r}: draws is 1 or more, reduce 'logits' or 'probs'"
            )
        self.model = model
        self.draws = draws
        self.reduce = reduce

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in, `[N,K]` averaged logits out."""
        outputs = torch.stack([self.model(x) for _ in range(self.draws)])
        if self.reduce == "logits":
            return outputs.mean(0)
        return outputs.log_softmax(-1).logsumexp(0) - torch.tensor(float(self.draws)).log().item()
