"""The analyses: numbers that are known by construction, files, pictures whose texts can be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cifs_models import Plain, tiny
from readable import assert_readable
from torch import nn

import zoo_cifs
from zoo.analysis import analyse
from zoo.data import Data, load_data
from zoo.errors import ContractError, MissingExtra, UnknownName, ZooError
from zoo.nn import Classifier
from zoo.registry import registry
from zoo.result import Result
from zoo.threat import Threat
from zoo_cifs import analysis, channels, plots
from zoo_cifs.analysis import betas, classes, heads, top_k
from zoo_cifs.channels import activations, activity
from zoo_cifs.common import attacked, logits_of, right
from zoo_cifs.plots import Channels

THREAT = Threat.parse("linf:0.05")


def data_of(x, y, num_classes=10):
    return Data((255 * x).round().to(torch.uint8), y, "made", num_classes)


def random_data(n=12, num_classes=10):
    x = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return data_of(x, torch.arange(n) % num_classes, num_classes)


# -- channels ---------------------------------------------------------------------------------------------


def test_magnitude_is_a_mean_and_activation_is_relative_to_the_images_largest_channel():
    features = torch.tensor([[100.0, 0.9, 1.1, 0.0], [1.0, 0.9, 0.0, 0.005]])
    found = activity(features)
    assert found.magnitude.tolist() == pytest.approx([50.5, 0.9, 0.55, 0.0025])
    assert found.frequency.tolist() == [1.0, 0.5, 0.5, 0.0]


class ByChannel(Classifier):
    """Its pooled features are the means of its channels; class k has known weights for them."""

    feature_names = ("act1",)

    def __init__(self) -> None:
        super().__init__()
        self.act1 = nn.Identity()
        self.set_features([4], [1])
        self.set_head(4, 2)
        self.fc.weight.data = torch.tensor([[0.0, 3.0, -1.0, 1.0], [2.0, -2.0, 0.5, 0.0]])
        self.fc.bias.data.zero_()

    def stages(self, x, tap=None):
        yield x


def by_channel_data():
    levels = [[0.8, 0.4, 0.0, 0.2], [0.4, 0.4, 0.004, 0.2], [0.6, 0.0, 0.2, 0.2]]
    x = torch.tensor(levels)[:, :, None, None].expand(-1, -1, 4, 4)
    return data_of(x, torch.tensor([0, 0, 1]), 2)


def test_channels_stand_in_the_order_of_falling_weights_natural_and_adversarial(tmp_path):
    model = ByChannel().eval()
    attack = "cifs-beta(beta=0, steps=1, rel_step=1)"
    found = activations(
        model, by_channel_data(), out=tmp_path, threat=Threat.parse("linf:0.1"), attack=attack
    )
    written = json.loads((tmp_path / "channels.json").read_text())
    zero = written["0"]
    assert zero["weight"] == [3.0, 1.0, 0.0, -1.0]
    assert zero["natural"]["magnitude"] == pytest.approx([0.4, 0.2, 0.6, 0.002], abs=0.002)
    assert zero["natural"]["frequency"] == [1.0, 1.0, 1.0, 0.0]
    # one step of 0.1 against class 0: channels 0 and 2 up, 1 and 3 down
    assert zero["adversarial"]["magnitude"] == pytest.approx([0.3, 0.1, 0.7, 0.102], abs=0.002)
    assert zero["adversarial"]["frequency"] == [1.0, 1.0, 1.0, 1.0]
    one = written["1"]
    assert (one["class"], one["n"], one["weight"]) == ("1", 1, [2.0, 0.5, 0.0, -2.0])
    numbers = found["classes"]["0"]
    assert numbers["n"] == 2
    assert numbers["natural"]["negative_share"] == pytest.approx((0.6 + 0.002) / 1.202, abs=0.005)
    weights, magnitudes = torch.tensor([3.0, 1, 0, -1]), torch.tensor([0.4, 0.2, 0.6, 0.002])
    wanted = float(torch.corrcoef(torch.stack([weights, magnitudes]))[0, 1])
    assert numbers["natural"]["alignment"] == pytest.approx(wanted, abs=0.01)
    assert numbers["robust"] == 0.5  # 3*0.3+0.1-0.1 > 2*0.5-0.6+0.05, but not for the first image
    assert found["pictures"] == ["activations-1.png"]
    assert (tmp_path / "activations-1.png").read_bytes().startswith(b"\x89PNG")


def test_masks_are_part_of_the_features():
    model, x = tiny("cas_resnet10"), random_data(3).pixels()
    wanted = model.forward_features(x).abs().mean((2, 3))
    assert torch.allclose(channels.pooled(model, x), wanted)
    assert bool((model.forward_features(x) < 0).any())


def test_only_the_named_classes_are_attacked(tmp_path, monkeypatch):
    seen = []
    original = channels.attacked
    monkeypatch.setattr(
        channels, "attacked", lambda m, d, *rest: (seen.append(len(d)), original(m, d, *rest))[1]
    )
    found = activations(ByChannel().eval(), by_channel_data(), out=tmp_path, threat=THREAT, classes="1")
    assert seen == [1]
    assert list(found["classes"]) == ["1"]


@pytest.mark.parametrize(
    ("model", "classes", "error", "message"),
    [
        (ByChannel(), "cat", UnknownName, "unknown class 'cat': known: 0, 1"),
        (ByChannel(), "0,7", UnknownName, "unknown class '7'"),
        (Plain(), "", ContractError, "Plain has no linear last layer on pooled channels"),
        (tiny("cifs_resnet10", num_classes=0), "", ContractError, "no linear last layer"),
    ],
)
def test_what_cannot_be_drawn_is_said(model, classes, error, message, tmp_path):
    with pytest.raises(error, match=message):
        activations(model.eval(), by_channel_data(), out=tmp_path, threat=THREAT, classes=classes)


def test_a_class_without_images_and_data_without_labels_are_refused(tmp_path):
    data = by_channel_data()
    with pytest.raises(ZooError, match="none of the images is of class 1"):
        activations(ByChannel().eval(), data.subset(2), out=tmp_path, threat=THREAT, classes="1")
    blank = Data(data.images, None, "made", 2)
    with pytest.raises(ZooError, match="made has no labels"):
        top_k(ByChannel().eval(), blank, out=tmp_path, threat=THREAT)


# -- tables -----------------------------------------------------------------------------------------------


def test_top_k_counts_labels_among_the_best_on_the_last_iterates(tmp_path):
    model, data = tiny("cifs_resnet10", kappa=32), random_data()
    found = top_k(model, data, out=tmp_path, threat=THREAT, columns="FGSM,PGD-20", k=4)
    assert list(found)[:5] == ["name", "dataset", "n", "threat", "natural top-1"]
    assert (found["name"], found["n"], found["threat"]) == ("cifs-resnet10", 12, "linf:0.05")
    adv = attacked(model, data, THREAT, "cifs-beta(steps=20)")
    order = logits_of(model, adv)[0].argsort(1, descending=True)
    for k in (1, 2, 3, 4):
        wanted = float((order[:, :k] == data.labels[:, None]).any(1).float().mean())
        assert found[f"PGD-20 top-{k}"] == pytest.approx(wanted, abs=1e-6)
    assert found["FGSM top-4"] >= found["FGSM top-1"]
    assert mapped("4.4") <= set(found)
    assert (tmp_path / "top-k.png").stat().st_size > 5000
    with pytest.raises(ZooError, match="k=11 must lie between 1 and the 10 classes"):
        top_k(model, data, out=tmp_path, threat=THREAT, k=11)
    with pytest.raises(UnknownName, match="did you mean PGD-20"):
        top_k(model, data, out=tmp_path, threat=THREAT, columns="PGD-2")


@torch.no_grad()
def centred(model, x):
    """The model with biases of which no head has a favourite class."""
    for index, probe in enumerate(model.probes()):
        probe.fc.bias -= model.forward_heads(x)[1][index].mean(0)
    model.fc.bias -= model(x).mean(0)
    return model


def test_heads_are_attacked_alone_and_together(tmp_path):
    data, threat = random_data(16), Threat.parse("linf:0.002")
    model = centred(tiny("cifs_resnet10", kappa=32), data.pixels())
    y = model(data.pixels()).argmax(1)
    data = Data(data.images, y, "made", 10)
    found = heads(model, data, out=tmp_path, threat=threat, column="FGSM")
    one = [
        right(z, y)
        for z in logits_of(model, attacked(model, data, threat, "cifs-beta(head=1, steps=1, rel_step=1)"))
    ]
    assert found["heads"]["inf-1"] == dict(zip(("final", "raw 1", "raw 2"), one, strict=True))
    assert (found["CIFS/Final"], found["CIFS/CIFS"]) == (one[0], one[1])
    assert len({found["heads"][row][out] for row in ("inf-1", "inf-2") for out in ("final", "raw 1")}) == 4
    assert found["Natural/Final"] == 1.0
    finals = {}
    for row, _, call in zoo_cifs.paper_calls(("FGSM",)):
        finals[row] = right(logits_of(model, attacked(model, data, threat, call))[0], y)
    assert found["Adap/Final"] == min(finals.values())
    assert finals[found["adaptive"]] == found["Adap/Final"]
    assert mapped("4.5") <= set(found)
    plain = heads(tiny_plain(), data, out=tmp_path, threat=threat, column="FGSM")
    assert "CIFS/CIFS" not in plain
    assert plain["adaptive"] == "0"
    with pytest.raises(ZooError, match="must name 1 of"):
        heads(model, data, out=tmp_path, threat=threat, column="FGSM,PGD-20")


def mapped(table):
    """The numbers that `zoo reproduce` looks for in a table."""
    path = Path(zoo_cifs.__file__).with_name("tables.json")
    columns = json.loads(path.read_text(encoding="utf-8"))[table]["columns"].values()
    return {number for c in columns for number in ([c] if isinstance(c, str) else c.values())}


def tiny_plain():
    torch.manual_seed(1)
    return Plain().eval()


class Halves(nn.Module):
    """The final logits show no gradient on the second image, the raw ones none on the first."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward_heads(self, x, y=None):
        score = self.scale * (x[:, :2].flatten(1).mean(1) - 0.5)
        first = x[:, 2].flatten(1).mean(1) > 0.5
        logits = torch.stack([-score, score], 1)
        hidden = logits.detach() + 0 * logits
        return torch.where(first[:, None], logits, hidden), [torch.where(first[:, None], hidden, logits)]

    def forward(self, x):
        return self.forward_heads(x)[0]


