"""The adaptive attack, and the attack of the paper's tables."""

from __future__ import annotations

import inspect
import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cifs_models import Plain, images, tiny
from torch import nn

import zoo_cifs
from zoo import ball
from zoo.attacks import bind, expand
from zoo.errors import ContractError, ZooError
from zoo.registry import registry
from zoo.threat import Threat
from zoo_cifs.attack import HeadLoss, _configurations, cifs_beta, cifs_joint

THREAT = Threat.parse("linf:0.05")
DEFAULTS = {
    "betas": "0,0.1,1,2,10,100,inf",
    "few_betas": "0,1",
    "losses": "ce,margin",
    "scales": "1,10",
    "final_scales": "0.1",
    "count": 2,
    "single": True,
    "through": True,
}


def plan(**changed):
    return list(_configurations(**{**DEFAULTS, **changed}))


def test_the_attack_covers_every_configuration():
    found = plan()
    for beta in (0, 0.1, 1, 2, 10, 100, math.inf):
        assert HeadLoss(beta, "ce", 1.0) in found
    for criterion, scale in (("ce", 1.0), ("ce", 10.0), ("margin", 1.0)):
        for beta in (0, 1):
            assert HeadLoss(beta, criterion, scale) in found
        for head in (0, 1):
            assert HeadLoss(math.inf, criterion, scale, head) in found
    for beta in (0, 1):
        assert HeadLoss(beta, "ce", 1.0, final_scale=0.1) in found
    assert HeadLoss(0, "ce", 1.0, through=True) in found
    assert len(set(found)) == len(found) == 20


def test_every_list_of_the_attack_counts():
    assert all(loss.beta == 0 for loss in plan(count=0, through=False, betas="0,1"))
    assert {loss.head for loss in plan(single=False)} == {None}
    assert not any(loss.through for loss in plan(through=False))
    assert {loss.scale for loss in plan(scales="3")} == {3.0}
    assert {loss.final_scale for loss in plan(final_scales="1")} == {1.0}
    assert {loss.criterion for loss in plan(losses="margin")} == {"margin"}
    both = plan(few_betas="0,0.1,1,2,10,100,inf")
    for beta in (0, 0.1, 1, 2, 10, 100, math.inf):
        assert HeadLoss(beta, "margin", 1.0) in both


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"losses": "hinge"}, "must be made of ce, margin"),
        ({"betas": "-1"}, "betas='-1' must be made of numbers from 0 on, or inf"),
        ({"betas": ""}, "betas='' must be made of numbers"),
        ({"scales": "0"}, "scales='0' must be made of numbers above 0"),
        ({"final_scales": "inf"}, "'inf' is not a number"),
    ],
)
def test_lists_that_hold_something_else_are_refused(changed, message):
    with pytest.raises(ZooError, match=message):
        plan(**changed)


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
    values, judged = HeadLoss(2.0, "ce", 10.0, final_scale=0.1)(model, x, y)
    assert torch.equal(judged, final)  # only the loss is scaled
    small = F.cross_entropy(final, y, reduction="none")
    assert torch.allclose(values, small + 2.0 * (ce[1] + ce[2]) / 2)


def test_a_loss_through_the_masks_has_their_gradient():
    model, x, y = tiny(), images(2), torch.arange(2)
    gradients = {}
    for through in (False, True):
        z = x.clone().requires_grad_(True)
        (gradients[through],) = torch.autograd.grad(HeadLoss(0, through=through)(model, z, y)[0].sum(), z)
    z = x.clone().requires_grad_(True)
    final, _ = model.forward_heads(z, through_mask=True)
    (wanted,) = torch.autograd.grad(F.cross_entropy(final, y, reduction="sum"), z)
    assert torch.allclose(gradients[True], wanted, atol=1e-9)
    assert (gradients[True] - gradients[False]).abs().max() > 1e-3 * wanted.abs().max()


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


def three():
    """Far beyond the reach of random starts, within that of ten steps."""
    return 0.5 + 0.06 * torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4), torch.arange(3)


