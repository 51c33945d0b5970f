"""CIFS against its definition: masks by autograd, gradient routes, the label swap, losses, the attack."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import zoo
import zoo_cifs
from zoo.attacks import bind
from zoo.errors import ContractError
from zoo.threat import Threat
from zoo_cifs.attack import HeadLoss, _configurations, cifs_joint
from zoo_cifs.cifs import LinearProbe, MlpProbe, channel_mask, class_counts, views
from zoo_cifs.recipe import joint_at, joint_loss, joint_values

EPS = Threat.parse("linf:8/255")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    zoo.register_timm()
    yield
    torch.set_num_threads(threads)


def tiny(name="cifs_resnet18", **kwargs):
    """A small model whose probes are sharp enough for masks to differ visibly between images."""
    torch.manual_seed(0)
    size = {"depth": 16, "widen": 1} if "wrn" in name else {}
    model = timm.create_model(name, **{"width": 8, "hidden": 16, "in_chans": 3, **size, **kwargs}).eval()
    with torch.no_grad():
        for probe in model.probes():
            for parameter in probe.parameters():
                parameter.mul_(4)
    return model


def images(count=4, dtype=torch.float32):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


# -- the mask --------------------------------------------------------------------------------------------


def mask_by_definition(probe, z, k, kind, kappa, y=None):
    """Section 1.2 of the methods file word for word: autograd through the probe, summed over positions."""
    z = z.detach().clone().requires_grad_(True)
    logits = probe(z.mean((2, 3)))
    best = logits.argsort(dim=1, descending=True)[:, :k].clone()
    if y is not None:
        best[:, 0] = y
    chosen = logits.gather(1, best).sum()
    g = torch.autograd.grad(chosen, z, create_graph=True)[0].sum((2, 3))
    if kind == "softmax":
        mask = torch.exp(g) / torch.exp(g).sum(1, keepdim=True)
    elif kind == "sigmoid":
        mask = 1 / (1 + torch.exp(-10 * g))
    else:
        mask = torch.log(1 + torch.exp(5 * g)) / 5
    return kappa * mask


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("k", [1, 2, 3, 10])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "softplus"])
@pytest.mark.parametrize("probe_kind", ["linear", "mlp"])
@pytest.mark.parametrize("labelled", [False, True], ids=["eval", "train"])
def test_closed_form_mask_is_that_of_autograd(probe_kind, kind, k, dtype, labelled):
    torch.manual_seed(k)
    probe = LinearProbe(24, 10) if probe_kind == "linear" else MlpProbe(24, 10, 16)
    probe = probe.to(dtype)
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.mul_(3)
    z = torch.rand(32, 24, 5, 5, dtype=dtype)
    y = torch.arange(32) % 10 if labelled else None
    pooled = z.mean((2, 3))
    counts = class_counts(probe(pooled), k, y)
    alpha = {"softmax": 1.0, "sigmoid": 10.0, "softplus": 5.0}[kind]
    closed = channel_mask(probe.relevance(pooled, counts), kind, alpha)
    wanted = mask_by_definition(probe, z, k, kind, 1.0, y)
    assert (closed - wanted).abs().max() < 1e-6
    if k < 10 or probe_kind == "mlp" or labelled:  # a linear probe has one mask where all classes count
        assert wanted.std(0).max() > 1e-4  # the masks differ between images, or this test shows nothing

    weights = torch.randn_like(closed)
    ours = torch.autograd.grad((closed * weights).sum(), list(probe.parameters()), allow_unused=True)
    theirs = torch.autograd.grad((wanted * weights).sum(), list(probe.parameters()), allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        mine, other = (0 if g is None else g for g in (mine, other))
        assert torch.as_tensor(mine - other).abs().max() < (1e-6 if dtype == torch.float64 else 1e-4)
    assert ours[-1] is None  # the output bias has no part in a mask


def test_mlp_probe_has_a_softplus_of_beta_five():
    torch.manual_seed(0)
    probe, x = MlpProbe(6, 10, 4).double(), torch.randn(8, 6, dtype=torch.float64)
    hidden = torch.log(1 + torch.exp(5 * probe.hidden(x))) / 5
    assert torch.allclose(probe(x), probe.fc(hidden), atol=1e-12)


def test_the_label_replaces_the_best_class_whatever_its_rank():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 3)
    counts = class_counts(logits, 2, torch.tensor([0, 1, 3]))
    assert counts.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [0, 1, 0, 1]]
    assert class_counts(logits[:1], 2).tolist() == [[1, 1, 0, 0]]


# -- the whole network -----------------------------------------------------------------------------------


def resnet_by_definition(model, x, y=None):
    """A CIFS ResNet-18 written out, with autograd in the masks."""
    z = model.layer3(model.layer2(model.layer1(F.relu(model.bn1(model.conv1(x))))))
    raw = []
    for block, probe in zip(model.layer4, (model.probe2, model.probe1), strict=True):
        z = block(z)
        raw.append(probe(z.mean((2, 3))))
        z = z * mask_by_definition(probe, z, 2, "softmax", 2.0, y)[:, :, None, None]
    return model.fc(z.mean((2, 3))), raw


@pytest.mark.parametrize("train", [False, True])
def test_resnet18_is_the_network_of_the_paper_in_values_and_gradients(train):
    model = tiny().double()
    model.train(train)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    x, y = images(dtype=torch.float64).requires_grad_(True), torch.tensor([1, 2, 3, 4])
    ours = model.forward_heads(x, y)
    theirs = resnet_by_definition(model, x, y if train else None)
    assert len(ours[1]) == 2
    for mine, other in zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), strict=True):
        assert torch.allclose(mine, other, atol=1e-12)
    variables = [x, *model.parameters()]
    ours_g = torch.autograd.grad(joint_loss(*ours, y, 2.0), variables)
    theirs_g = torch.autograd.grad(joint_loss(*theirs, y, 2.0), variables)
    for mine, other in zip(ours_g, theirs_g, strict=True):
        assert torch.allclose(mine, other, atol=1e-10)


def test_wide_resnet_masks_the_residual_branch_and_the_final_feature():
    model = tiny("cifs_wrn28_10").double()
    x = images(dtype=torch.float64)
    z = model.layer2(model.layer1(model.conv1(x)))
    for block in list(model.layer3)[:-1]:
        z = block(z)
    block = model.layer3[-1]
    active = F.relu(block.bn1(z))
    inner = active * mask_by_definition(model.probe2, active, 2, "softmax", 2.0)[:, :, None, None]
    z = z + block.conv2(F.relu(block.bn2(block.conv1(inner))))
    z = F.relu(model.bn1(z))
    raw = [model.probe2(active.mean((2, 3))), model.probe1(z.mean((2, 3)))]
    z = z * mask_by_definition(model.probe1, z, 2, "softmax", 2.0)[:, :, None, None]
    final, heads = model.forward_heads(x)
    assert torch.allclose(final, model.fc(z.mean((2, 3))), atol=1e-12)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(heads, raw, strict=True))


def test_sizes_of_the_probes():
    with torch.device("meta"):
        models = {
            n: timm.create_model(n, in_chans=3) for n in ("cifs_resnet10", "cifs_resnet18", "cifs_wrn28_10")
        }
    shapes = {
        name: (m.probe2.hidden.in_features, m.probe2.hidden.out_features, m.probe1.fc.in_features)
        for name, m in models.items()
    }
    assert shapes == {
        "cifs_resnet10": (256, 128, 512),
        "cifs_resnet18": (512, 128, 512),
        "cifs_wrn28_10": (640, 240, 640),
    }
    added = (512 * 128 + 128) + (128 * 10 + 10) + (512 * 10 + 10)
    assert sum(p.numel() for p in models["cifs_resnet18"].parameters()) == 11_173_962 + added
    assert models["cifs_resnet10"].selected == {"layer3.0": "probe2", "layer4.0": "probe1"}
    assert models["cifs_resnet18"].selected == {"layer4.0": "probe2", "layer4.1": "probe1"}
    assert models["cifs_wrn28_10"].selected == {"layer3.3.bn1": "probe2", "act1": "probe1"}


@pytest.mark.parametrize(
    ("positions", "heads"), [("P1", ["probe1"]), ("P2", ["probe2"]), ("P1-P2", ["probe2", "probe1"])]
)
def test_positions(positions, heads):
    model = tiny(positions=positions)
    assert list(model.selected.values()) == heads
    assert [hasattr(model, f"probe{i}") for i in (1, 2)] == [f"probe{i}" in heads for i in (1, 2)]
    assert len(model.forward_heads(images())[1]) == len(heads)
    both = tiny()
    assert not torch.allclose(model(images()), both(images())) or positions == "P1-P2"


def test_probe_kinds():
    model = tiny(probe1="mlp", probe2="linear")
    assert isinstance(model.probe1, MlpProbe)
    assert isinstance(model.probe2, LinearProbe)


@pytest.mark.parametrize(
    ("kwargs", "kappa"),
    [
        ({}, 2),
        ({"k": 3}, 3),
        ({"k": 1}, 1),
        ({"mask": "sigmoid"}, 1),
        ({"mask": "softplus", "k": 3}, 1),
        ({"kappa": 0.5}, 0.5),
    ],
)
def test_kappa(kwargs, kappa):
    model = tiny(positions="P1", **kwargs)
    seen = []
    model.layer4.register_forward_hook(lambda _m, _i, z: seen.append(z))
    features = model.forward_features(images())
    z = []
    model.layer4[1].register_forward_hook(lambda _m, _i, out: z.append(out))
    model.forward_features(images())
    wanted = mask_by_definition(model.probe1, z[0], model.k, model.mask, kappa)
    assert torch.allclose(features, z[0] * wanted[:, :, None, None], atol=1e-6)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"k": 0},
        {"k": 11},
        {"mask": "relu"},
        {"positions": "P3"},
        {"probe1": "conv"},
        {"k": 3, "num_classes": 2},
    ],
)
def test_bad_arguments_are_named(kwargs):
    with pytest.raises(ContractError):
        tiny(**kwargs)


@pytest.mark.parametrize("name", ["cifs_resnet10", "cifs_resnet18", "cifs_wrn28_10"])
def test_inference_mode_and_batch_invariance(name):
    model, x = tiny(name), images()
    with torch.inference_mode():
        fast = model(x)
        heads = model.forward_heads(x)
    assert torch.equal(fast, model(x).detach())
    assert torch.equal(fast, heads[0])
    model, x = model.double(), x.double()
    single = torch.cat([model(x[i : i + 1]) for i in range(len(x))])
    assert torch.allclose(model(x), single, atol=1e-12)


# -- gradient routes and labels --------------------------------------------------------------------------


def test_the_final_loss_reaches_the_probes_only_through_the_masks():
    model, x, y = tiny(), images(), torch.arange(4)
    final, raw = model.forward_heads(x, y)
    F.cross_entropy(final, y).backward()
    assert model.probe1.fc.weight.grad.abs().sum() > 0
    assert model.probe2.hidden.weight.grad.abs().sum() > 0
    assert model.probe2.hidden.bias.grad.abs().sum() > 0
    assert model.probe2.fc.weight.grad.abs().sum() > 0
    assert model.probe1.fc.bias.grad is None or not model.probe1.fc.bias.grad.any()
    assert model.probe2.fc.bias.grad is None or not model.probe2.fc.bias.grad.any()
    model.zero_grad()
    final, raw = model.forward_heads(x, y)
    F.cross_entropy(raw[1], y).backward()
    assert model.conv1.weight.grad.abs().sum() > 0  # raw logits train the backbone
    assert model.probe1.fc.bias.grad.abs().sum() > 0
    assert model.fc.weight.grad is None


def test_no_gradient_reaches_the_feature_through_a_mask_unless_asked():
    model = tiny("cifs_resnet18", mask="sigmoid", positions="P2").double()
    x = images(2, torch.float64).requires_grad_(True)
    blocked = torch.autograd.grad(model.forward_heads(x)[0].square().sum(), x)[0]
    constant = {}

    def frozen_mask(name, z):
        if name in model.selected:
            constant[name] = mask_by_definition(model.probe2, z, 2, "sigmoid", 1.0).detach()
            return z * constant[name][:, :, None, None]
        return z

    *_, z = super(type(model).__mro__[1], model).stages(x, frozen_mask)
    by_hand = torch.autograd.grad(model.forward_head(z).square().sum(), x)[0]
    assert torch.allclose(blocked, by_hand, atol=1e-12)
    through = torch.autograd.grad(model.forward_heads(x, through_mask=True)[0].square().sum(), x)[0]
    assert (through - blocked).abs().max() > 1e-3 * blocked.abs().max()

    def value(x):
        return model(x).square().sum()

    direction = torch.randn_like(x)
    slope = (value(x + 1e-6 * direction) - value(x - 1e-6 * direction)) / 2e-6
    assert (through * direction).sum().item() == pytest.approx(slope.item(), rel=1e-4)


def test_labels_matter_in_train_mode_only():
    model, x, y = tiny(norm="group"), images(), torch.tensor([7, 7, 7, 7])
    assert torch.equal(model.forward_heads(x, y)[0], model(x))
    model.train()
    swapped, raw = model.forward_heads(x, y)
    assert not torch.allclose(swapped, model(x), atol=1e-6)
    assert torch.equal(model.forward_heads(x)[0], model(x))
    assert torch.equal(raw[0], model.forward_heads(x)[1][0])  # the first raw logits lie before every mask


def test_views_are_the_heads_of_the_model():
    model, x = tiny(), images().requires_grad_(True)
    final, raw = model.forward_heads(x)
    found = views(model)
    assert torch.equal(found["probe2"](x), raw[0])
    assert torch.equal(found["probe1"](x), raw[1])
    assert torch.equal(found["through-mask"](x), final)


def test_reset_classifier_renews_the_probes():
    model = tiny()
    hidden = model.probe2.hidden.weight.clone()
    model.reset_classifier(7)
    assert [logits.shape[1] for logits in (model(images()), *model.forward_heads(images())[1])] == [7, 7, 7]
    assert torch.equal(model.probe2.hidden.weight, hidden)
    kept = model.probe1.fc.weight.clone()
    features = model.forward_features(images())
    model.reset_classifier(0)
    assert torch.equal(model.probe1.fc.weight, kept)
    assert torch.allclose(model(images()), features.mean((2, 3)))
    with pytest.raises(ContractError, match="k=2"):
        model.reset_classifier(1)


@pytest.mark.parametrize("kwargs", [{"features_only": True}, {"num_classes": 0}])
def test_pretrained_features_keep_the_masks(tmp_path, kwargs):
    """timm drops the weights of every layer called a classifier; the masks would be random without them."""
    from zoo.weights import save_state

    model, x = tiny(), images()
    path = save_state(model.state_dict(), tmp_path / "model.safetensors")
    cfg = {**model.pretrained_cfg, "file": str(path)}
    torch.manual_seed(5)
    loaded = timm.create_model(
        "cifs_resnet18", pretrained=True, pretrained_cfg=cfg, width=8, hidden=16, in_chans=3, **kwargs
    ).eval()
    found = loaded(x)[-1] if "features_only" in kwargs else loaded(x)
    features = model.forward_features(x)
    wanted = features if "features_only" in kwargs else features.mean((2, 3))
    assert torch.equal(found, wanted)


# -- losses and training ---------------------------------------------------------------------------------


def test_joint_loss_is_equation_4_3_times_three():
    torch.manual_seed(0)
    final, raw, y = torch.randn(6, 10), [torch.randn(6, 10), torch.randn(6, 10)], torch.arange(6)
    ce = [F.cross_entropy(logits, y) for logits in (final, *raw)]
    assert torch.allclose(joint_loss(final, raw, y, 2.0), ce[0] + ce[1] + ce[2])
    paper = (ce[0] + 2.0 / 2 * (ce[1] + ce[2])) / 3
    assert torch.allclose(joint_loss(final, raw, y, 2.0, "paper"), paper)
    assert torch.allclose(joint_loss(final, raw, y, 5.0), 3 / 6 * (ce[0] + 2.5 * (ce[1] + ce[2])))
    assert torch.allclose(joint_loss(final, [], y, 2.0), ce[0])
    assert torch.allclose(joint_values(final, raw, y, math.inf).mean(), (ce[1] + ce[2]) / 2)
    with pytest.raises(ContractError):
        joint_loss(final, raw, y, 2.0, "other")


class FakeStep:
    precision = "float32"

    def __init__(self, model):
        self.model, self.calls = model, []

    def uniform(self, x):
        return torch.zeros_like(x) + 0.5

    def forward(self, x, y=None):
        self.calls.append((x, y))
        self.model.train()
        return self.model.forward_heads(x, y)


def test_joint_at_attacks_without_labels_in_the_masks_and_updates_with_them():
    model, x, y = tiny(), images().clamp(0.1, 0.9), torch.arange(4)
    calls = []
    plain = model.forward_heads
    model.forward_heads = lambda x, y=None, **kw: calls.append((model.training, y)) or plain(x, y, **kw)
    step = FakeStep(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loss, terms = joint_at(model, x, y, threat=EPS, step=step, steps=3)
    assert [(mode, labels is None) for mode, labels in calls] == [(False, True)] * 3 + [(True, False)]
    x_adv = step.calls[0][0]
    assert (x_adv - x).abs().max() <= EPS.eps + 1e-6
    assert (x_adv - x).abs().max() > 0.9 * EPS.eps
    assert set(terms) == {"robust_accuracy", "raw1", "raw2"}
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert torch.equal(before["conv1.weight"], model.state_dict()["conv1.weight"])
    model.eval()
    start = (x + 0.5 * EPS.eps).clamp(0, 1)
    gain = joint_values(*plain(x_adv), y, 2.0) - joint_values(*plain(start), y, 2.0)
    assert gain.mean() > 0


# -- the attack ------------------------------------------------------------------------------------------


def test_the_attack_covers_every_configuration():
    plan = list(_configurations("0,0.1,1,2,10,100,inf", "0,1", "ce,margin", "1,10", 2, True, True))
    for beta in (0, 0.1, 1, 2, 10, 100, math.inf):
        assert HeadLoss(beta, "ce", 1.0) in plan
    for criterion, scale in (("ce", 1.0), ("ce", 10.0), ("margin", 1.0)):
        for beta in (0, 1):
            assert HeadLoss(beta, criterion, scale) in plan
    for scale in (1.0, 10.0):
        for head in (0, 1):
            assert HeadLoss(math.inf, "ce", scale, head) in plan
    assert HeadLoss(0, "ce", 1.0, through=True) in plan
    assert len(set(plan)) == len(plan) == 16
    assert all(loss.beta == 0 for loss in _configurations("0,1", "0", "ce", "1", 0, True, False))
    with pytest.raises(ContractError):
        list(_configurations("0", "0", "hinge", "1", 2, True, True))


def test_head_losses_are_what_they_say():
    model, x, y = tiny(), images(), torch.arange(4)
    final, raw = model.forward_heads(x)
    ce = [F.cross_entropy(10 * logits, y, reduction="none") for logits in (final, *raw)]
    values, judged = HeadLoss(2.0, "ce", 10.0)(model, x, y)
    assert torch.equal(judged, final)
    assert torch.allclose(values, ce[0] + 2.0 * (ce[1] + ce[2]) / 2)
    assert torch.allclose(HeadLoss(math.inf, "ce", 10.0, 1)(model, x, y)[0], ce[2])
    assert torch.allclose(HeadLoss(math.inf, "ce", 10.0)(model, x, y)[0], (ce[1] + ce[2]) / 2)
    assert torch.allclose(HeadLoss(0.0, "ce", 10.0)(model, x, y)[0], ce[0])


class TwoHeads(nn.Module):
    """A model whose final gradient is blocked: only an attack on its raw head finds the way."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4, bias=False)
        self.fc.weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])

    def forward(self, x):
        return self.forward_heads(x)[0]

    def forward_heads(self, x, y=None):
        raw = self.fc(x.mean((2, 3)))
        return (raw * 200).round() / 200 + 0 * raw, [raw]


