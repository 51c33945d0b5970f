"""A plugin for tests: one architecture that runs in a millisecond, two recipes, a data set."""

from __future__ import annotations

from zoo.hookspecs import hookimpl
from zoo.spec import Dataset, ModelSpec, Recipe, Stage
from zoo.threat import Threat

MODELS = [
    ModelSpec(
        name="tiny-test",
        arch="tiny_net:tiny_test",
        summary="a tiny network",
        paper="https://arxiv.org/abs/2102.01234",
        input_size=(3, 8, 8),
        num_classes=4,
    )
]

RECIPES = [
    Recipe(
        model="tiny-test",
        tag=tag,
        dataset=dataset,
        threat=Threat.parse("linf:8/255"),
        stages=(Stage(epochs=1, objective="tiny_net:objective"),),
        model_kwargs={"width": 8, "in_chans": 1},
    )
    for tag, dataset in (("at_dots", "dots"), ("at_jpeg", "dots-jpeg"))
]

DATASETS = [
    Dataset(
        name=name,
        load="tiny_net:load",
        num_classes=4,
        input_size=(1, 8, 8),
        label_names=("a", "b", "c", "d"),
        source="org/dots",
    )
    for name in ("dots", "dots-jpeg")
]


@hookimpl
def register_models():
    return MODELS


@hookimpl
def register_recipes():
    return RECIPES


@hookimpl
def register_datasets():
    return DATASETS
