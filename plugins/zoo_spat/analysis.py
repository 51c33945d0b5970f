"""What chapter 3 of Hou's thesis shows of a network: where attacks land, similar classes, embeddings.

All take any classifier of the zoo with a linear last layer, so that natural and robust networks can be compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import ball, progress
from zoo.data import Data
from zoo.errors import MissingExtra, UnknownName, ZooError
from zoo.judging import predict
from zoo.loading import name_of
from zoo.pgd import frozen, pgd
from zoo.registry import registry
from zoo.threat import Threat
from zoo_spat import draw
from zoo_spat.spat import CosineHead, View

_BATCH = 256


def confusion(
    model: nn.Module,
    data: Data,
    *,
    out: Path,
    threat: Threat,
    steps: int = 20,
    rel_step: float = 0.1,
    loss: str = "ce",
    seed: int = 0,
) -> dict[str, Any]:
    """Where an untargeted attack lands (figure 3.1), into confusion.png.

    PGD from a random start takes all its steps; only images that are right before it count. Lemma 1 says that it
    goes where the softmax of a wrong class is large: "foretold" is how often it lands on the likeliest wrong class
    of the clean image, "chance" what guessing would give.

    Args:
        model: pixels to logits.
        data: with labels.
        out: an existing folder.
        threat: linf:, l2: or l1:.
        steps, rel_step, loss, seed: of PGD; the step length as a share of the budget.

    Returns:
        As `head_of`; accuracies of all images; "counts" `[K][K]` from class to prediction, over the images that were right before;
        "lands" for each class the class that most of its images become, and their share; "foretold" and "chance".
    """
    x, y = _pixels(model, data)
    with frozen(model):
        clean = _logits(model, x)
        right = clean.argmax(1) == y
        x, y, clean = x[right], y[right], clean[right]
        size = rel_step * ball.budget(threat, x)
        adv = pgd(model, x, y, threat, steps=steps, step_size=size, loss=loss, seed=seed, early_stop=False)
        landed = predict(model, adv)
    kinds = clean.shape[1]
    counts = torch.bincount(y * kinds + landed, minlength=kinds * kinds).view(kinds, kinds).cpu()
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    names = class_names(data, kinds)
    misled = landed != y
    likeliest = clean.scatter(1, y[:, None], -torch.inf).argmax(1)
    subtitle = f"PGD-{steps} on {loss}, {threat}, {len(y)} images; rows in % of the images of a class"
    title = f"Where untargeted attacks land: {title_of(model)} on {data.name}"
    draw.matrix_plot(shares, names, Path(out) / "confusion.png", title=title, subtitle=subtitle)
    return head_of(model, data) | {
        "clean": len(y) / len(data),
        "attacked": int((~misled).sum()) / len(data),
        "counts": counts.tolist(),
        "lands": _hardest(shares, names),
        "foretold": round(float((likeliest == landed)[misled].float().mean()), 6)
        if bool(misled.any())
        else None,
        "chance": round(1 / (kinds - 1), 6),
    }


def similarity(model: nn.Module, data: Data, *, out: Path) -> dict[str, Any]:
    """Norms of the class weights (table 3.1) and similarities between classes, into similarity.png.

    Args:
        model, data, out: as in `confusion`; the model's last layer is linear.

    Returns:
        As `head_of`; "norms" `[K]` of the stored weights (a normalised cosine head uses them at norm 1), also one by
        one as "v0", "v1" and so on, as table 3.1 calls them; "images" `[K][K]`, the
        mean cosine of a class's embeddings with each class weight; "centres" `[K][K]`, the cosines between the mean
        directions of the classes; "closest" for each class the one with the closest centre; "weights" `[K][K]`, the
        cosines between class weights; "clean", the accuracy, and for cosine heads "clean_features", the accuracy
        that the authors of SPAT report: on features that are not normalised.
    """
    weight = _last_layer(model).weight.detach().float()
    z, y = embeddings(model, data)
    kinds = len(weight)
    direction, unit = F.normalize(z), F.normalize(weight)
    own = F.one_hot(y, kinds).to(z)
    mean = (own.T @ direction) / own.sum(0).clamp_min(1)[:, None]
    images, centre = mean @ unit.T, F.normalize(mean)
    centres, names = centre @ centre.T, class_names(data, kinds)
    norms = weight.norm(dim=1)
    title = f"Similar classes: {title_of(model)} on {data.name}"
    subtitle = f"cosines, {len(y)} images"
    path = Path(out) / "similarity.png"
    draw.similarity_plot(
        images.cpu(), centres.cpu(), norms.cpu(), names, path, title=title, subtitle=subtitle
    )
    found = head_of(model, data) | {
        "norms": _rounded(norms),
        **{f"v{label}": round(float(norm), 6) for label, norm in enumerate(norms)},
        "images": _rounded(images),
        "centres": _rounded(centres),
        "closest": _hardest(centres.cpu(), names),
        "weights": _rounded(unit @ unit.T),
    }
    return found | _accuracies(model, data)


def tsne(
    model: nn.Module, data: Data, *, out: Path, images: int = 1000, perplexity: float = 30.0, seed: int = 0
) -> dict[str, Any]:
    """t-SNE of the embeddings (figure 3.2), into tsne.png; the embeddings are what the last layer sees.

    Args:
        model, data, out: as in `confusion`.
        images: how many, from the first.
        perplexity: of t-SNE; at most a third of the images is used.
        seed: of t-SNE.

    Returns:
        As `head_of`; the divergence that t-SNE ended at; "closest": for each class that with the closest centre
        in the plane.

    Raises:
        MissingExtra: scikit-learn is not installed.
        ZooError: fewer than 4 images.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise MissingExtra("data", "t-SNE") from error
    data = data.subset(min(images, len(data)))
    if len(data) < 4:
        raise ZooError(f"t-SNE of {len(data)} images says nothing; take at least 4")
    z, y = (tensor.cpu() for tensor in embeddings(model, data))
    used = min(perplexity, (len(data) - 1) / 3)
    fitted = TSNE(n_components=2, perplexity=used, init="pca", random_state=seed)
    points = fitted.fit_transform(z.numpy())
    names = class_names(data, int(y.max()) + 1)
    title = f"Embeddings: {title_of(model)} on {data.name}"
    subtitle = f"t-SNE of {len(data)} images, perplexity {used:g}"
    draw.points_plot(points, y.tolist(), names, Path(out) / "tsne.png", title=title, subtitle=subtitle)
    plane = torch.from_numpy(points).float()
    shown = sorted(set(y.tolist()))
    middles = torch.stack([plane[y == label].mean(0) for label in shown])
    near = _hardest(-torch.cdist(middles, middles), [names[label] for label in shown])
    return head_of(model, data) | {
        "divergence": round(float(fitted.kl_divergence_), 6),
        "closest": {name: entry["to"] for name, entry in near.items()},
    }


