"""What is looked at besides the table of one data set; each is `run(model, data, *, out, **params)`.

The data of `zoo analyse` are the test images of the model's recipe, or what `--data` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.catalogue import list_models
from zoo.data import Data, declared_shape, load_data
from zoo.drawing import need_matplotlib
from zoo.errors import ZooError, unknown
from zoo.evaluation import attack as attack_images
from zoo.evaluation import evaluate
from zoo.judging import enforce, predict
from zoo.loading import name_of
from zoo.pgd import frozen
from zoo.quality import psnr
from zoo.registry import registry
from zoo.result import wilson
from zoo.step import keyed
from zoo.task import find_subject, find_threat
from zoo.threat import Threat
from zoo_denoise import draw
from zoo_denoise.attack import obsatk
from zoo_denoise.baselines import METHODS, Baseline
from zoo_denoise.defence import compose
from zoo_denoise.noise import attacked, gaussian
from zoo_denoise.recipes import ALPHAS, BUDGETS

Numbers = dict[str, Any]


def measured(
    model: nn.Module, data: Data, *, out: str | Path, dataset: str = "set12", suite: str = "denoise"
) -> Numbers:
    """The PSNR and SSIM of `zoo evaluate` on a further data set, which a card can keep beside its own.

    Args:
        model: a denoiser.
        data: unused.
        out: folder of result.json and of the values of every image.
        dataset: whose test images are measured, all of them.
        suite: a protocol.

    Returns:
        "name", "dataset" and "n", and for every entry of the suite "DATASET ENTRY" and "DATASET ENTRY ssim".
    """
    result = evaluate(model, dataset, suite=suite, out=Path(out) / "result", show_progress=True)
    numbers: Numbers = {
        "name": result.name,
        "dataset": result.dataset,
        "n": result.n,
        "protocol": result.protocol,
    }
    for call, value in result.per_attack.items():
        numbers[f"{result.dataset} {call}"] = value
        numbers[f"{result.dataset} {call} ssim"] = result.extra["ssim"][call]
    return numbers


def baselines(
    model: nn.Module, data: Data, *, out: str | Path, levels: str = "25,15", methods: str = "nlm,tv"
) -> Numbers:
    """The model beside classical denoisers, which are told the level, under normal noise.

    Args:
        model: a denoiser.
        data: clean images.
        out: folder for baselines.png and the result of each.
        levels: in 1/255, separated by commas.
        methods: of "nlm", "tv" and "bm3d", separated by commas; BM3D needs its package, which is for
            non-commercial use only.

    Returns:
        "name", "dataset" and "n", and for each method and level "METHOD LEVEL" in dB and "METHOD LEVEL ssim".
    """
    need_matplotlib()
    chosen = [method.strip() for method in methods.split(",") if method.strip()]
    for method in chosen:
        if method not in METHODS:
            raise unknown("classical denoiser", method, METHODS)
    name = str(name_of(model) or type(model).__name__)
    numbers: Numbers = {"name": name, "dataset": data.name, "n": len(data)}
    bars: dict[str, list[float]] = {method: [] for method in (*chosen, name)}
    for text in levels.split(","):
        call = f"gaussian(level={text.strip()}/255)"
        for method in (*chosen, name):
            tried = model if method == name else Baseline(method, float(text) / 255).eval()
            folder = Path(out) / f"{method}-{text.strip()}"
            result = evaluate(
                tried, data, threat="zeromean:5/255", suite=call, out=folder, show_progress=True
            )
            (value,) = result.per_attack.values()
            (structure,) = result.extra["ssim"].values()
            label = "model" if method == name else method
            numbers[f"{label} {text.strip()}"], numbers[f"{label} {text.strip()} ssim"] = value, structure
            bars[method].append(value)
    shown = [f"level {text.strip()}/255" for text in levels.split(",")]
    about = (
        f"mean PSNR over {len(data)} images of {data.name}, normal noise; all but the model know its level"
    )
    draw.bars(shown, bars, Path(out) / "baselines.png", "Beside classical denoisers", about)
    return numbers


def sheet(
    model: nn.Module,
    data: Data,
    *,
    out: str | Path,
    count: int = 3,
    level: float = 25 / 255,
    eps: float = 5 / 255,
    other: str = "",
    crop: int = 160,
) -> Numbers:
    """Figures 2.2 and 2.3: what the model makes of normal noise, and of ObsAtk at the same level.

    Args:
        model: a denoiser.
        data: clean images.
        out: folder for sheet.png.
        count: images, the first.
        level: of all the noise.
        eps: budget of ObsAtk, of the image's own size.
        other: the name of a second denoiser, whose answer to ObsAtk against itself stands beside.
        crop: side of the square that is shown, from the middle; the PSNR is that of the whole image.

    Returns:
        "name", "dataset" and "n", and the PSNR of every panel, mean over the images.
    """
    need_matplotlib()
    models = {str(name_of(model) or type(model).__name__): model}
    if other:
        models[other] = zoo.load(other, device=next(model.parameters()).device)
    shape = declared_shape(model)
    rows: list[list[tuple[str, Tensor]]] = []
    numbers: Numbers = {"name": next(iter(models)), "dataset": data.name, "n": min(count, len(data))}
    for row in range(numbers["n"]):
        x = data.batch(torch.tensor([row])).float() / 255
        x = (x[:, -shape[0] :] if shape else x).to(next(model.parameters()).device)
        rows.append(_panels(models, x, level, eps, keyed(0, "observed", row)))
    for panels in rows:
        target = panels[0][1]
        for title, image in panels[1:]:
            numbers[title] = numbers.get(title, 0.0) + float(psnr(image, target)) / len(rows)
    about = f"{data.name}; noise of level {255 * level:g}/255 in all, ObsAtk eps {255 * eps:g}/255; dB of the whole image"
    draw.sheet(rows, crop, Path(out) / "sheet.png", "Normal noise and ObsAtk", about)
    return numbers


def _panels(
    models: dict[str, nn.Module], x: Tensor, level: float, eps: float, seed: int
) -> list[tuple[str, Tensor]]:
    """(title, image) from left to right."""
    threat = Threat.parse(f"zeromean:{eps!r}")
    noisy, _ = gaussian(x, level=level, seed=seed)
    base, allowed = attacked(x, threat=threat, seed=seed, mean_size=x[0].numel(), level=level)
    found = [("clean", x), ("normal noise", noisy)]
    for number, (name, model) in enumerate(models.items()):
        adversarial, _ = enforce(allowed, base, obsatk(model, base, x, allowed, seed=0))
        with frozen(model), torch.no_grad():
            of_noise, of_attack = model(noisy).clamp(0, 1), model(adversarial).clamp(0, 1)
        if number == 0:
            found += [(f"{name} of normal noise", of_noise), ("ObsAtk", adversarial)]
        found.append((f"{name} of ObsAtk", of_attack))
    return found


def sweep(
    model: nn.Module,
    data: Data,
    *,
    out: str | Path,
    over: str = "alpha",
    runs: str = "runs",
    dataset: str = "",
    real: str = "",
) -> Numbers:
    """Figures 2.5 and 2.6: PSNR of HAT against alpha, or against the eps of its training.

    The recipes are `dncnn-c.hat_alpha*_bsd432` and `dncnn-c.hat_eps*_bsd432`; whatever of them has weights, in
    `runs/<name>` or as a card, is measured.

    Args:
        model: names the architecture only.
        data: unused where `dataset` is given.
        out: folder for sweep.png and the results.
        over: "alpha" or "eps".
        runs: the folder of run directories.
        dataset: clean images, "" for those of `zoo analyse`.
        real: data sets of pairs, separated by commas, such as "polyu,cc".

    Returns:
        "name", and for every value that has weights and every measurement "OVER=VALUE MEASUREMENT".

    Raises:
        ZooError: no recipe of the sweep has weights.
    """
    need_matplotlib()
    if over not in ("alpha", "eps"):
        raise unknown("sweep", over, ("alpha", "eps"))
    spec = str(name_of(model) or find_subject(model, None).name).partition(".")[0]
    clean = load_data(dataset, "test") if dataset else data
    numbers: Numbers = {"name": spec, "dataset": clean.name, "n": len(clean)}
    curves: dict[str, list[tuple[float, float]]] = {}
    for value in ALPHAS if over == "alpha" else BUDGETS:
        tag = f"hat_{over}{value:g}_bsd432".replace(".", "p")
        weights = _weights(f"{spec}.{tag}", Path(runs))
        if weights is None:
            continue
        trained = zoo.load(f"{spec}.{tag}", weights=weights or None)
        found = _sweep_point(trained, clean, [s for s in real.split(",") if s], Path(out) / tag)
        for label, number in found.items():
            numbers[f"{over}={value:g} {label}"] = number
            curves.setdefault(label, []).append((float(value), number))
    if not curves:
        raise ZooError(
            f"no recipe {spec}.hat_{over}*_bsd432 has weights in {runs}; train some with 'zoo train', or name "
            "their folder with --set runs=DIR"
        )
    label = "alpha" if over == "alpha" else "eps of training, in 1/255"
    about = f"{len(clean)} images of {clean.name}" + (f"; real noise: {real}" if real else "")
    draw.curves(curves, label, Path(out) / "sweep.png", f"Hybrid adversarial training against {over}", about)
    return numbers


def _weights(name: str, runs: Path) -> str | None:
    """Where a recipe's weights are: a run, "" for a card, None for nowhere."""
    if name not in [recipe.name for recipe in registry().recipes(name.partition(".")[0])]:
        return None
    if (runs / name / "model.safetensors").is_file():
        return str(runs / name)
    return "" if name in list_models(name, pretrained=True) else None