def halves_data():
    x = torch.full((3, 3, 4, 4), 0.52)
    x[1, 2] = 0.2
    x[2] = 1.0
    return data_of(x, torch.tensor([1, 1, 1]), 2)


def test_the_minimum_over_betas_is_not_the_worst_case_per_image(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo_cifs, "BETAS", ("0", "inf"))
    out = tmp_path / "betas"
    out.mkdir()
    found = betas(Halves().eval(), halves_data(), out=out, threat=THREAT, columns="FGSM,PGD-20", own=False)
    for column in ("FGSM", "PGD-20"):
        assert found[column] == {
            "0": pytest.approx(2 / 3),
            "inf": pytest.approx(2 / 3),
            "inf-1": pytest.approx(2 / 3),
            "minimum": pytest.approx(2 / 3),
            "worst": pytest.approx(1 / 3, abs=1e-5),
        }
    assert found["natural"] == 1.0
    assert (out / "betas.png").stat().st_size > 5000
    kept = Result.load(out / "result.json")
    assert kept.per_attack["cifs-beta(beta=inf,steps=20)"] == pytest.approx(2 / 3)


def test_the_whole_sweep_is_the_papers_protocol_with_the_own_attack(tmp_path, monkeypatch):
    suites = []

    def recorded(model, data, *, suite, out, threat):
        suites.append(suite)
        raise ZooError("enough")

    monkeypatch.setattr(analysis, "evaluate", recorded)
    for own in (True, False):
        with pytest.raises(ZooError, match="enough"):
            betas(tiny("cifs_resnet10"), random_data(1), out=tmp_path, threat=THREAT, own=own)
    assert suites[0] == "cifs-paper"
    assert suites[1].count(";") == 35


