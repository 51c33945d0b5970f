"""What section 4.2 of the thesis shows of a front end: correlations, codes, atoms, distances of decision attacks.

Figure 4.13, accuracy against eps, is the analysis `budgets` of every model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.attacks import bind
from zoo.data import Data
from zoo.drawing import need_matplotlib
from zoo.errors import ZooError, unknown
from zoo.judging import Judge, enforce, predict, seeded
from zoo.loading import load, name_of
from zoo.pgd import frozen
from zoo.threat import Threat
from zoo_sparse import draw
from zoo_sparse.dictionary import encoder_of
from zoo_sparse.encoder import largest

BINS = 60
SHORT = {"HopSkipJump": "HSJ", "BoundaryAttack": "Boundary", "ZooAttack": "ZOO"}


@torch.no_grad()
def correlations(
    model: nn.Module, data: Data, *, out: Path, against: str = "", images: int = 50
) -> dict[str, Any]:
    """Correlations of a patch with the atoms, and with the first filters of a network (figure 4.10).

    A correlation is the cosine between patch and atom or filter, without the bias. The typical patch is the one of
    median norm among all of the images; for a filter, the pixels of its own size around the middle of the images.

    Args:
        model: with a sparse encoder.
        data: images.
        out: an existing folder; the picture is correlations.png.
        against: the name of a network with weights; "" leaves it out.
        images: how many, from the first.

    Returns:
        "name", "dataset", "n"; for the "typical" patch and for "all" patches the share of atoms with |cosine| above 1/2,
        and the same for the filters of the network.
    """
    need_matplotlib()
    encoder = encoder_of(model)
    x = data.pixels(slice(0, images)).to(encoder.dictionary.device)
    atoms = _cosines(x, encoder.dictionary, encoder.stride)
    sides: dict[str, Tensor] = {"atoms": atoms[_typical(x, encoder.patch, encoder.stride)]}
    everywhere = {"atoms": atoms}
    if against:
        weight = _first_filters(load(against, device=x.device))
        found = _cosines(x, weight, 1)
        sides[against] = found[_typical(x, weight.shape[-1], 1)]
        everywhere[against] = found
    about = f"{_name(model)}, a patch of median norm among {len(x)} images of {data.name}"
    draw.correlations_plot(
        {k: v.flatten().cpu() for k, v in sides.items()}, BINS, Path(out) / "correlations.png", about
    )
    numbers = {
        name: {
            "typical": round(float((sides[name].abs() > 0.5).float().mean()), 6),
            "all": round(float((everywhere[name].abs() > 0.5).float().mean()), 6),
        }
        for name in sides
    }
    return {"name": _name(model), "dataset": data.name, "n": len(x), **numbers}


@torch.no_grad()
def codes(model: nn.Module, data: Data, *, out: Path, image: int = 0, seed: int = 0) -> dict[str, Any]:
    """The coefficients of one image after each step of the encoder (figure 4.11), into codes.png.

    Args:
        model, data, out: as in `correlations`.
        image: its number in the data.
        seed: of the dropout.

    Returns:
        "name", "dataset", "n" (1), the "map" `[m,m',L]`, and the share of coefficients that are not 0 as "top",
        "dropout" and "code"; "empty" is the share of patches with an empty code.
    """
    need_matplotlib()
    encoder = encoder_of(model)
    if not 0 <= image < len(data):
        raise ZooError(f"image={image}: {data.name} has images 0 to {len(data) - 1}")
    x = data.pixels(slice(image, image + 1)).to(encoder.dictionary.device)
    a = encoder.project(x)[0].flatten(0, 1)  # [positions, L]
    top = torch.zeros_like(a).scatter_(1, largest(a.abs(), encoder.top), 1.0) * a
    with seeded(seed, x.device):
        code = encoder(x)[0].flatten(1).T
    with seeded(seed, x.device):
        kept = _kept(encoder, a, top)
    steps = {"projections": a, f"top {encoder.top}": top, "after dropout": kept, "code": code}
    if not encoder.drop:
        del steps["after dropout"]
    about = f"{_name(model)}, image {image} of {data.name}: the first {draw.SHOWN} patches"
    draw.codes_plot({k: v.cpu() for k, v in steps.items()}, Path(out) / "codes.png", about)
    share = {
        k: round(float((v != 0).float().mean()), 6)
        for k, v in (("top", top), ("dropout", kept), ("code", code))
    }
    side = [encoder.side(size) for size in x.shape[2:]]
    empty = round(float((code == 0).all(1).float().mean()), 6)
    return {
        "name": _name(model), "dataset": data.name, "n": 1, "map": [*side, encoder.atoms], **share, "empty": empty
    }  # fmt: skip


def _kept(encoder: Any, a: Tensor, top: Tensor) -> Tensor:
    """The coefficients that the encoder's dropout leaves, drawn as it draws them."""
    index = largest(a.abs(), encoder.top)
    kept = torch.ones(index.shape, dtype=a.dtype, device=a.device)
    if encoder.drop:
        kept = (torch.rand_like(kept) >= encoder.drop).to(kept)
    return torch.zeros_like(a).scatter_(1, index, kept) * top


