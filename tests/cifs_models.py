"""Small CIFS and CAS models with visible masks, and the mask by its definition."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

import zoo

ALPHA = {"softmax": 1.0, "sigmoid": 10.0, "softplus": 5.0}


def tiny(name="cifs_resnet18", **kwargs):
    """A small model whose probes are sharp enough for masks to differ visibly between images."""
    zoo.register_timm()
    torch.manual_seed(0)
    size = {"depth": 16, "widen": 1} if "wrn" in name else {}
    hidden = {"hidden": 16} if name.startswith("cifs") else {}
    model = timm.create_model(name, **{"width": 8, **hidden, "in_chans": 3, **size, **kwargs}).eval()
    with torch.no_grad():
        for probe in model.probes():
            for parameter in probe.parameters():
                parameter.mul_(4)
    return model


def images(count=4, dtype=torch.float32):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


def mask_by_definition(probe, z, k, kind, kappa, y=None):
    """Section 1.2 of the methods file word for word: autograd through the probe, summed over positions."""
    z = z.detach().clone().requires_grad_(True)
    logits = probe(z.mean((2, 3)))
    best = logits.argsort(dim=1, descending=True)[:, :k].clone()
    if y is not None:
        best[:, 0] = y
    chosen = logits.gather(1, best).sum()
    g = torch.autograd.grad(chosen, z, create_graph=True)[0].sum((2, 3))
    if kind == "raw":
        mask = g
    elif kind == "softmax":
        mask = torch.exp(g) / torch.exp(g).sum(1, keepdim=True)
    elif kind == "sigmoid":
        mask = 1 / (1 + torch.exp(-10 * g))
    else:
        mask = torch.log(1 + torch.exp(5 * g)) / 5
    return kappa * mask


class Plain(nn.Module):
    """A plain classifier of 3 channels, differentiable everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.norm(self.conv(x))).mean((2, 3)))


class Moment:
    """A step as the loop gives it, that keeps what went through `forward`."""

    precision, share = "float32", None

    def __init__(self, model, epoch=0):
        self.model, self.epoch, self.epochs, self.number = model, epoch, 100, 0
        self.calls, self.generator = [], torch.Generator().manual_seed(2)

    def uniform(self, x):
        return torch.rand(x.shape, generator=self.generator).to(x) * 2 - 1

    def normal(self, x):
        return torch.randn(x.shape, generator=self.generator).to(x)

    def forward(self, x, y=None):
        self.calls.append((x, y))
        self.model.train()
        heads = getattr(self.model, "forward_heads", None)
        return (self.model(x), []) if heads is None else heads(x, y)