def test_classes_are_counted_by_their_labels_and_set_beside_another_model(tmp_path):
    model, data = tiny("cifs_resnet10"), random_data(10, 5)
    data = Data(data.images, model(data.pixels()).argmax(1), "made", 10)
    found = classes(model, data, out=tmp_path, threat=THREAT, attack="uniform-noise(tries=1)")
    (numbers,) = found["classes"].values()
    present = sorted(set(data.labels.tolist()))
    assert list(numbers) == [*map(str, present), "all"]
    shares = [(data.labels == c).float().mean() for c in present]
    assert numbers["all"] == pytest.approx(float(sum(s * numbers[str(c)] for s, c in zip(shares, present, strict=True))), abs=1e-5)  # fmt: skip


def test_the_command_runs_on_the_bundled_model_and_its_twin(tmp_path):
    params = {"attack": "cifs-beta(steps=2)", "against": "resnet10-cifar.at_digits"}
    found = analyse(
        "cifs-resnet10.at_digits", "cifs-classes", out=tmp_path, n=30, params=params, device="cpu"
    )
    assert list(found["classes"]) == ["cifs-resnet10.at_digits", "resnet10-cifar.at_digits"]
    assert json.loads((tmp_path / "numbers.json").read_text()) == found
    y = load_data("digits", "test").labels[:30]
    assert list(found["classes"]["resnet10-cifar.at_digits"]) == [*map(str, sorted(set(y.tolist()))), "all"]
    assert (tmp_path / "classes.png").stat().st_size > 5000


