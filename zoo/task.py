"""What is to be measured: a model, images, a threat model; from names or from a user's own objects."""

from __future__ import annotations

import contextlib
import itertools
import runpy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.catalogue import full_name
from zoo.data import Data, arrays_sha256, as_labels, as_pixels, check_fits, declared_shape, load_data
from zoo.errors import ContractError, ZooError, unknown
from zoo.judging import seeded
from zoo.loading import find_device, load, name_of
from zoo.registry import registry
from zoo.spec import ModelSpec, Recipe
from zoo.threat import Threat
from zoo.weights import load_into

HEAD = 500  # images that checks of the model may look at


@dataclass
class Subject:
    """A model in measurement, and what the zoo knows of it."""

    model: nn.Module
    name: str
    spec: ModelSpec | None
    recipe: Recipe | None
    device: torch.device

    @property
    def own_attack(self) -> str:
        """The call of the model's own adaptive attack, or ""."""
        return self.spec.attack if self.spec else ""

    @property
    def task(self) -> str:
        """What the model is for: of its spec, or of an attribute `task` of a model that has none."""
        return self.spec.task if self.spec else str(getattr(self.model, "task", "classify"))

    @property
    def suite(self) -> str:
        """The protocol that measures the model unless another is named."""
        return self.spec.suite if self.spec else "quick"


@dataclass
class Examples:
    """The images of a measurement: float32 `[N,C,H,W]` in [0,1], labels int64 `[N]`.

    `index` says which of the named images they are; `sha256` is that of all of them, of which a shard
    is a part. `head` holds the first `HEAD` images and labels of all of them, the same in every shard.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    name: str
    sha256: str
    total: int
    head: tuple[Tensor, Tensor]

    def shard(self, text: str) -> Examples:
        """Every n-th image from the i-th on, for "i/n" (from 0).

        Raises:
            ZooError: the text is not "i/n" with 0 <= i < n.
        """
        first, _, count = text.partition("/")
        plain = (first + count).isascii() and first.isdecimal() and count.isdecimal()
        if not plain or int(first) >= int(count):
            raise ZooError(f"--shard {text!r}: write i/n with i from 0 to n-1, such as 0/3")
        if int(count) > len(self.x):
            raise ZooError(f"--shard {text!r}: there are only {len(self.x)} images")
        rows = torch.arange(int(first), len(self.x), int(count), device=self.x.device)
        rows_cpu = rows.cpu()
        head = (self.head[0].clone(), self.head[1].clone())  # a view would keep all images in memory
        return replace(self, x=self.x[rows], y=self.y[rows], index=self.index[rows_cpu], head=head)


def find_subject(model_or_name: nn.Module | str, device: str | torch.device | None) -> Subject:
    """A model from a name (on the first GPU, or the CPU) or a module (where it is).

    Raises:
        ContractError: neither a name nor a module.
    """
    if isinstance(model_or_name, str):
        target = find_device(device)
        if ".py:" in model_or_name:
            return Subject(user_model(model_or_name).to(target), model_or_name, None, None, target)
        model = load(model_or_name, device=target)
        plain = ":" not in model_or_name
        name = str(full_name(model_or_name)) if plain else str(name_of(model) or model_or_name)
    elif isinstance(model_or_name, nn.Module):
        model = model_or_name if device is None else model_or_name.to(find_device(device))
        known = name_of(model)
        name = str(known) if known else type(model).__name__
    else:
        raise ContractError(f"evaluate takes a name or a torch module, not {type(model_or_name).__name__}")
    known = name_of(model)
    spec = registry().model(known) if known else None
    recipe = next((r for r in registry().recipes(known.model) if r.tag == known.tag), None) if known else None
    return Subject(model, name, spec, recipe, device_of(model))


def user_model(text: str, weights: str | Path | None = None) -> nn.Module:
    """The model that "path.py:Name" builds: a class or function of the user's own file, without arguments.

    Args:
        text: the path of a Python file, which is executed, and what to call in it.
        weights: a safetensors file, loaded strictly.

    Raises:
        ZooError: no such file or name, or it does not build a module.
        IntegrityError: the weights do not fit.
    """
    path_text, _, name = text.rpartition(":")
    path = Path(path_text).expanduser()
    if not path.is_file():
        raise ZooError(f"there is no file {path}; write path.py:MyNet")
    with blamed(f"{path} cannot be run"):
        namespace = runpy.run_path(str(path))
    if not callable(namespace.get(name)):
        raise ZooError(
            str(unknown("class or function", name, [k for k, v in namespace.items() if callable(v)]))
        )
    with blamed(f"{text} cannot be built without arguments"):
        model = namespace[name]()
    if not isinstance(model, nn.Module):
        raise ContractError(f"{text} builds a {type(model).__name__}, not a torch module")
    if weights is not None:
        load_into(model, Path(weights).expanduser())
    return model.eval()


def device_of(model: nn.Module) -> torch.device:
    """The device of a module's first parameter or buffer; the CPU for one without any."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return first.device if isinstance(first, Tensor) else torch.device("cpu")


