"""Tables 5.1 and 5.2: a network behind input transformations, under the transfer protocol and under a white box."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

from torch import nn

from zoo import progress
from zoo.data import Data
from zoo.drawing import need_matplotlib
from zoo.errors import ZooError
from zoo.task import device_of
from zoo_frequency import pictures
from zoo_frequency.defences import defend, jpeg
from zoo_frequency.inputs import TileInput
from zoo_frequency.measure import (
    Numbers,
    adaptive,
    attacked,
    budgets,
    hits,
    labelled,
    methods_of,
    right_for_both,
    share,
    shares,
    source_of,
    texts,
    title_of,
)


def protocol(
    model: nn.Module,
    data: Data,
    *,
    out: str | Path,
    eps: str = "0.15,0.25",
    unit: str = "normalised",
    defences: str = "none;bits;median;average;pd;pd+bits;pd+median;pd+average",
    methods: str = "pgd,bim,mim",
    both_right: bool = True,
    jpeg_quality: int = 0,
    crop: bool = True,
    white_steps: int = 40,
    images: int = 1000,
    source: str = "",
    source_weights: str = "",
    seed: int = 0,
) -> Numbers:
    """The thesis's tables, and beside each of its figures what an attacker who knows the defence leaves.

    "transfer": images made against the undefended source, shown to this network behind each defence. For an image
    network, which is its own source, "none" is a white box, and the rows behind defences are attacks that do not
    know the defence. "white box": the three attacks on this network itself, and "adaptive", the worst of the
    gradients that defence and network offer (`zoo_frequency.attack.white_box`), on each defence; of the bare
    network the worst of all that was run.

    Args:
        model: any classifier.
        data: with labels.
        out: folder for protocol.png.
        eps, unit: budgets, see `zoo_frequency.measure.budgets`.
        defences: chains as in `zoo_frequency.defences.defend`, separated by semicolons.
        methods: the thesis's attacks.
        both_right: count only images that the source and the network get right without attack or defence, as on
            ImageNet in the thesis; False counts all, as on its other data.
        jpeg_quality: save the attacked images as JPEG of that quality and read them again, as the thesis does on
            ImageNet (PIL's default is 75), which alone takes part of an attack away; 0 keeps them in memory. What
            the adaptive attack finds is judged as it is.
        crop: False takes the middle square of tile networks away: the thesis's "no center crop".
        white_steps: of the adaptive attack; 0 leaves it out.
        images: the first so many, before any is left out; 0 for all. The thesis takes 2,000 of ImageNet that both get
            right, and at random 5,000 of Fashion-MNIST and 2,000 of SVHN.
        source, source_weights: the attacked network, as in `zoo_frequency.attack.transfer`.
        seed: of random starts and random defences.

    Returns:
        Names, the number of images that count, and accuracies "clean DEFENCE top-1", "transfer DEFENCE METHOD EPS
        top-1", "white-box none METHOD EPS top-1", "white-box DEFENCE adaptive EPS top-1", and the same for top-5
        but for the adaptive attack.
    """
    need_matplotlib()
    attacked_network, source_name = source_of(model, source, source_weights)
    threats = budgets(eps, unit, attacked_network)
    chains, chosen = texts(defences, ";"), methods_of(methods)
    x, y = labelled(data, images, device_of(model))
    numbers: Numbers = {"name": title_of(model), "dataset": data.name, "source": source_name}
    with cropped(model, crop):
        if both_right:
            x, y = right_for_both(model, attacked_network, x, y)
        numbers |= {"n": len(x), "eps_in_pixels": {text: threat.eps for text, threat in threats.items()}}
        networks: Mapping[str, nn.Module] = {chain: defend(model, chain) for chain in chains}
        for chain, network in networks.items():
            numbers |= {f"clean {chain} {top}": value for top, value in shares(hits(network, x, y, seed))}
        total = len(threats) * (2 * len(chosen) + len(chains))
        done = 0
        for text, threat in threats.items():
            standing = hits(model, x, y, seed)[1]  # under every white-box attack on the bare network
            for kind, method in product(("transfer", "white-box"), chosen):
                white = kind == "white-box"
                with progress.part(done, total):
                    adv = attacked(model if white else attacked_network, x, y, threat, method, seed)
                done += 1
                adv = jpeg(adv, jpeg_quality) if jpeg_quality else adv
                for chain, judged in ({"none": model} if white else networks).items():
                    found = hits(judged, adv, y, seed)
                    standing = standing & found[1] if white else standing
                    numbers |= {
                        f"{kind} {chain} {method} {text} {top}": value for top, value in shares(found)
                    }
            for chain, network in networks.items() if white_steps else ():
                with progress.part(done, total):
                    right = adaptive(network, x, y, threat, steps=white_steps, seed=seed)
                done += 1
                right = right & standing if chain == "none" else right
                numbers[f"white-box {chain} adaptive {text} top-1"] = share(right)
    pictures.protocol_plot(
        numbers, chains, chosen, list(threats), bool(white_steps), Path(out) / "protocol.png"
    )
    return numbers


@contextlib.contextmanager
def cropped(model: nn.Module, crop: bool) -> Iterator[None]:
    """Inside, tile networks see all of an image where `crop` is False.

    Raises:
        ZooError: the network does not crop.
    """
    layers = [module for module in model.modules() if isinstance(module, TileInput) and module.crop]
    if not crop and not layers:
        raise ZooError(f"{title_of(model)} crops nothing; leave out crop=false")
    before = [layer.crop for layer in layers]
    for layer in layers:
        layer.crop = layer.crop if crop else 0
    try:
        yield
    finally:
        for layer, size in zip(layers, before, strict=True):
            layer.crop = size