def test_the_attack_finds_what_only_a_raw_head_shows():
    model = TwoHeads().eval()
    x = 0.5 + 0.02 * torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4)
    y = torch.arange(3)
    threat = Threat.parse("linf:0.05")
    run = {"steps": 10, "seed": 0}
    alone = cifs_joint(model, x, y, threat, betas="0", heads=False, **run)
    assert (model(alone).argmax(1) == y).all()
    whole = cifs_joint(model, x, y, threat, **run)
    assert (model(whole).argmax(1) != y).all()
    single = cifs_joint(model, x, y, threat, betas="0", **run)
    assert (model(single).argmax(1) != y).all()


def test_the_attack_is_in_the_ball_seeded_and_at_least_as_strong_as_pgd():
    model = tiny(kappa=32)
    x = images(8)
    y = model(x).argmax(1)
    threat = Threat.parse("linf:1/255")
    first, second = (bind("cifs-joint(steps=3)").run(model, x, y, threat, 3) for _ in range(2))
    assert torch.equal(first, second)
    assert (first - x).abs().max() <= threat.eps + 1e-6
    assert first.min() >= 0
    assert first.max() <= 1
    ours = (model(first).argmax(1) == y).float().mean()
    pgd = (model(bind("pgd(steps=3)").run(model, x, y, threat, 3)).argmax(1) == y).float().mean()
    assert ours <= pgd
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())


def test_published_figures_are_there():
    with (Path(zoo_cifs.__file__).parent / "paper.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {(r["table"], r["row"], r["column"]): float(r["value"]) for r in rows}
    assert found["4.1", "ResNet-18 CIFS", "PGD-20"] == 51.23
    assert len(rows) > 300
