"""Every model, recipe and attack of every installed plugin keeps the contract; planted bad ones do not."""

from __future__ import annotations

import sys
import types

import pytest
import timm
import torch
from timm.models import generate_default_cfgs, register_model
from torch import nn

import zoo
from zoo import testing
from zoo.errors import ContractError
from zoo.grammar import parse_name
from zoo.registry import Plugin, Registry, registry
from zoo.spec import Attack, ModelSpec
from zoo_base.cifar_resnet import CifarResNet


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Tiny models gain nothing from a second thread, and lose much by it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", registry().names("models"))
def test_model(name):
    testing.check_model(name)


@pytest.mark.parametrize("name", registry().names("recipes"))
def test_recipe(name):
    testing.check_recipe(name)


def test_what_a_recipe_says_of_its_model_reaches_it(monkeypatch):
    """Also where the entrypoint has arguments of its own, which make the variant."""
    given = {}

    def note(cls, variant, pretrained, **kwargs):
        given.update(kwargs)
        raise InterruptedError

    monkeypatch.setattr("zoo.loading.build_model_with_cfg", note)
    zoo.register_timm()
    for recipe in registry().specs("recipes"):
        given.clear()
        with pytest.raises(InterruptedError):
            timm.create_model(parse_name(recipe.name).timm, pretrained=False)
        lost = {key for key, value in recipe.model_kwargs.items() if given.get(key) != value}
        assert not lost, f"{recipe.name} has other {lost} than it says"


@pytest.mark.parametrize("name", registry().names("attacks"))
def test_attack(name):
    testing.check_attack(name)


class NoGradient(CifarResNet):
    def forward_features(self, x):
        return super().forward_features((x * 255).round() / 255)


class Unused(CifarResNet):
    def __init__(self, width=8, in_chans=3, num_classes=10):
        super().__init__((1, 1, 1, 1), width, in_chans, num_classes)
        self.spare = nn.Linear(3, 3)


class Peeks(CifarResNet):
    def forward_features(self, x):
        return super().forward_features(x - x.mean((0, 2, 3), keepdim=True))


class Softmax(CifarResNet):
    def forward_head(self, x, pre_logits=False):
        out = super().forward_head(x, pre_logits)
        return out if pre_logits else out.softmax(1)


class Random(CifarResNet):
    def forward_features(self, x):
        return super().forward_features(x + 0.1 * torch.randn_like(x))


class Counts(CifarResNet):
    def __init__(self, width=8, in_chans=3, num_classes=10):
        super().__init__((1, 1, 1, 1), width, in_chans, num_classes)
        self.register_buffer("calls", torch.zeros(()))

    def forward_features(self, x):
        self.calls += 1
        return super().forward_features(x)


class Forgets(CifarResNet):
    """A random tensor that the weights file does not hold."""

    def __init__(self, width=8, in_chans=3, num_classes=10):
        super().__init__((1, 1, 1, 1), width, in_chans, num_classes)
        self.register_buffer("noise", torch.randn(in_chans, 1, 1), persistent=False)

    def forward_features(self, x):
        return super().forward_features(x + self.noise)


class Autograd(CifarResNet):
    def forward_features(self, x):
        z = super().forward_features(x)
        return z * torch.autograd.grad(z.square().sum(), z, create_graph=True)[0]


class LastMap(CifarResNet):
    """Masks outside of the stages: features_only would miss them."""

    def forward_features(self, x):
        return super().forward_features(x) * 2


class Deaf(CifarResNet):
    def reset_classifier(self, num_classes, global_pool=None):
        super().reset_classifier(10, global_pool)
        self.num_classes = num_classes


class Stuck(CifarResNet):
    def __init__(self, width=8, in_chans=3, num_classes=10):
        super().__init__((1, 1, 1, 1), width, 3, num_classes)

    def forward_features(self, x):
        return super().forward_features(x[:, :1].expand(-1, 3, -1, -1))


class InPlace(CifarResNet):
    def forward_features(self, x):
        return super().forward_features(x if x.requires_grad else x.mul_(1.5))