def _sweep_point(model: nn.Module, clean: Data, real: Sequence[str], out: Path) -> dict[str, float]:
    calls = [f"{name}(level={level}/255)" for level in (15, 25) for name in ("gaussian", "obsatk")]
    result = evaluate(model, clean, suite="; ".join(calls), out=out, show_progress=True)
    found = dict(result.per_attack)
    for name in real:
        photographs = evaluate(model, name, suite="real-noise", out=out / name, show_progress=True)
        found[name] = photographs.per_attack["observed"]
    return found


def defence(
    model: nn.Module,
    data: Data,
    *,
    out: str | Path,
    classifier: str = "resnet10-cifar.natural_digits",
    threat: str = "",
    attack: str = "pgd(steps=20)",
) -> Numbers:
    """The denoiser before a classifier: accuracies alone, in the grey box and in the white box.

    Grey box: the attack sees the classifier alone, and what it finds is judged behind the denoiser. White box:
    its gradients go through both; what it leaves is an upper bound of the robustness, as always.

    Args:
        model: a denoiser of the classifier's channels.
        data: images with labels.
        out: folder for defence.png.
        classifier: a name.
        threat: "" for that of the classifier's recipe.
        attack: any attack on classifiers.

    Returns:
        Accuracies as shares, with their numbers of images; each of "alone", "grey box", "white box" with its
        95 % interval.

    Raises:
        ZooError: no labels.
    """
    need_matplotlib()
    if data.labels is None:
        raise ZooError(f"{data.name} has no labels for a classifier; name a data set with --data")
    guarded = zoo.load(classifier, device=next(model.parameters()).device)
    chosen = find_threat(find_subject(guarded, None), threat or None)
    both = compose(model, guarded).eval()
    device = next(model.parameters()).device
    x, y = data.pixels().to(device), data.labels.to(device)
    rows: dict[str, tuple[nn.Module, nn.Module]] = {
        "alone": (guarded, guarded),
        "grey box": (guarded, both),
        "white box": (both, both),
    }
    numbers: Numbers = {
        "name": str(name_of(model) or type(model).__name__),
        "dataset": data.name,
        "n": len(x),
    }
    numbers |= {"classifier": classifier, "threat": str(chosen), "attack": attack}
    bars: dict[str, list[float]] = {"without attack": [], "under attack": []}
    for label, (attacked_model, judged) in rows.items():
        clean = int((predict(judged, x) == y).sum())
        x_adv = attack_images(attacked_model, x, y, attack, threat=chosen)
        right = int(((predict(judged, x) == y) & (predict(judged, x_adv) == y)).sum())
        numbers |= {f"{label} clean": clean / len(x), label: right / len(x)}
        numbers[f"{label} interval"] = list(wilson(right, len(x)))
        bars["without attack"].append(100 * clean / len(x))
        bars["under attack"].append(100 * right / len(x))
    about = f"{classifier} behind {numbers['name']}, {len(x)} images of {data.name}, {attack}, {chosen}; accuracy in %"
    draw.bars(list(rows), bars, Path(out) / "defence.png", "The denoiser as a defence", about)
    return numbers
