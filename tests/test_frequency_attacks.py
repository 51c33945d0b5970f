"""The transfer attack sees the twin alone, the white box sees everything that gives a gradient."""

from __future__ import annotations

import pytest
import torch
from linear_net import LINF, SIDE, Linear, images
from torch import Tensor, nn

import zoo
from zoo import ball
from zoo.attacks import bind, expand
from zoo.data import load_data
from zoo.errors import NoWeights, ZooError
from zoo.evaluation import evaluate
from zoo.nn import ExpectationOverTransformation
from zoo.threat import Threat
from zoo_frequency import attack, frequency, recipe
from zoo_frequency.defences import defend


@pytest.mark.parametrize("method", ["pgd", "bim", "mim"])
def test_each_method_reaches_the_corner_that_the_gradient_points_to(method: str) -> None:
    model, x = Linear(1), images()
    y = model(x).argmax(1)
    adv = attack.craft(model, x, y, LINF, method=method)
    signs = torch.where(y == 0, -1.0, 1.0)[:, None] * model.w.sign()
    assert torch.allclose(adv, x + 0.1 * signs.view_as(x), atol=1e-5)


def test_methods_take_the_thesis_steps_and_never_stop_early() -> None:
    model, x = Linear(1, scale=1e-6), images(2)
    y = model(x).argmax(1)
    for method, steps, share in (("pgd", 100, 1 / 15), ("bim", 20, 1 / 3), ("mim", 100, 1 / 15)):
        Linear.calls = 0
        attack.craft(model, x, 1 - y, LINF, method=method)  # wrong from the start, and still attacked
        assert steps <= Linear.calls <= steps + 6
        first = attack.craft(model, x, y, LINF, method=method, steps=1)
        moved = (first - x).abs()
        if method != "pgd":  # from the image itself
            assert torch.allclose(moved, torch.full_like(x, share * 0.1), atol=1e-6)
        else:
            assert float(moved.std()) > 0.01
    with pytest.raises(ZooError, match="unknown method 'pdg'"):
        attack.craft(model, x, y, LINF, method="pdg")


def test_only_mim_accumulates_gradients(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(attack, "pgd", lambda *_, **kwargs: asked.append(kwargs["momentum"]))
    for method in ("pgd", "bim", "mim"):
        attack.craft(Linear(1), images(1), torch.zeros(1), LINF, method=method)
    assert asked == [0, 0, 1]


def test_the_transfer_attack_is_made_on_the_twin_alone(monkeypatch) -> None:
    twin, asked = Linear(3), []

    def load(name: str, **kwargs: object) -> nn.Module:
        asked.append(name)
        return twin

    monkeypatch.setattr(attack, "load", load)
    model = zoo.load("dct-resnet10-cifar.natural_cifar10_jpeg", pretrained=False, width=4, size=SIDE)
    monkeypatch.setattr(type(model), "forward", lambda self, x: pytest.fail("the network was asked"))
    x = images(3)
    y = twin(x).argmax(1)
    found = bind("frequency-transfer(method=bim)").run(model, x, y, LINF, 0)
    assert asked == ["image-resnet10-cifar.natural_cifar10_jpeg"]
    assert torch.equal(found, attack.craft(twin, x, y, LINF, method="bim"))
    wrapped = ExpectationOverTransformation(defend(model, "pd"), 2)
    assert torch.equal(bind("frequency-transfer(method=bim)").run(wrapped, x, y, LINF, 0), found)
    bind("frequency-transfer(source=some-net.tag)").run(model, x[:0], y[:0], LINF, 0)
    assert asked[-1] == "some-net.tag"


def test_who_has_no_twin_is_attacked_himself_and_a_missing_twin_is_said() -> None:
    image = zoo.load("image-resnet10-cifar.natural_digits", pretrained=False)
    assert attack.find_source(image, "", "", "cpu") is image
    assert attack.find_source(defend(image, "pd"), "", "", "cpu") is image
    plain = Linear(1)
    assert attack.find_source(plain, "", "", "cpu") is plain
    model = zoo.load("dct-resnet10-cifar.natural_digits", pretrained=False, in_chans=1)
    assert recipe.natural_twin(model) == "image-resnet10-cifar.natural_digits"
    with pytest.raises(ZooError, match="name a network with source="):
        attack.find_source(zoo.load("dct-resnet10-cifar", pretrained=False), "", "", "cpu")
    missing = zoo.load("dct-resnet50-cifar.natural_svhn", pretrained=False, width=4)
    with pytest.raises(NoWeights):
        attack.find_source(missing, "", "", "cpu")


def test_unrounded_has_the_logits_of_the_network_and_the_gradient_without_rounding() -> None:
    model = frequency.TileBasicResNet((1, 1, 1, 1), 4, num_classes=3, resize=0, crop=0, image_size=16).eval()
    x = 0.5 + 0.004 * torch.rand(
        2, 3, 16, 16, generator=torch.Generator().manual_seed(0)
    )  # all but DC round to 0
    gradients = []
    for view in (attack.Unrounded(model), model):
        leaf = x.clone().requires_grad_(True)
        out = view(leaf)
        assert torch.equal(out, model(x))
        gradients.append(torch.autograd.grad(out[:, 0].sum(), leaf)[0])
    model.frequency.rounding = False
    leaf = x.clone().requires_grad_(True)
    wanted = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)[0]
    assert torch.allclose(gradients[0], wanted, atol=1e-7)
    assert not torch.allclose(gradients[1], wanted, rtol=1e-3, atol=0)
    assert len(attack.gradients(model)) == 1
    model.frequency.rounding = True
    assert [type(view) for view in attack.gradients(model)] == [type(model), attack.Unrounded]
    assert len(attack.gradients(defend(model, "none"))) == 2
    assert len(attack.gradients(defend(model, "median"))) == 6  # each of three, rounded and not
    assert set(attack.views(model)) == {"unrounded"}