def test_the_attack_finds_what_only_a_raw_head_shows():
    model, (x, y) = TwoHeads().eval(), three()
    run = {"steps": 10, "seed": 0}
    alone = cifs_joint(model, x, y, THREAT, betas="0", heads=False, **run)
    assert (model(alone).argmax(1) == y).all()
    whole = cifs_joint(model, x, y, THREAT, **run)
    assert (model(whole).argmax(1) != y).all()
    single = cifs_joint(model, x, y, THREAT, betas="0", **run)
    assert (model(single).argmax(1) != y).all()


class Saturated(TwoHeads):
    """Final logits so large that their cross-entropy has no gradient in float32."""

    def forward_heads(self, x, y=None):
        raw = self.fc(x.mean((2, 3)))
        return 20_000 * raw, [raw.detach()]


def test_rescaled_final_logits_find_a_gradient_where_they_saturate():
    model, (x, y) = Saturated().eval(), three()
    run = {"steps": 10, "seed": 0, "losses": "ce", "scales": "1", "heads": False}
    blind = cifs_joint(model, x, y, THREAT, final_scales="1", **run)
    assert (model(blind).argmax(1) == y).all()
    seeing = cifs_joint(model, x, y, THREAT, final_scales="0.001", **run)
    assert (model(seeing).argmax(1) != y).all()
    assert (model(cifs_beta(model, x, y, THREAT, seed=0, beta=0)).argmax(1) == y).all()
    alone = cifs_beta(model, x, y, THREAT, seed=0, beta=0, final_scale=0.001)
    assert (model(alone).argmax(1) != y).all()


def test_the_attack_is_in_the_ball_seeded_and_at_least_as_strong_as_pgd():
    model = tiny("cifs_resnet10", kappa=32)
    x = images(6)
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


@pytest.mark.parametrize("name", ["cifs_resnet10", "cas_resnet10"])
@pytest.mark.parametrize(
    ("call", "weights", "loss"),
    [
        ("cifs-beta(beta=0, steps=3)", (1, 0, 0), "ce"),
        ("cifs-beta(beta=10, steps=3)", (1, 5, 5), "ce"),
        ("cifs-beta(beta=inf, steps=3, loss=margin)", (0, 0.5, 0.5), "margin"),
        ("cifs-beta(head=1, steps=3)", (0, 1, 0), "ce"),
        ("cifs-beta(head=2, steps=3, loss=margin, rel_step=0.5)", (0, 0, 1), "margin"),
        ("cifs-beta(steps=3, final_scale=0.1)", (1, 1, 1), "ce"),
        ("cifs-beta(steps=3, scale=4)", (1, 1, 1), "ce"),
    ],
)
def test_one_beta_is_the_released_evaluation(name, call, weights, loss):
    """No random start, steps of a tenth of the budget, the last iterate, whatever it fools on the way."""
    model, x = tiny(name, norm="group").double(), images(4, torch.float64)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 10
    params = bind(call).call.params
    adv = x
    for _ in range(3):
        adv = adv.detach().requires_grad_(True)
        final, raw = model.forward_heads(adv)
        heads = [params.get("scale", 1) * z for z in (params.get("final_scale", 1) * final, *raw)]
        if loss == "ce":
            values = [F.cross_entropy(z, y, reduction="sum") for z in heads]
        else:
            rows = torch.arange(4)
            values = [(z.scatter(1, y[:, None], -math.inf).amax(1) - z[rows, y]).sum() for z in heads]
        total = sum(float(Fraction(w)) * value for w, value in zip(weights, values, strict=True))
        (gradient,) = torch.autograd.grad(total, adv)
        stepped = adv.detach() + params.get("rel_step", 0.1) * THREAT.eps * gradient.sign()
        adv = ball.project(THREAT, x, stepped)
    found = bind(call).run(model, x, y, THREAT, 0)
    assert torch.allclose(found, adv, atol=1e-12)


@pytest.mark.parametrize("run", [cifs_beta, cifs_joint])
def test_called_directly_an_attack_has_its_registered_defaults(run):
    spec = registry().entry("attacks", run.__name__.replace("_", "-"))[0]
    taken = inspect.signature(run).parameters
    assert dict(spec.params) == {name: taken[name].default for name in spec.params}
    assert set(spec.params) == set(taken) - {"model", "x", "y", "threat", "seed"}