def test_every_analysis_is_registered():
    names = {spec.name for spec in registry().specs("analyses")}
    assert {"cifs-activations", "cifs-classes", "cifs-top-k", "cifs-heads", "cifs-betas"} <= names


# -- pictures ---------------------------------------------------------------------------------------------

NAME = "cifs-wrn28-10.at_a_rather_long_tag_of_a_data_set"
ABOUT = "cifs-beta(beta=100, steps=100, loss=margin) on 10000 images of cifar10-jpeg, linf:8/255"


def channels_of(name, count=128):
    weight = torch.linspace(3, -1, count)
    noise = torch.rand(4, count, generator=torch.Generator().manual_seed(0))
    return Channels(
        name, 1000, weight, {"natural": (noise[0], noise[1]), "adversarial": (noise[2], noise[3])}
    )


def shares(count, names):
    return {name: {f"automobile {i}": 0.07 * i % 1 for i in range(count)} for name in names}


DRAWINGS = {
    "one class": lambda p: plots.activation_plots([channels_of("automobile", 640)], NAME, ABOUT, p),
    "four classes": lambda p: plots.activation_plots([channels_of("English springer")] * 4, NAME, ABOUT, p),
    "ten classes": lambda p: plots.bar_plot(shares(11, [NAME, "resnet10-cifar.at_digits"]), NAME, ABOUT, p / "a"),
    "two bars": lambda p: plots.bar_plot({"": {"Natural/Final": 1.0, "Adap/Final": 0.0}}, NAME, ABOUT, p / "a"),
    "top five": lambda p: plots.bar_plot(shares(5, [f"top-{k}" for k in range(1, 6)]), NAME, ABOUT, p / "a"),
    "table": lambda p: plots.table_plot(
        {f"row number {i}": [0.1 * i, 1.0, 0.0, 0.5] for i in range(11)}, ["FGSM", "PGD-20", "C&W", "PGD-100"],
        NAME, ABOUT, 2, p / "a",
    ),
    "one column": lambda p: plots.table_plot({"beta 0": [0.5], "minimum over beta": [0.5]}, ["FGSM"], NAME, ABOUT, 1, p / "a"),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_text_can_be_read(name, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    DRAWINGS[name](tmp_path)
    for figure in drawn:
        assert_readable(figure)


def test_pages_of_four_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: Path(path).touch())
    names = plots.activation_plots([channels_of(str(i)) for i in range(9)], NAME, ABOUT, tmp_path)
    assert names == ["activations-1.png", "activations-2.png", "activations-3.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_without_matplotlib_the_remedy_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    for draw in DRAWINGS.values():
        with pytest.raises(MissingExtra, match=r"adversarial-zoo\[plot\]"):
            draw(tmp_path)
