"""Foolbox, RobustBench, and the zoo's attacks inside torchattacks and ART: the same numbers everywhere."""

from __future__ import annotations

import importlib.metadata
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo import ball
from zoo.adapters import as_art_attack, as_torchattack, run_foolbox, to_art, to_foolbox, to_robustbench
from zoo.adapters.defended import Defended, model_behind
from zoo.errors import ContractError, MissingExtra, UnknownName, ZooError
from zoo.evaluation import evaluate
from zoo.grammar import parse_call
from zoo.threat import Threat

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


class Net(nn.Module):
    """Convolution, batch norm, dropout: everything that a wrong mode would change."""

    num_classes = 5

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, 2)
        self.bn = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6 * 9, self.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.bn(self.conv(x)).relu().flatten(1)))


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def batch(model: Net) -> tuple[Tensor, Tensor]:
    x = torch.rand(8, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, model(x).argmax(1)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


# --- foolbox


def foolbox(text: str, model: nn.Module, x: Tensor, y: Tensor, threat: str, seed: int = 0) -> Tensor:
    call = parse_call(text)
    return run_foolbox(model, x, y, Threat.parse(threat), seed=seed, name=call.name, params=call.params)


def test_foolbox_sees_the_same_logits_and_gradient(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    wrapped = to_foolbox(model)
    assert torch.equal(wrapped(x), model(x))
    assert wrapped.bounds == (0, 1)
    assert wrapped.device == torch.device("cpu")
    x = x.clone().requires_grad_()
    (theirs,) = torch.autograd.grad(nn.functional.cross_entropy(wrapped(x), y), x)
    (ours,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
    assert torch.equal(theirs, ours)


FOOLBOX = [
    ("foolbox:LinfPGD(steps=5)", "linf:0.2"),
    ("foolbox:LinfDeepFoolAttack(steps=20)", "linf:0.2"),
    ("foolbox:LInfFMNAttack(steps=10)", "linf:0.2"),
    ("foolbox:L2PGD(steps=5)", "l2:1"),
    ("foolbox:L2CarliniWagnerAttack(steps=20,binary_search_steps=3,stepsize=0.05)", "l2:1"),
    ("foolbox:DDNAttack(steps=10)", "l2:1"),
    ("foolbox:L1FMNAttack(steps=10)", "l1:8"),
    ("foolbox:L0FMNAttack(steps=10)", "l0:20"),
    ("foolbox:L0FMNAttack(steps=10)", "l0:1"),  # foolbox refuses to clip in L0
    ("foolbox:VirtualAdversarialAttack(steps=5,xi=0.1)", "l2:1"),
    ("foolbox:HopSkipJumpAttack(steps=2,max_gradient_eval_steps=20,initial_gradient_eval_steps=10)", "l2:1"),
    (
        "foolbox:HopSkipJumpAttack(steps=2,max_gradient_eval_steps=20,initial_gradient_eval_steps=10)",
        "linf:0.3",
    ),
    ("foolbox:InversionAttack", "l2:3"),
    ("foolbox:LinfRepeatedAdditiveUniformNoiseAttack(repeats=5)", "linf:0.2"),
]


@pytest.mark.parametrize(("text", "threat"), FOOLBOX, ids=lambda v: str(v)[:40])
def test_foolbox_stays_inside_and_disturbs_nothing(
    model: Net, batch: tuple[Tensor, Tensor], text: str, threat: str
) -> None:
    x, y = batch
    model.train()
    model.conv.eval()
    model.fc.bias.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes, clean = [m.training for m in model.modules()], x.clone()
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    with torch.no_grad():
        x_adv = foolbox(text, model, x, y, threat)
    assert x_adv.dtype == torch.float32
    assert not x_adv.requires_grad
    assert bool(ball.inside(Threat.parse(threat), x, x_adv).all())
    assert not torch.equal(x_adv, x)
    assert torch.equal(x, clean)
    assert [m.training for m in model.modules()] == modes
    assert not model.fc.bias.requires_grad
    assert model.conv.weight.grad is None
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])


def test_foolbox_is_seeded(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    first = foolbox("foolbox:LinfPGD(steps=3)", model, *batch, "linf:0.1", seed=1)
    torch.manual_seed(99)
    assert torch.equal(first, foolbox("foolbox:LinfPGD(steps=3)", model, *batch, "linf:0.1", seed=1))
    assert not torch.equal(first, foolbox("foolbox:LinfPGD(steps=3)", model, *batch, "linf:0.1", seed=2))


def test_foolbox_finds_the_optimum_of_a_linear_model() -> None:
    """The distance of x to the boundary is known: attacks succeed a little beyond it and not before."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    w = torch.randn(16, generator=torch.Generator().manual_seed(0))
    model[1].weight.data, model[1].bias.data = torch.stack([w, -w]), torch.zeros(2)
    x = (0.5 + 0.02 * w / w.norm()).view(1, 1, 4, 4)
    model[1].bias.data[0] -= 2 * 0.5 * w.sum()  # the boundary goes through the grey image
    y = torch.tensor([0])
    assert accuracy(model, x, y) == 1
    for text, threat, best in (
        ("foolbox:LinfPGD(steps=40,random_start=false)", "linf", float(0.02 * w.norm() / w.abs().sum())),
        ("foolbox:LinfDeepFoolAttack", "linf", float(0.02 * w.norm() / w.abs().sum())),
        ("foolbox:L2PGD(steps=40,random_start=false)", "l2", 0.02),
        ("foolbox:L2DeepFoolAttack", "l2", 0.02),
    ):
        assert accuracy(model, foolbox(text, model, x, y, f"{threat}:{1.05 * best}"), y) == 0, text
        assert accuracy(model, foolbox(text, model, x, y, f"{threat}:{0.95 * best}"), y) == 1, text


@pytest.mark.parametrize(
    ("text", "threat", "error", "message"),
    [
        ("foolbox:LinfPDG", "linf:0.1", UnknownName, "did you mean LinfPGD"),
        ("foolbox:Attack", "linf:0.1", UnknownName, "unknown foolbox attack"),
        ("foolbox:LinfPGD(stpes=3)", "linf:0.1", UnknownName, "did you mean steps"),
        ("foolbox:L2PGD", "linf:0.1", ZooError, "an attack in l2; it says nothing about linf:0.1"),
        ("foolbox:LinfDeepFoolAttack", "l2:1", ZooError, "an attack in linf"),
        ("foolbox:LinfPGD", "mean:1/255", ZooError, "does not work under mean:1/255"),
        ("foolbox:SpatialAttack", "linf:0.1", ZooError, "no attack in a ball"),
        ("foolbox:VirtualAdversarialAttack", "l2:1", ZooError, "needs steps="),
        ("foolbox:InversionAttack(distance=l7)", "l2:1", UnknownName, "unknown distance"),
        ("foolbox:InversionAttack(distance=linf)", "l2:1", ZooError, "an attack in linf"),
        ("foolbox:LinfPGD(steps=many)", "linf:0.1", ZooError, "foolbox:LinfPGD failed"),
    ],
)
def test_foolbox_errors_are_one_line(
    model: Net, batch: tuple[Tensor, Tensor], text: str, threat: str, error: type[ZooError], message: str
) -> None:
    model.train()
    with pytest.raises(error, match=message) as caught:
        foolbox(text, model, *batch, threat)
    assert "\n" not in str(caught.value)
    assert model.training


def test_foolbox_by_its_string_in_the_evaluator(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    result = evaluate(model, batch, threat="linf:0.3", suite="foolbox:LinfDeepFoolAttack(steps=20)")
    assert result.per_attack["foolbox:LinfDeepFoolAttack(steps=20)"] < result.clean
    assert result.flags == ()


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


def test_missing_foolbox(model: Net, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "foolbox")
    with pytest.raises(MissingExtra, match=r"adversarial-zoo\[foolbox\]"):
        to_foolbox(model)
    with pytest.raises(MissingExtra, match=r"adversarial-zoo\[foolbox\]"):
        foolbox("foolbox:LinfPGD", model, *batch, "linf:0.1")


# --- RobustBench


def test_robustbench_is_not_taken_from_the_wheel_of_torchattacks(
    model: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("zoo.adapters.robustbench.version", missing)
    monkeypatch.setitem(sys.modules, "robustbench", types.ModuleType("robustbench"))
    with pytest.raises(MissingExtra, match=r"needs RobustBench: pip install --no-deps git\+https") as caught:
        to_robustbench(model)
    assert "\n" not in str(caught.value)


def test_robustbench_can_run_its_benchmark(
    model: Net, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in that does to the model what `robustbench.eval.benchmark` does; RobustBench is not installed."""
    from zoo.adapters.robustbench import run_benchmark

    x, y = batch
    asked = {}

    def benchmark(net: nn.Module, **kwargs: object) -> tuple[float, float]:
        asked.update(kwargs)
        assert isinstance(net, nn.Module)
        assert not net.training
        net = net.to(torch.device("cpu"))
        with torch.no_grad():
            assert torch.equal(net(x), model(x))
        return accuracy(net, x, y), 0.25

    monkeypatch.setattr("zoo.adapters.robustbench.version", lambda name: "1.1")
    fake = types.ModuleType("robustbench.eval")
    fake.benchmark = benchmark  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "robustbench", types.ModuleType("robustbench"))
    monkeypatch.setitem(sys.modules, "robustbench.eval", fake)
    assert run_benchmark(model.train(), dataset="cifar10", eps=8 / 255) == (1.0, 0.25)
    assert asked == {"dataset": "cifar10", "eps": 8 / 255}
    fake.benchmark = lambda net, **kwargs: 1 / 0  # type: ignore[attr-defined]
    with pytest.raises(ZooError, match=r"robustbench.eval.benchmark failed: ZeroDivisionError"):
        run_benchmark(model)


# --- the zoo's attacks inside the toolkits

CALLS = [
    ("pgd(steps=5)", "linf:0.1"),
    ("pgd(steps=5,restarts=2,loss=margin)", "l2:0.5"),
    ("fgsm", "linf:0.05"),
    ("uniform-noise", "l1:3"),
    ("spatial(mode=random,tries=3)", "spatial:20,1"),
]


@pytest.mark.parametrize(("call", "threat"), CALLS)
@pytest.mark.parametrize("training", [False, True])
def test_the_same_images_through_torchattacks(
    model: Net, batch: tuple[Tensor, Tensor], call: str, threat: str, training: bool
) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    x, y = batch
    direct = zoo.attack(model, x, y, call, threat=threat, seed=3)
    attack = as_torchattack(call, model, threat=threat, seed=3)
    assert isinstance(attack, torchattacks.attack.Attack)
    model.train(training)
    with torch.no_grad():
        assert torch.equal(attack(x, y), direct)
    assert model.training is training
    assert str(attack).startswith(call.split("(")[0])


def test_torchattacks_multiattack_mixes_theirs_and_ours(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    x, y = batch
    ours = as_torchattack("pgd(steps=20)", model, threat="linf:0.1")
    weak = torchattacks.FGSM(model, eps=0.0001)
    both = torchattacks.MultiAttack([weak, ours])
    assert accuracy(model, both(x, y), y) == accuracy(model, ours(x, y), y) < 1
    assert accuracy(model, weak(x, y), y) == 1


def test_torchattacks_normalisation_is_honoured(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    """A user's model that wants normalised inputs is attacked as the function of pixels that it is."""
    pytest.importorskip("torchattacks")
    x = batch[0]
    mean, std = torch.tensor([0.4, 0.5]).view(1, 2, 1, 1), torch.tensor([0.2, 0.3]).view(1, 2, 1, 1)

    class OfPixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, pixels: Tensor) -> Tensor:
            return self.net((pixels - mean) / std)

    labels = OfPixels()(x).argmax(1)
    direct = zoo.attack(OfPixels(), x, labels, "pgd(steps=5,random_start=false)", threat="linf:0.1")
    attack = as_torchattack("pgd(steps=5,random_start=false)", model, threat="linf:0.1")
    attack.set_normalization_used(mean=[0.4, 0.5], std=[0.2, 0.3])
    adv = attack((x - mean) / std, labels) * std + mean
    assert torch.allclose(adv, direct, atol=1e-5)


def test_torchattacks_without_labels_and_without_images(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    pytest.importorskip("torchattacks")
    x, y = batch
    attack = as_torchattack("fgsm", model, threat=Threat.parse("linf:0.1"))
    assert torch.equal(attack(x), attack(x, y))  # the labels of the batch are the model's answers
    assert attack(x[:0], y[:0]).shape == (0, 2, 8, 8)


@pytest.mark.parametrize(("call", "threat"), CALLS)
def test_the_same_images_through_art(
    model: Net, batch: tuple[Tensor, Tensor], call: str, threat: str
) -> None:
    pytest.importorskip("art")
    from art.attacks.attack import EvasionAttack

    x, y = batch
    direct = zoo.attack(model, x, y, call, threat=threat, seed=3)
    attack = as_art_attack(call, to_art(model, input_shape=(2, 8, 8)), threat=threat, seed=3)
    assert isinstance(attack, EvasionAttack)
    model.train()
    one_hot = np.eye(5, dtype=np.float32)[y.numpy()]
    for labels in (y.numpy(), one_hot):
        out = attack.generate(x.numpy(), labels)
        assert out.dtype == np.float32
        assert np.array_equal(out, direct.numpy())
    assert model.training
    model.eval()
    assert np.array_equal(attack.generate(x=x.numpy().astype(np.float64)), direct.numpy())
    assert attack.generate(x.numpy()[:0]).shape == (0, 2, 8, 8)


def test_inside_arts_autoattack(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    evasion = pytest.importorskip("art.attacks.evasion")
    x, y = batch
    classifier = to_art(model, input_shape=(2, 8, 8))
    weak = evasion.FastGradientMethod(classifier, eps=0.0001)
    ours = as_art_attack("pgd(steps=20)", classifier, threat="linf:0.1")
    suite = evasion.AutoAttack(classifier, eps=0.1, eps_step=0.02, attacks=[weak, ours])
    both = torch.from_numpy(suite.generate(x.numpy(), y.numpy()))
    alone = torch.from_numpy(ours.generate(x.numpy(), y.numpy()))
    assert accuracy(model, both, y) == accuracy(model, alone, y) < 1
    assert not ours.targeted


def test_a_defence_is_part_of_what_is_attacked(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    pytest.importorskip("art")
    from art.defences.preprocessor import FeatureSqueezing, SpatialSmoothing

    x, y = batch
    squeeze = FeatureSqueezing(clip_values=(0.0, 1.0), bit_depth=1)
    classifier = to_art(model, input_shape=(2, 8, 8), preprocessing_defences=[squeeze])
    whole = model_behind(classifier)
    assert isinstance(whole, Defended)
    assert not isinstance(whole, nn.Sequential)
    assert torch.allclose(whole(x), model(x.round()), atol=1e-6)
    # Straight through: the gradient is the model's at the squeezed image.
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(whole(leaf), y), leaf)
    rounded = x.round().requires_grad_()
    (expected,) = torch.autograd.grad(nn.functional.cross_entropy(model(rounded), y), rounded)
    assert torch.allclose(gradient, expected, atol=1e-6)
    # Blind to the squeezing, an attack of 0.2 changes few bits; on the whole it finds those that matter.
    labels = whole(x).argmax(1)
    attack = as_art_attack("pgd(steps=20)", classifier, threat="linf:0.3")
    found = torch.from_numpy(attack.generate(x.numpy(), labels.numpy()))
    assert accuracy(whole, found, labels) <= 0.25
    predicted = classifier.predict(found.numpy()).argmax(1)
    assert np.array_equal(predicted, whole(found).argmax(1).numpy())
    smooth = to_art(
        model, input_shape=(2, 8, 8), preprocessing_defences=[SpatialSmoothing(channels_first=True)]
    )
    assert np.allclose(smooth.predict(x.numpy()), model_behind(smooth)(x).detach().numpy(), atol=1e-5)


def test_a_surrogate_of_a_torch_defence_gives_the_gradient(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    pytest.importorskip("art")
    from art.defences.preprocessor.preprocessor import PreprocessorPyTorch

    class Binary(PreprocessorPyTorch):
        def __init__(self) -> None:
            super().__init__(device_type="cpu", is_fitted=True, apply_fit=False, apply_predict=True)

        def forward(self, x, y=None):
            return (x > 0.5).float(), y

        def estimate_forward(self, x, y=None):
            return 2 * x

    x, _ = batch
    whole = model_behind(to_art(model, input_shape=(2, 8, 8), preprocessing_defences=[Binary()]))
    assert torch.allclose(whole(x), model((x > 0.5).float()), atol=1e-5)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(whole(leaf).sum(), leaf)
    binary = (x > 0.5).float().requires_grad_()
    (inner,) = torch.autograd.grad(model(binary).sum(), binary)
    assert torch.allclose(gradient, 2 * inner, atol=1e-5)


def test_what_the_toolkits_may_not_be_given(model: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("art")
    from art.estimators.classification import BlackBoxClassifier

    black = BlackBoxClassifier(lambda x: np.zeros((len(x), 5)), (2, 8, 8), 5, clip_values=(0, 1))
    with pytest.raises(ContractError, match="holds no torch module"):
        as_art_attack("pgd", black, threat="linf:0.1")
    wide = to_art(model, input_shape=(2, 8, 8), clip_values=(0, 255))
    with pytest.raises(ContractError, match="clip_values are"):
        as_art_attack("pgd", wide, threat="linf:0.1")
    for make in (as_art_attack, as_torchattack):
        target = to_art(model, input_shape=(2, 8, 8)) if make is as_art_attack else model
        with pytest.raises(UnknownName, match="did you mean pgd"):
            make("pgdd", target, threat="linf:0.1")
        with pytest.raises(ZooError, match="eps must be above 0"):
            make("pgd", target, threat="linf:0")
    from zoo.adapters import art, torchattacks

    for module, package in ((art, "art"), (torchattacks, "torchattacks")):
        module._attack_type.cache_clear()
        hide(monkeypatch, package)
    with pytest.raises(MissingExtra, match="no-deps torchattacks"):
        as_torchattack("pgd", model, threat="linf:0.1")
    classifier = types.SimpleNamespace(model=model, clip_values=(0, 1), preprocessing_operations=[])
    with pytest.raises(MissingExtra, match=r"adversarial-zoo\[art\]"):
        as_art_attack("pgd", classifier, threat="linf:0.1")


def test_the_pipeline_example_agrees_with_hand_written_code() -> None:
    pytest.importorskip("art")
    main = runpy.run_path(str(EXAMPLES / "art_pipeline.py"))["main"]
    found = main("cifs-resnet10.at_digits", n=32)
    assert found["art"] == pytest.approx(found["hand"], abs=1e-9)
    assert found["art"][0] == found["zoo"][0]
    assert found["art"][-1] < found["art"][0]
    assert found["zoo"][-1] < found["zoo"][0]
    assert found["hand"][0] >= 0.8
