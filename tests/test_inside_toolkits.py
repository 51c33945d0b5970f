"""The zoo's attacks inside torchattacks and ART: the same images as by the zoo itself."""

from __future__ import annotations

import runpy
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from toolkit_net import Net, accuracy, hide, labelled, small_net
from torch import Tensor, nn

import zoo
from zoo.adapters import as_art_attack, as_torchattack, to_art
from zoo.adapters.defended import Defended, model_behind
from zoo.errors import ContractError, MissingExtra, UnknownName, ZooError
from zoo.threat import Threat

model, batch = pytest.fixture(small_net), pytest.fixture(labelled)
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
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