def test_every_gradient_of_a_random_defence_is_a_mean_over_draws() -> None:
    defended = defend(Linear(1), "pd+median")
    views = attack.gradients(ExpectationOverTransformation(defended, 3))
    assert all(isinstance(view, ExpectationOverTransformation) and view.draws == 3 for view in views)
    assert [view.model.surrogate for view in views] == ["own", "identity", "average"]


def test_the_white_box_goes_through_defences_without_gradients() -> None:
    """One bit: the loss has no gradient in the pixels, so plain PGD stays at its random start."""
    model, x = Linear(2), images(20)

    class Squeezed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model((3 * x).round() / 3)

    y = Squeezed()(x).argmax(1)
    blind = bind("pgd(steps=10)").run(Squeezed(), x, y, Threat.parse("linf:0.2"), 0)
    right = (Squeezed()(blind).argmax(1) == y).float().mean()
    defended = defend(model, "bits(bits=2)")
    assert torch.equal(defended(x), Squeezed()(x))
    seen = bind("frequency-white-box(steps=10)").run(defended, x, y, Threat.parse("linf:0.2"), 0)
    assert float((defended(seen).argmax(1) == y).float().mean()) == 0 < float(right)
    assert bool(ball.inside(Threat.parse("linf:0.2"), x, seen).all())


def test_the_white_box_asks_every_view_and_loss_only_of_what_stands(monkeypatch) -> None:
    model, x = Linear(2), images(4)
    y = defend(model, "median")(x).argmax(1)
    runs = []

    def pgd(view: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, loss: str, **kwargs: object) -> Tensor:
        runs.append((view, loss, len(x)))
        return torch.cat([1 - x[:1], x[1:]])  # the first one falls

    monkeypatch.setattr(attack, "pgd", pgd)
    adv = attack.white_box(defend(model, "median"), x, y, LINF, seed=0)
    views = [view.surrogate for view, _, _ in runs]
    assert views == ["own", "own", "average", "average"]
    assert [loss for _, loss, _ in runs] == ["ce", "margin"] * 2
    assert [count for _, _, count in runs] == [4, 3, 2, 1]
    assert torch.equal(adv, 1 - x)
    with pytest.raises(ZooError, match="unknown loss 'mragin'"):
        attack.white_box(model, x, y, LINF, seed=0, losses="mragin")


def test_transfer_alone_has_no_worst_case_and_both_together_have_the_white_boxes() -> None:
    own = "frequency-white-box"
    assert [str(item) for item in expand("frequency-transfer", own).attacks] == [
        f"frequency-transfer(method={method})" for method in ("pgd", "bim", "mim")
    ]
    assert all(not item.white_box for item in expand("frequency-transfer", own).attacks)
    both = expand("frequency", own).attacks
    assert {"frequency-white-box", "pgd(steps=100)"} <= {str(item) for item in both}
    assert sum(item.threat is not None for item in both) == 4  # spatial, apart
    model = zoo.load("dct-resnet10-cifar.natural_digits", pretrained=False)
    data = load_data("digits", "test").subset(4)
    call = "frequency-transfer(method=bim, steps=2, source=resnet10-cifar.natural_digits)"
    alone = evaluate(model, data, suite=call)
    assert alone.robust is None
    assert "own adaptive attack" in alone.extra["no_worst_case"]