class NotANumber(CifarResNet):
    def forward_head(self, x, pre_logits=False):
        return super().forward_head(x, pre_logits) / 0


class Half(CifarResNet):
    def forward_head(self, x, pre_logits=False):
        return super().forward_head(x, pre_logits).float()


class Heads(CifarResNet):
    def forward_heads(self, x, y=None):
        return 2 * self.forward(x), []


class Shortcut(CifarResNet):
    def forward(self, x):
        return 2 * super().forward(x)


class Narrow(CifarResNet):
    def __init__(self, width=8, in_chans=3, num_classes=10):
        super().__init__((1, 1, 1, 1), width, in_chans, num_classes)
        self.num_features = 3


class Layer(CifarResNet):
    def get_classifier(self):
        return self.conv1


class Info(CifarResNet):
    def __init__(self, width=8, in_chans=3, num_classes=10):
        super().__init__((1, 1, 1, 1), width, in_chans, num_classes)
        self.feature_info[1]["num_chs"] = 5


class Reduction(CifarResNet):
    def __init__(self, width=8, in_chans=3, num_classes=10):
        super().__init__((1, 1, 1, 1), width, in_chans, num_classes)
        self.feature_info[2]["reduction"] = 1


class Bare(nn.Module):
    """A module that timm can build, without the interface."""

    def __init__(self, width=8, in_chans=3, num_classes=10):
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(in_chans, width, 4, 4)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.conv1(x).mean((2, 3)))


PLANTED = {
    Heads: r"forward_heads\(x\)\[0\] is not forward",
    Shortcut: r"forward_head\(forward_features\(x\)\) is not forward",
    Narrow: "num_features says 3",
    Layer: "get_classifier",
    Info: "feature_info says 5 channels",
    Reduction: "reduction 1",
    Bare: "lacks forward_features",
    NoGradient: "no gradient reaches the input",
    Unused: "spare.weight .* gets no gradient",
    Peeks: "batch mates",
    Softmax: "probabilities",
    Random: "two answers",
    Counts: "calls changes",
    Forgets: "after saving and loading",
    Autograd: "inference_mode",
    LastMap: "last feature map",
    Deaf: "num_classes=7|reset_classifier",
    Stuck: "in_chans",
    InPlace: "changes its input",
    NotANumber: "NaN",
    Half: "float64",
}


def plant(monkeypatch, cls=None, spec=None, cfg=None, attack=None):
    """A registry with one planted model; its module and timm entry go away with the test."""
    name = "planted_model"
    module = types.ModuleType("zoo_planted")
    module.__all__ = [name]

    def planted_model(pretrained=False, **kwargs):
        from zoo.loading import build

        return build(cls, name, pretrained, **kwargs)

    planted_model.__module__ = "zoo_planted"
    common = {
        "input_size": (3, 32, 32),
        "num_classes": 10,
        "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
        "first_conv": "conv1",
        "classifier": "fc",
    }
    module.default_cfgs = generate_default_cfgs({name: {**common, **(cfg or {})}})
    monkeypatch.setitem(sys.modules, "zoo_planted", module)
    module.planted_model = register_model(planted_model) if cls else None
    models = [ModelSpec(name="planted-model", arch="zoo_planted:planted_model", summary="", **(spec or {}))]
    plugin = Plugin("planted", "zoo_planted", "planted", "0", specs={"models": models if cls else []})
    plugin.specs["attacks"] = [attack] if attack else []
    reg = Registry([*registry().plugins, plugin])
    for module_name in ("zoo.testing", "zoo.model_checks", "zoo.loading", "zoo.attacks", "zoo.catalogue"):
        monkeypatch.setattr(f"{module_name}.registry", lambda: reg)
    return module