def find_threat(subject: Subject, threat: str | Threat | None) -> Threat:
    """The threat model that was asked for, or that of the model's recipe.

    Raises:
        ZooError: there is neither, or the text is none.
    """
    if threat is None and subject.recipe is None:
        raise ZooError(
            f"{subject.name} has no recipe to take its threat model from; pass threat='linf:8/255'"
        )
    if threat is None and subject.recipe is not None:
        return subject.recipe.threat
    return threat if isinstance(threat, Threat) else Threat.parse(threat or "")


def find_examples(subject: Subject, data: Any, n: int | None, root: str | Path | None) -> Examples:
    """Images and labels: the test split of a named data set, a `Data`, a pair `(x, y)`, or the recipe's.

    Raises:
        ContractError: the images, the labels or the model's output break the tensor contract.
        ZooError: no data to be had, or no labels.
    """
    if n is not None and n < 1:
        raise ZooError(f"n={n}: measure at least one image")
    if subject.task != "classify":
        raise ZooError(f"{subject.name} is no classifier, and this is only for those; see 'zoo analyse'")
    if data is None and subject.recipe is None:
        raise ZooError(
            f"{subject.name} has no recipe to take its data from; pass data, such as 'digits' or (x, y)"
        )
    if data is None and subject.recipe is not None:
        data = subject.recipe.dataset
    if isinstance(data, str):
        data = load_data(data, "test", root=root, input_size=declared_shape(subject.model))
    if isinstance(data, Data):
        data = data if n is None else data.subset(n)
        if data.labels is None:
            raise ZooError(f"{data.name} has no labels; accuracy needs some")
        x, y, name, digest = data.pixels(), data.labels, data.name, data.sha256
        classes = check_output(subject, x[:2].to(subject.device))
        as_labels(y, len(y), classes)
        check_fits(data, data.shape[0], classes, model=subject.name)
    else:
        x, y = _pair(subject, data)
        if n is not None and n > len(x):
            raise ZooError(f"n={n} images cannot be had; there are {len(x)}")
        x, y = x[:n], y[:n]
        name, digest = "user data", arrays_sha256(x, y)
    index = torch.arange(len(x))
    x, y = x.to(subject.device), y.to(subject.device)
    return Examples(x, y, index, name, digest, len(x), (x[:HEAD], y[:HEAD]))


def _pair(subject: Subject, data: Any) -> tuple[Tensor, Tensor]:
    try:
        x, y = data
    except (TypeError, ValueError):
        raise ContractError("data is a data set's name or a pair (x, y) of images and labels") from None
    images = as_pixels(x)
    classes = check_output(subject, images[:2].to(subject.device))
    return images, as_labels(y, len(images), classes)


@torch.no_grad()
def logits_on(model: nn.Module, x: Tensor) -> Tensor:
    """Logits `[N,K]` as they always are on these images: random draws start from one seed."""
    with seeded(0, x.device):
        logits: Tensor = model(x)
    return logits.float().cpu()


def fingerprint(logits: Tensor) -> tuple[float, ...]:
    """Eight numbers that tell functions apart which share their weights: four sums over each row of logits.

    Unlike a hash they can be compared across hardware, whose logits differ in the last digits
    (`zoo.result.Result.same_function`). A stochastic model has one on each kind of device.

    Args:
        logits: `[2,K]`, of two fixed images.
    """
    finite = logits.double().nan_to_num(0.0, 1e4, -1e4)
    angles = torch.outer(torch.arange(1, logits.shape[1] + 1), torch.arange(1, 5)).double()
    return tuple(float(f"{value:.6g}") for value in (finite @ angles.cos()).flatten().tolist())


@torch.no_grad()
def check_output(subject: Subject, x: Tensor) -> int:
    """Refuse a model that breaks the tensor contract on two images; returns its number of classes.

    Raises:
        ContractError: one line with the reason.
    """
    modes = [(module, module.training) for module in subject.model.modules()]
    try:
        with blamed(f"{subject.name} cannot take images {tuple(x.shape[1:])}"):
            logits = subject.model.eval()(x)
    finally:
        for module, mode in modes:
            module.training = mode
    if not isinstance(logits, Tensor):
        raise ContractError(
            f"{subject.name} returns a {type(logits).__name__}; its forward must return one tensor of logits [N,K]"
        )
    if logits.ndim != 2 or len(logits) != len(x):
        raise ContractError(
            f"{subject.name} returns {tuple(logits.shape)} for {len(x)} images; logits are [N,K]"
        )
    if not logits.is_floating_point():
        kind = str(logits.dtype).removeprefix("torch.")
        raise ContractError(f"{subject.name} returns {kind}; logits are floating-point numbers")
    return int(logits.shape[1])


@contextlib.contextmanager
def blamed(what: str) -> Iterator[None]:
    """Whatever code that is not the zoo's raises inside is an error of one line; `--debug` shows the rest.

    Raises:
        ContractError: `what`, and the reason.
    """
    try:
        yield
    except ZooError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        kind = type(error).__name__
        remedy = "; take a smaller --batch-size" if kind == "OutOfMemoryError" else ""
        raise ContractError(f"{what}: {reason or kind}{remedy}") from error