def test_one_beta_may_start_at_random_and_stop_early():
    model, x = tiny(), images(2)
    y = (model(x).argmax(1) + 1) % 10
    moved = bind("cifs-beta(steps=1, random_start=true)").run(model, x, y, THREAT, 0)
    plain = bind("cifs-beta(steps=1)").run(model, x, y, THREAT, 0)
    assert not torch.equal(moved, plain)
    stopped = bind("cifs-beta(steps=3, early_stop=true)").run(model, x, y, THREAT, 0)
    assert torch.equal(stopped, x)  # wrong from the start


def test_one_beta_on_a_plain_model_is_pgd_on_its_logits():
    torch.manual_seed(0)
    model, x = Plain().eval(), images(3)
    y = model(x).argmax(1)
    first, second = (bind(f"cifs-beta(beta={b}, steps=2)").run(model, x, y, THREAT, 0) for b in ("0", "100"))
    assert torch.equal(first, second)
    assert not torch.equal(first, x)
    with pytest.raises(ContractError, match="head=1 is none of the model's: it has no raw heads"):
        bind("cifs-beta(head=1)").run(model, x, y, THREAT, 0)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"head": 3}, "it has heads 1 to 2"),
        ({"beta": "-1"}, "beta='-1' must be made of numbers from 0 on"),
        ({"beta": "1,2"}, "beta='1,2' must be"),
        ({"beta": "big"}, "'big' is not a number"),
        ({"loss": "dlr"}, "loss='dlr' is unknown; use 'ce', 'margin'"),
        ({"final_scale": 0.0}, "final_scale=0.0 must be above 0"),
        ({"scale": -1.0}, "scale=-1.0 must be above 0"),
    ],
)
def test_bad_parameters_of_one_beta(params, message):
    with pytest.raises(ZooError, match=message):
        cifs_beta(tiny("cifs_resnet10"), images(1), torch.zeros(1).long(), THREAT, seed=0, **params)


def test_the_papers_protocol_has_four_attacks_at_nine_points_and_the_own_attack():
    suite = expand("cifs-paper", "cifs-joint")
    calls = [str(item) for item in suite.attacks]
    assert len(calls) == len(set(calls)) == 37
    assert calls[-1] == "cifs-joint"
    assert not suite.cascade  # each accuracy is that of its own attack: the paper's minimum is over these
    rows = {(column, row): call for row, column, call in zoo_cifs.paper_calls()}
    assert rows["PGD-20", "0.1"] == "cifs-beta(beta=0.1, steps=20)"
    assert rows["PGD-100", "inf-2"] == "cifs-beta(head=2, steps=100)"
    assert rows["FGSM", "inf"] == "cifs-beta(beta=inf, steps=1, rel_step=1)"
    assert rows["C&W", "10"] == "cifs-beta(beta=10, steps=30, loss=margin)"
    for single in ("0", "inf-1", "inf-2"):  # the released evaluation takes the cross-entropy there
        assert "margin" not in rows["C&W", single]
    assert {row for _, row in rows} == {"0", "0.1", "1", "2", "10", "100", "inf", "inf-1", "inf-2"}
    assert [row for row, *_ in zoo_cifs.paper_calls(("FGSM",), heads=0)] == ["0"]


def test_the_table_mapping_names_attacks_of_that_protocol():
    """Misspelt or not canonical, a call would leave its cell blank."""
    known = {str(item) for item in expand("cifs-paper", "cifs-joint").attacks} | {"clean"}
    mapping = json.loads(Path(zoo_cifs.__file__).with_name("tables.json").read_text(encoding="utf-8"))

    def named(entry):
        if isinstance(entry, str):
            return {entry}
        return set().union(*map(named, entry.values() if isinstance(entry, dict) else entry))

    of_attacks = {"4.1", "4.2", "4.3", "4.8", "4.9", "4.13", "4.14", "4.15"}
    assert of_attacks | {"4.4", "4.5"} == set(mapping)
    for table in of_attacks:  # the others are of analyses
        assert named(mapping[table]["columns"]) <= known, table
    minimum = mapping["4.1"]["columns"]["PGD-20"]["ResNet-18 CIFS"]
    assert minimum == [str(bind(call).call) for *_, call in zoo_cifs.paper_calls(("PGD-20",))]
