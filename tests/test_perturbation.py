"""Attacks on training data: what a plugin registers, the contract, and the files that are written."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from picture_files import pictures, write_parquet

import zoo
from zoo import testing
from zoo.attacks import bind
from zoo.cli import cli
from zoo.data import Data, load_data
from zoo.errors import ContractError, UnknownName, ZooError
from zoo.perturbation import data_attacks, write_data
from zoo.registry import Plugin, Registry, registry
from zoo.spec import DataAttack


def flipped(data, *, seed, share=0.5):
    """A sound attack: some labels become the next class."""
    chosen = torch.rand(len(data), generator=torch.Generator().manual_seed(seed)) < share
    return replace(data, labels=torch.where(chosen, (data.labels + 1) % data.num_classes, data.labels))


def in_place(data, *, seed):
    data.images[:, :, 0, 0] = 7
    return data


def unseeded(data, *, seed):
    return replace(data, source=torch.randint_like(data.images, 0, 255))


def nothing(data, *, seed):
    return data


def smaller(data, *, seed):
    return replace(data, source=data.images[..., :4, :4])


def strange_labels(data, *, seed):
    return replace(data, labels=data.labels + 1)


def tuples(data, *, seed):
    return data.images, data.labels


def seedless(data):
    return data


PLANTED = {
    in_place: "changes the data that it is given",
    unseeded: "two results for one seed",
    nothing: "changes nothing",
    smaller: "instead of",
    strange_labels: "labels outside of 0..3",
    tuples: "returned a tuple",
    seedless: "takes no argument 'seed'",
}


@pytest.fixture
def planted(monkeypatch):
    """A function that registers an attack on data for this test."""

    def plant(function, **params):
        module = types.ModuleType("zoo_planted")
        module.run = function
        monkeypatch.setitem(sys.modules, "zoo_planted", module)
        spec = DataAttack(name="planted-data", run="zoo_planted:run", params=params)
        plugin = Plugin("planted", "zoo_planted", "planted", "0", specs={"attacks": [spec]})
        found = Registry([*registry().plugins, plugin])
        for name in ("zoo.testing", "zoo.attacks", "zoo.perturbation"):
            monkeypatch.setattr(f"{name}.registry", lambda: found)
        return spec

    return plant


@pytest.mark.parametrize("function", PLANTED, ids=lambda function: function.__name__)
def test_a_planted_bad_attack_on_data_is_refused(planted, function):
    planted(function)
    with pytest.raises(ContractError, match=PLANTED[function]) as caught:
        testing.check_attack("planted-data")
    assert "planted-data" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sound_attack_on_data_may_change_labels_only(planted):
    spec = planted(flipped, share=0.5)
    testing.check_attack("planted-data")
    assert spec in data_attacks()
    data = load_data("digits", "train")
    made = zoo.perturb(data, "planted-data(share=0.25)", seed=2)
    assert torch.equal(made.images, data.images)
    assert 0.2 < float((made.labels != data.labels).float().mean()) < 0.3
    assert made.name == "digits after planted-data(share=0.25), seed 2"
    with pytest.raises(UnknownName, match="did you mean share"):
        zoo.perturb(data, "planted-data(shar=0.2)")


def test_attacks_on_data_and_on_images_are_not_mixed_up():
    data = load_data("digits", "train").subset(4)
    with pytest.raises(ZooError, match="attacks images before a model, not training data"):
        zoo.perturb(data, "fgsm")
    with pytest.raises(ZooError, match="attacks training data, not a model; run 'zoo perturb"):
        bind("random-pixels")
    with pytest.raises(ZooError, match="has no labels"):
        zoo.perturb(replace(data, labels=None), "random-pixels")


def test_the_command_lists_attacks_on_data():
    found = CliRunner().invoke(cli, ["perturb"], catch_exceptions=False)
    assert [line.split()[0] for line in found.output.splitlines()] == [spec.name for spec in data_attacks()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "random-pixels"], "--out"),
        (["digits", "random-pixls", "--out", "x"], "did you mean random-pixels"),
        (["digit", "random-pixels", "--out", "x"], "did you mean digits"),
        (["digits", "random-pixels(pixels=2000)", "--out", "x"], "32x32 = 1024"),
        (["digits", "random-pixels", "--out", "x", "-n", "0"], "n=0"),
    ],
)
def test_a_command_that_cannot_be_leaves_nothing_behind(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZooError, match=message):
        CliRunner().invoke(cli, ["perturb", *arguments], catch_exceptions=False)
    assert not list(tmp_path.iterdir())


def colours(n=12):
    images = torch.from_numpy(pictures(n, (6, 7, 3))).permute(0, 3, 1, 2).contiguous()
    return Data(images, torch.arange(n) % 3, "colours", 3)


def test_written_data_keep_pixels_classes_and_order(tmp_path):
    data, names = colours(), ("wolf/dog", "cat", "antelope")
    write_data(tmp_path / "out", {"train": data, "test": data.subset(6)}, label_names=names)
    assert sorted(p.name for p in (tmp_path / "out/folder/train").iterdir()) == [
        "0-wolf_dog",
        "1-cat",
        "2-antelope",
    ]
    for form, call in (("parquet", "parquet"), ("folder", "folder")):
        train, test = (load_data(call, split, root=tmp_path / "out" / form) for split in ("train", "test"))
        assert (train.shape, train.num_classes, len(test)) == ((3, 6, 7), 3, 6)
        assert torch.equal(train.labels, data.labels)
        assert torch.equal(train.images, data.images)


def test_nothing_is_left_where_writing_fails(tmp_path):
    data = replace(colours(), source=torch.zeros(12, 2, 6, 7, dtype=torch.uint8))
    with pytest.raises(ZooError, match="2 channels"):
        write_data(tmp_path / "out", {"train": data})
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").write_text("")
    with pytest.raises(ZooError, match="not empty"):
        write_data(tmp_path, {"train": colours()})


def test_parquet_files_of_any_size_are_read(tmp_path):
    arrays = pictures(5, (9, 4))
    write_parquet(tmp_path / "data/train-00000-of-00001.parquet", arrays, [0, 4, 1, 1, 0], column="image")
    found = load_data("parquet", "train", root=tmp_path)
    assert np.array_equal(found.images[:, 0], arrays)
    assert found.num_classes == 5
    with pytest.raises(ZooError, match=r"no test-\*\.parquet"):
        load_data("parquet", "test", root=tmp_path)
    with pytest.raises(ZooError, match="--data-root"):
        load_data("parquet", "train")
    write_parquet(tmp_path / "other/train-00000-of-00001.parquet", arrays, [0] * 5, column="picture")
    with pytest.raises(ZooError, match="no column image or img"):
        load_data("parquet", "train", root=tmp_path / "other")