def embeddings(model: nn.Module, data: Data) -> tuple[Tensor, Tensor]:
    """What the last layer sees, float32 `[N,D]`, and the labels `[N]`."""
    _last_layer(model)
    net: Any = model
    x, y = _pixels(model, data)
    parts = []
    with frozen(model), torch.no_grad():
        for number, part in enumerate(x.split(_BATCH)):
            progress.report(number * _BATCH, len(x))
            parts.append(net.forward_head(net.forward_features(part), pre_logits=True).float())
    return torch.cat(parts), y


def class_names(data: Data, count: int) -> list[str]:
    """The names of the classes; their numbers where the data set gives none."""
    try:
        names = registry().dataset(data.name.partition("(")[0]).label_names
    except UnknownName:
        names = ()
    return [names[label] if label < len(names) else str(label) for label in range(count)]


def head_of(model: nn.Module, data: Data) -> dict[str, Any]:
    """What every analysis says first: of which model its numbers are, and on what they were measured."""
    return {"name": title_of(model), "dataset": data.name, "n": len(data)}


def title_of(model: nn.Module) -> str:
    """A model's name, or that of its class."""
    return str(name_of(model) or type(model).__name__)


def _pixels(model: nn.Module, data: Data) -> tuple[Tensor, Tensor]:
    if data.labels is None:
        raise ZooError(f"{data.name} has no labels; this analysis needs them")
    device = next(model.parameters()).device
    return data.pixels().to(device), data.labels.to(device)


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model(part).float() for part in x.split(_BATCH)])


def _accuracies(model: nn.Module, data: Data) -> dict[str, float]:
    x, y = _pixels(model, data)
    seen: dict[str, nn.Module] = {"clean": model}
    if isinstance(model, CosineHead) and model.normalized:
        seen["clean_features"] = View(model, "features")
    with frozen(model):
        return {key: round(float((predict(net, x) == y).float().mean()), 6) for key, net in seen.items()}


def _last_layer(model: nn.Module) -> nn.Linear:
    """The linear classifier of a model that answers as timm's do."""
    getter = getattr(model, "get_classifier", None)
    layer = getter() if getter is not None else None
    if not isinstance(layer, nn.Linear) or not hasattr(model, "forward_head"):
        raise ZooError(
            f"{title_of(model)} has no linear last layer to look into; take a classifier of the zoo"
        )
    return layer


def _hardest(values: Tensor, names: list[str]) -> dict[str, dict[str, Any]]:
    """For each class the other one with the largest value (None where that is 0), and the value."""
    others = values.clone().fill_diagonal_(-torch.inf)
    return {
        name: {
            "to": names[int(row.argmax())] if float(row.max()) else None,
            "value": round(float(row.max()), 6),
        }
        for name, row in zip(names, others, strict=True)
    }


def _rounded(values: Tensor) -> list[Any]:
    found: list[Any] = (values.double() * 1e6).round().div(1e6).tolist()
    return found
