"""Verdicts: which images a model gets right, on what an attack was made to return."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zoo import ball
from zoo.errors import ContractError
from zoo.nn import ExpectationOverTransformation
from zoo.threat import Threat

DRAWS = 5  # forwards that judge an image of a stochastic model
EOT_DRAWS = 8  # forwards behind one gradient, or one query, of a stochastic model


@dataclass
class Verdicts:
    """Which images are right: clean, and under each attack; bool `[N]` each, on the CPU.

    Of a stochastic model every draw is kept, `[r,N]`; an image is right when most draws are.
    """

    labels: Tensor
    index: Tensor
    clean: Tensor
    attacks: dict[str, Tensor] = field(default_factory=dict)
    draws: dict[str, Tensor] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    apart: set[str] = field(default_factory=set)  # attacks with a threat model of their own

    @property
    def together(self) -> list[str]:
        """The attacks of the measured threat model."""
        return [call for call in self.attacks if call not in self.apart]

    @property
    def worst(self) -> Tensor:
        """Right on the clean image and under every attack of the threat model.

        Attacks apart (a corruption beside Linf) count only where there are no others: then it says which
        images are right under all of them.
        """
        right = self.clean.clone()
        for call in self.together or list(self.attacks):
            right &= self.attacks[call]
        return right

    def arrays(self) -> dict[str, Tensor]:
        """The arrays of examples.safetensors: verdicts as uint8, 1 = right."""
        named = {
            "label": self.labels.to(torch.int64),
            "index": self.index.to(torch.int64),
            "clean": self.clean.to(torch.uint8),
        }
        named |= {f"attack:{k}": v.to(torch.uint8) for k, v in self.attacks.items()}
        return named | {f"draws:{k}": v.to(torch.uint8) for k, v in self.draws.items()}


@dataclass(frozen=True)
class Judge:
    """Judges images by the true model, in its own precision, in batches.

    Args:
        draws: forwards per image; above 1 for stochastic models, whose randomness is seeded.
    """

    model: nn.Module
    batch_size: int = 256
    draws: int = 1
    seed: int = 0

    @torch.no_grad()
    def right(self, x: Tensor, y: Tensor) -> Tensor:
        """Which images are right in each draw; bool `[draws,N]`, on the CPU."""
        if self.draws == 1:
            return (predict(self.model, x, self.batch_size) == y)[None].cpu()
        rows = []
        for draw in range(self.draws):
            with seeded(self.seed + 1_000_003 * (draw + 1), x.device):
                rows.append(predict(self.model, x, self.batch_size) == y)
        return torch.stack(rows).cpu()

    @property
    def target(self) -> nn.Module:
        """What attacks take gradients of: the model, or the mean over draws of a stochastic one."""
        return self.model if self.draws == 1 else ExpectationOverTransformation(self.model, EOT_DRAWS)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Everything random inside starts from a seed; the generators are as before afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def vote(draws: Tensor) -> Tensor:
    """Right in more than half of the draws; `[r,N]` to `[N]`."""
    return draws.float().mean(0) > 0.5


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch_size: int = 256) -> Tensor:
    """Predicted classes `[N]`, in batches.

    Raises:
        ContractError: a logit is NaN.
    """
    parts = []
    for i in range(0, len(x), batch_size):
        logits = model(x[i : i + batch_size])
        if bool(torch.isnan(logits).any()):
            raise ContractError("the model returns NaN logits; accuracy would count them as class 0")
        parts.append(logits.argmax(1))
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long, device=x.device)


@torch.no_grad()
def convinced(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images an attack may leave as they are: those that fool the model, bool `[N]`.

    Of the mean over the draws of a stochastic model, those that all draws get wrong but one, twice as many as
    its gradients take. One that is wrong on average may owe that to luck, of which an attack that asks after
    every step has plenty, and a vote would bring it back.
    """
    if not isinstance(model, ExpectationOverTransformation):
        wrong: Tensor = model(x).argmax(1) != y
        return wrong
    right = torch.stack([model.model(x).argmax(1) == y for _ in range(2 * model.draws)])
    return right.sum(0) <= 1


def enforce(threat: Threat, x: Tensor, x_adv: Tensor) -> tuple[Tensor, set[str]]:
    """Make an attack's output obey: NaN becomes the clean image, what left the ball is projected back.

    Returns:
        The images, and the flags "nan" and "outside-threat" where something had to be done.

    Raises:
        ContractError: not a tensor of the shape of `x`.
    """
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
        shape = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise ContractError(f"an attack must return a tensor of shape {tuple(x.shape)}, not {shape}")
    x_adv = x_adv.detach().to(x)
    flags = set()
    broken = ~torch.isfinite(x_adv).flatten(1).all(1)
    if bool(broken.any()):
        flags.add("nan")
        x_adv = torch.where(broken[:, None, None, None], x, x_adv)
    if threat.kind == "ball+zeromean":
        x_adv = ball.project(threat, x, x_adv)  # clipping hides how far a mean was moved, so never trust it
    if not bool(ball.inside(threat, x, x_adv).all()):
        flags.add("outside-threat")
        x_adv = ball.project(threat, x, x_adv) if threat.norm else x_adv
    return x_adv.clamp(0, 1), flags