@torch.no_grad()
def dictionary(model: nn.Module, data: Data, *, out: Path, atoms: int = 200) -> dict[str, Any]:
    """The atoms (figure 4.12), into dictionary.png.

    Args:
        model, out: as in `correlations`.
        data: names the data set of the model; no image is used.
        atoms: how many to show, from the first.

    Returns:
        "name", "dataset", "n" (0), "atoms"; "l1", the least, median and largest L1 norm; "constant", the share of
        atoms that are almost constant patches (|sum d| > 0.9 |d|_1); "coherence", the median over the atoms of the
        largest |cosine| with another one.
    """
    need_matplotlib()
    d = encoder_of(model).dictionary
    flat = d.flatten(1)
    norms = flat.abs().sum(1)
    unit = F.normalize(flat)
    cosines = (unit @ unit.T).abs().fill_diagonal_(0)
    draw.dictionary_plot(d[:atoms].cpu(), Path(out) / "dictionary.png", _name(model), len(d))
    return {
        "name": _name(model),
        "dataset": data.name,
        "n": 0,
        "atoms": len(d),
        "l1": [round(float(v), 6) for v in (norms.min(), norms.median(), norms.max())],
        "constant": round(float((flat.sum(1).abs() > 0.9 * norms).float().mean()), 6),
        "coherence": round(float(cosines.amax(1).median()), 6),
    }


def distances(
    model: nn.Module,
    data: Data,
    *,
    out: Path,
    images: int = 20,
    attacks: str = "HopSkipJump,ZooAttack",
    iterations: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """How far ART's decision- and score-based attacks have to go in L2 (tables B.2 and B.3), into distances.png.

    Images that are right without an attack are attacked without a budget. ZOO returns images as they were where it
    fails, so that its mean distance is over its successes; the thesis took foolbox, and ZOO on 100 images.

    Args:
        model, data, out: as in `correlations`; any classifier.
        images: how many, from the first.
        attacks: of `SHORT`, separated by commas.
        iterations: of each attack.
        seed: of everything random.

    Returns:
        "name", "dataset", "n"; "HSJ mean L2", "ZOO success" (a share), "ZOO mean L2" and so on. Without a success the
        mean is None. "n_of": how many images each is of, those that were right or those that were turned.
    """
    need_matplotlib()
    if data.labels is None:
        raise ZooError(f"{data.name} has no labels; the success of an attack needs them")
    data = data.subset(min(images, len(data)))
    first = next(iter([*model.parameters(), *model.buffers()]))
    x, y = data.pixels().to(first.device), data.labels[: len(data)].to(first.device)  # type: ignore[index]
    numbers: dict[str, Any] = {"name": _name(model), "dataset": data.name, "n": len(data), "n_of": {}}
    wide = Threat(norm="l2", eps=float(x[0].numel() ** 0.5))
    found: dict[str, list[float]] = {}
    with frozen(model), seeded(seed, x.device):
        right = predict(model, x) == y
        if not bool(right.any()):
            raise ZooError(f"{_name(model)} gets none of {len(x)} images right; there is nothing to attack")
        for name in (part.strip() for part in attacks.split(",") if part.strip()):
            if name not in SHORT:
                raise unknown("attack", name, SHORT)
            call = _art_call(name, iterations)
            adv = bind(call).run(Judge(model).target, x[right], y[right], wide, seed)
            adv = enforce(wide, x[right], adv)[0]
            moved = (adv - x[right]).flatten(1).norm(dim=1)
            success = predict(model, adv) != y[right]
            values = sorted(moved[success].tolist())
            found[SHORT[name]] = values
            numbers[f"{SHORT[name]} success"] = round(float(success.float().mean()), 6)
            numbers[f"{SHORT[name]} mean L2"] = round(sum(values) / len(values), 6) if values else None
            numbers["n_of"] |= {f"{SHORT[name]} success": len(adv), f"{SHORT[name]} mean L2": len(values)}
    about = (
        f"{_name(model)}, {int(right.sum())} images of {data.name} that are right, {iterations} iterations"
    )
    draw.distances_plot(found, int(right.sum()), Path(out) / "distances.png", about)
    return numbers


def _art_call(name: str, iterations: int) -> str:
    settings = {
        "HopSkipJump": "max_eval=1000, init_eval=50",
        "BoundaryAttack": "targeted=false",
        "ZooAttack": "batch_size=1, nb_parallel=64, use_resize=false, use_importance=false",
    }
    norm = ", norm=2" if name == "HopSkipJump" else ""
    return f"art:{name}(max_iter={iterations}{norm}, {settings[name]})"


def _cosines(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Cosines between patches and filters, `[patches, filters]`; 0 for a black patch."""
    flat = F.conv2d(x, weight, stride=stride).flatten(2).transpose(1, 2).flatten(0, 1)
    norms = _patch_norms(x, weight.shape[-1], stride)
    return flat / (norms[:, None] * weight.flatten(1).norm(dim=1)).clamp_min(1e-12)


def _patch_norms(x: Tensor, side: int, stride: int) -> Tensor:
    squares = x.square().sum(1, keepdim=True)
    return F.conv2d(squares, torch.ones(1, 1, side, side).to(x), stride=stride).clamp_min(0).sqrt().flatten()


def _typical(x: Tensor, side: int, stride: int) -> Tensor:
    norms = _patch_norms(x, side, stride)
    return (norms - norms.median()).abs().argmin()[None]


def _first_filters(model: nn.Module) -> Tensor:
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if not layers:
        raise ZooError(f"{type(model).__name__} has no convolution to compare with")
    return layers[0].weight.detach()


def _name(model: nn.Module) -> str:
    return str(name_of(model) or type(model).__name__)