@pytest.fixture(autouse=True)
def _timm_as_before():
    """timm keeps its models in globals; a planted one must not stay."""
    tables = [
        v for k, v in vars(timm.models._registry).items() if isinstance(v, dict | set) and k.startswith("_m")
    ]
    yield
    for table in tables:
        rows = [key for key in table if "planted" in str(key)]
        for key in rows:
            table.pop(key) if isinstance(table, dict) else table.discard(key)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls", PLANTED, ids=lambda cls: cls.__name__)
def test_a_planted_bad_model_is_refused(monkeypatch, cls):
    plant(monkeypatch, cls, {"tiny": {"width": 8}})
    with pytest.raises(ContractError, match=PLANTED[cls]) as caught:
        testing.check_model("planted-model")
    assert "planted-model" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_model_unbroken_is_accepted(monkeypatch):
    plant(monkeypatch, CifarResNet, {"tiny": {"width": 8}})
    testing.check_model("planted-model")


@pytest.mark.parametrize(
    ("spec", "cfg", "message"),
    [
        ({"stochastic": True}, {}, "declared stochastic"),
        ({}, {"classifier": "head"}, "classifier 'head'"),
        ({}, {"first_conv": "stem"}, "first_conv 'stem'"),
        ({}, {"mean": (0.5,) * 3}, "normalises outside"),
        ({"twin": "no-such-model"}, {}, "no-such-model"),
        ({"attack": "no-such-attack"}, {}, "no-such-attack"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_wrong_declaration_is_refused(monkeypatch, spec, cfg, message):
    plant(monkeypatch, CifarResNet, {"tiny": {"width": 8}, **spec}, cfg)
    with pytest.raises(Exception, match=message):
        testing.check_model("planted-model")


def test_a_name_that_timm_gives_to_another_is_refused(monkeypatch):
    module = plant(monkeypatch, CifarResNet, {"tiny": {"width": 8}})
    registered = module.planted_model
    module.planted_model = lambda pretrained=False, **kwargs: registered(pretrained, **kwargs)
    with pytest.raises(ContractError, match="timm has another planted_model"):
        testing.check_model("planted-model")
    del timm.models._registry._model_entrypoints["planted_model"]
    with pytest.raises(ContractError, match="timm does not know it"):
        testing.check_model("planted-model")


def noop(model, x, y, threat, *, seed):
    return x.clone()


def too_far(model, x, y, threat, *, seed):
    return (x + 0.5).clamp(0, 1)


def outside(model, x, y, threat, *, seed):
    return x + 0.09


def doubles(model, x, y, threat, *, seed):
    return x.double()


def unseeded(model, x, y, threat, *, seed):
    return (x + 0.05 * torch.randn_like(x).sign()).clamp(0, 1)


def relabels(model, x, y, threat, *, seed):
    y.zero_()
    return x.clone()


def overwrites(model, x, y, threat, *, seed):
    return x.clamp_(0.2, 0.8)


def trains(model, x, y, threat, *, seed):
    model.train()
    return x.clone()


def seedless(model, x, y, threat):
    return x.clone()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (noop, "fools not even"),
        (too_far, "leaves the threat model"),
        (outside, "leaves the threat model"),
        (doubles, "no images like those"),
        (unseeded, "two results"),
        (relabels, "images or labels"),
        (overwrites, "images or labels"),
        (trains, "leaves the model changed"),
        (seedless, "takes no argument 'seed'"),
    ],
)
def test_a_planted_bad_attack_is_refused(monkeypatch, function, message):
    attack = Attack(name="planted-attack", run="zoo_planted:run")
    module = plant(monkeypatch, attack=attack)
    module.run = function
    with pytest.raises(ContractError, match=message):
        testing.check_attack("planted-attack")


def test_check_plugin_runs_every_check(monkeypatch):
    seen = []
    for kind in ("model", "recipe", "attack"):
        monkeypatch.setattr(testing, f"check_{kind}", seen.append)
    testing.check_plugin("zoo_cifs")
    assert "cifs-resnet18" in seen
    assert "cifs-resnet10.at_digits" in seen
    assert "cifs-joint" in seen
    with pytest.raises(ContractError, match="not installed"):
        testing.check_plugin("no_such_plugin")
