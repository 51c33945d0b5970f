"""The sparse coding front end against its definition: codes, the bound, decoder, dictionary, bad input."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.data import Data, load_data
from zoo.errors import ContractError, ZooError
from zoo.grammar import parse_name
from zoo.processes import start_processes
from zoo.registry import registry
from zoo.step import Heads, Step
from zoo.threat import Threat
from zoo.update import Updater
from zoo_sparse import dictionary
from zoo_sparse.decoder import Decoder
from zoo_sparse.encoder import EPS, Backward, SparseEncoder, largest
from zoo_sparse.recipe import reconstruct

THREAT = Threat.parse("linf:8/255")
TINY: dict[str, Any] = {"atoms": 24, "top": 6, "widths": (6, 5), "width": 8, "layers": (1, 1, 1)}


@pytest.fixture(scope="module", autouse=True)
def _names() -> None:
    zoo.register_timm()


def net(name: str = "sparse_resnet32_nonrandom", **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **{**TINY, **kwargs}).eval()


def encoder(seed: int = 0, **kwargs: Any) -> SparseEncoder:
    torch.manual_seed(seed)
    sizes = {"in_channels": 2, "atoms": 20, "patch": 3, "stride": 2, "top": 5, "drop": 0.0, "beta": 3.0}
    return SparseEncoder(**{**sizes, **kwargs}).double()


def images(seed: int, count: int = 3, channels: int = 2, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, side, side, generator=generator, dtype=torch.float64)


# -- encoder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_their_definition(signed: bool) -> None:
    made, x = encoder(signed=signed), 0.3 * images(0)
    code = made(x)
    d = made.dictionary
    assert code.shape == (3, 20, 3, 3)
    assert torch.allclose(d.flatten(1).norm(dim=1), torch.ones(20).double())
    zeros = 0
    for n in range(3):
        for i in range(3):
            for j in range(3):
                a = (d * x[n, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]).sum((1, 2, 3))
                l1 = d.abs().sum((1, 2, 3))
                expected = torch.zeros(20).double()
                for k in sorted(range(20), key=lambda k: -abs(float(a[k])))[:5]:
                    if abs(float(a[k])) >= 3 * 8 / 255 * float(l1[k]):
                        expected[k] = (torch.sign(a[k]) if signed else 1.0) * l1[k]
                    else:
                        zeros += 1
                assert torch.allclose(code[n, :, i, j], expected)
    assert zeros  # the threshold acts somewhere


@pytest.mark.parametrize("seed", range(8))
def test_the_sign_of_a_survivor_cannot_be_flipped(seed: int) -> None:
    """Hoelder: not by the worst perturbation of any coefficient, far beyond the budget too."""
    generator = torch.Generator().manual_seed(seed)
    atoms = int(torch.randint(6, 40, (), generator=generator))
    top = int(torch.randint(1, atoms + 1, (), generator=generator))
    made = encoder(seed, atoms=atoms, top=top, patch=3, stride=3)
    x = images(seed + 100, count=2, side=6)
    code = made(x)
    assert int((code != 0).sum(1).max()) <= top
    worst = made.dictionary.sign()  # [L,C,3,3]: moves its own coefficient by eps |d|_1
    for size in (EPS, 1.9 * made.threshold):
        for k in range(atoms):
            for sign in (-1, 1):
                moved = made(x + sign * size * worst[k].repeat(1, 2, 2))
                assert int((moved != 0).sum(1).max()) <= top
                assert not bool((moved * code < 0).any())
    # The bound is tight: a coefficient on the threshold changes its sign by twice the threshold.
    k = int((worst.flatten(1).abs().sum(1)).argmax())
    patch = 0.5 * worst[k][None]
    a = float(made.project(patch)[..., k])
    assert float(made.project(patch - 1.01 * worst[k])[..., k]) < 0 < a


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_largest_are_found_with_and_without_ties(dtype: torch.dtype) -> None:
    size = torch.rand(4, 3, 21, generator=torch.Generator().manual_seed(0)).to(dtype)
    size[0, 0, 5:9] = size[0, 0].max()  # four that are equal, of which three are wanted
    size[1, 1] = 0
    for count in (1, 3, 20, 21):
        index = largest(size, count)
        assert index.shape == (4, 3, count)
        assert all(len(set(row)) == count for row in index.flatten(0, 1).tolist())
        found, expected = size.gather(-1, index).sort(-1).values, size.sort(-1).values[..., 21 - count :]
        assert torch.equal(found, expected)


def test_map_sizes_of_both_data_sets() -> None:
    torch.manual_seed(0)
    small = SparseEncoder(3, 500, 4, 2, 50, 0.0, 3.0)
    assert small(torch.rand(1, 3, 32, 32)).shape == (1, 500, 15, 15)
    large = SparseEncoder(3, 1000, 8, 4, 100, 0.0, 3.0)
    assert large(torch.rand(1, 3, 160, 160)).shape == (1, 1000, 39, 39)
    assert [small.side(32), large.side(160)] == [15, 39]


def test_dropout_is_always_on_and_scales_nothing() -> None:
    made = encoder(drop=0.6)
    x = images(1, count=40)
    whole = encoder()(x)
    made.eval()
    first, second = made(x), made(x)
    assert not torch.equal(first, second)
    assert bool(((first == 0) | (first == whole)).all())
    share = float((first != 0).sum() / (whole != 0).sum())
    assert abs(share - 0.4) < 0.05
    torch.manual_seed(3)
    again = made(x)
    torch.manual_seed(3)
    assert torch.equal(made(x), again)


def gradient(made: SparseEncoder, x: Tensor, how: Backward) -> tuple[Tensor, Tensor]:
    """The codes, and d(sum of w code)/da as a code-shaped tensor, with fixed weights w."""
    made.backward_as = how
    a = made.project(x).detach().requires_grad_(True)
    made.project = lambda _: a  # type: ignore[method-assign,assignment]
    code = made(x)
    (found,) = torch.autograd.grad(code.sum(), a)
    del made.project
    made.backward_as = Backward()
    return code.detach(), found.permute(0, 3, 1, 2)


def test_gradients_of_the_surrogates() -> None:
    made, x = encoder(), images(2)
    plain, a = made(x), made.project(x).permute(0, 3, 1, 2)
    u = a / made.norms[:, None, None]
    rank = a.abs().argsort(1, descending=True).argsort(1)
    j = made.threshold
    smooth = 2 / torch.cosh(4 * (u - j)) ** 2 + 2 / torch.cosh(4 * (u + j)) ** 2
    for how, expected in {
        Backward(): torch.zeros_like(a),
        Backward("identity"): (rank < 5).double(),
        Backward("smooth"): smooth * (rank < 5),
        Backward("smooth", 2.0): smooth * (rank < 10),
        Backward("identity", math.inf): torch.ones_like(a),
    }.items():
        code, found = gradient(made, x, how)
        assert torch.equal(code, plain), how
        assert torch.allclose(found, expected), how
    # The values of the thesis's steepness: 3.48 at u = 0, 3.19 at the threshold, .007 at 1.
    u = torch.tensor([0.0, j, 1.0]).double()
    values = 2 / torch.cosh(4 * (u - j)) ** 2 + 2 / torch.cosh(4 * (u + j)) ** 2
    assert [round(float(v), 3) for v in values] == pytest.approx([3.483, 3.19, 0.007], abs=0.02)
    bare = encoder(signed=False)
    _, found = gradient(bare, x, Backward("identity"))
    assert torch.allclose(found, (rank < 5) * a.sign())
    dropped = encoder(drop=0.5)
    code, found = gradient(dropped, x, Backward("identity"))
    assert bool((found[code != 0] == 1).all())
    assert 0 < float(found.sum()) < float((rank < 5).sum())


def test_codes_that_are_not_quantised_have_their_own_gradient() -> None:
    made, plain, x = encoder(quantised=False), encoder(), images(2)
    a = plain.project(x).permute(0, 3, 1, 2)
    first = a.abs().argsort(1, descending=True).argsort(1) < 5
    for how in (Backward(), Backward("identity"), Backward("smooth")):
        code, found = gradient(made, x, how)
        assert torch.equal(code, a * first)
        assert torch.equal(found, first.double())
    assert torch.equal(encoder(quantised=False, signed=False)(x), (a * first).abs())
    source = registry().recipe(parse_name("sparse-resnet32.unsupervised_cifar10"))
    assert source.model_kwargs["quantised"] is False


# -- decoder and network -----------------------------------------------------------------------------------


def test_decoders_restore_the_size() -> None:
    small, large = Decoder(8, 3, 32, 4, 2, (5, 4)), Decoder(8, 3, 160, 8, 4, (5, 4), "resize")
    sizes: list[int] = []
    for decoder in (small, large):
        for layer in (decoder.conv1, decoder.conv2, decoder.conv3):
            layer.register_forward_hook(lambda m, i, o: sizes.append(o.shape[-1]))
        made = decoder(torch.randn(1, 8, *[15 if decoder is small else 39] * 2))
        assert made.shape == (1, 3, decoder.side, decoder.side)
        assert 0 <= float(made.detach().min()) <= float(made.detach().max()) <= 1
    assert sizes == [32, 34, 36, 41, 164, 166]
    shapes = [tuple(p.shape) for p in Decoder(500, 3, 32, 4, 2).parameters() if p.ndim == 4]
    assert shapes == [(500, 300, 4, 4), (300, 100, 3, 3), (100, 3, 3, 3)]


def test_an_ensemble_averages_softmax_outputs() -> None:
    model = net("sparse_resnet32", drop=0.5, ensemble=3)
    x = images(3, channels=3, side=32).float()
    with torch.no_grad():
        torch.manual_seed(5)
        found = model(x)
        torch.manual_seed(5)
        model.ensemble = 1
        mean = torch.stack([model(x).softmax(1) for _ in range(3)]).mean(0)
    assert torch.allclose(found.softmax(1), mean, atol=1e-6)
    assert torch.allclose(found.exp().sum(1), torch.ones(3), atol=1e-5)


def test_unsupervised_stages() -> None:
    recipe = registry().recipe(parse_name("sparse-resnet32.unsupervised_cifar10"))
    assert [stage.epochs for stage in recipe.stages] == [50, 70]
    model = net("sparse_resnet32", drop=0.5)
    group = start_processes("cpu", None)
    Updater(model, recipe.stages[0], recipe.threat, group, None)
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"decoder"}
    Updater(model, recipe.stages[1], recipe.threat, group, None)
    trained = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"conv1", "bn1", "layer1", "layer2", "layer3", "fc"}
    x = images(4, channels=3, side=32).float()
    plain = net()
    step = Step(0, 0, 1, torch.Generator(), "float32", Heads(plain))
    loss, terms = reconstruct(plain, x, torch.zeros(3).long(), threat=THREAT, step=step)
    assert float(loss.detach()) == pytest.approx(float(F.mse_loss(plain.restore(x), x).detach()))
    assert terms["mse"] == pytest.approx(float(loss.detach()))


def test_thesis_settings() -> None:
    nominal = registry().recipe(parse_name("sparse-resnet32.natural_cifar10"))
    assert nominal.model_kwargs["ensemble"] == 10
    model: Any = zoo.load("sparse-resnet32", pretrained=False)
    e = model.encoder
    assert (e.atoms, e.patch, e.stride, e.top, e.drop, e.beta) == (500, 4, 2, 50, 0.95, 3.0)
    plain: Any = zoo.load("sparse-resnet32-nonrandom", pretrained=False)
    assert (plain.encoder.top, plain.encoder.drop) == (15, 0.0)


# -- dictionary --------------------------------------------------------------------------------------------


def numbered(count: int = 7, side: int = 8) -> Data:
    """Images whose pixels say where they are: image * 30 + row, and column in the second channel."""
    grid = torch.arange(side)
    pixels = torch.stack([grid[:, None].expand(side, side), grid[None].expand(side, side)])
    x = torch.stack([torch.stack([pixels[0] + 30 * n, pixels[1]]) for n in range(count)])
    return Data(x.to(torch.uint8), torch.zeros(count).long(), "numbered", 2)


def test_patches_are_those_of_the_grid() -> None:
    made = encoder().float()
    patches = (dictionary.sample_patches(made, numbered(), 400, 0) * 255).round()
    assert patches.shape == (400, 2, 3, 3)
    corner = patches[:, :, 0, 0]
    image, row, column = corner[:, 0] // 30, corner[:, 0] % 30, corner[:, 1]
    assert set(row.tolist()) == set(column.tolist()) == {0, 2, 4}
    assert set(image.tolist()) == set(range(7))
    assert torch.equal(patches[:, 0, 2, 0], corner[:, 0] + 2)  # as they lie in the image
    assert torch.equal(patches[:, 1, 0, 2], corner[:, 1] + 2)
    assert len({tuple(c) for c in torch.stack([image, row, column], 1).tolist()}) > 50


def test_learning_a_dictionary() -> None:
    data = load_data("digits", "train")
    found = []
    for seed in (0, 0, 1):
        model = net(in_chans=1)
        dictionary.learn(model, data, seed=seed, penalty=0.5, iterations=30)
        found.append(model.encoder.dictionary)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.allclose(found[0].flatten(1).norm(dim=1), torch.ones(24), atol=1e-5)
    random = net(in_chans=1).encoder.dictionary
    patches = dictionary.sample_patches(net(in_chans=1).encoder, data, 300, 5).flatten(1)

    def left(atoms: Tensor) -> float:
        """The mean squared error of the best single atom for each patch."""
        best = (patches @ atoms.flatten(1).T).abs().amax(1)
        return float((patches.square().sum(1) - best.square()).mean())

    assert left(found[0]) < 0.5 * left(random)


# -- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"top": 25}, "top=25"),
        ({"top": 0}, "top=0"),
        ({"drop": 1.0}, "drop=1.0"),
        ({"beta": 1.0}, "beta=1.0"),
        ({"beta": 32.0}, "empties every code"),
        ({"stride": 5}, "stride=5"),
        ({"img_size": 3}, "img_size=3"),
        ({"widths": (3,)}, "widths"),
        ({"decoder": "strid"}, "decoder='strid'"),
        ({"ensemble": 0}, "ensemble=0"),
        ({"topp": 3}, "no argument 'topp'; it takes atoms, .*layers, .*top, width"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        net(**kwargs)


def test_bad_images() -> None:
    model = net()
    with pytest.raises(ContractError, match="3 channels"):
        model(torch.rand(2, 1, 32, 32))
    with pytest.raises(ContractError, match="smaller than a patch of 4"):
        model(torch.rand(2, 3, 3, 3))
    with pytest.raises(ContractError, match="32 pixels a side"):
        model(torch.rand(2, 3, 40, 40))
    with pytest.raises(ContractError, match="no sparse encoder"):
        dictionary.quick(torch.nn.Linear(2, 2), numbered(), seed=0)
    with pytest.raises(ContractError, match="channels"):
        dictionary.quick(model, numbered(), seed=0)


def test_a_threshold_that_empties_every_code_is_said_and_gives_no_nan() -> None:
    made, model = encoder(beta=25.0), net(beta=31.0)
    with pytest.warns(RuntimeWarning, match="every code"):
        code = made(0.1 * images(5))
    assert not bool(code.any())
    with pytest.warns(RuntimeWarning, match="every code"):
        logits = model(torch.rand(2, 3, 32, 32))
    assert bool(torch.isfinite(logits).all())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder()(images(5))
    dark = Data(torch.full((4, 1, 32, 32), 8, dtype=torch.uint8), torch.zeros(4).long(), "dark", 2)
    with pytest.raises(ZooError, match="every code would be empty"):
        dictionary.learn(net(in_chans=1), dark, seed=0, penalty=0.001, iterations=10)
