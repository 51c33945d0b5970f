"""The networks of TisODE against the layers that the thesis documents: logits, parameters, weights that fit."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from tisode_models import net
from torch import Tensor, nn

import zoo
from zoo.errors import IntegrityError
from zoo.registry import registry
from zoo_tisode.tisode import adopt


@pytest.fixture(scope="module", autouse=True)
def _names() -> None:
    zoo.register_timm()


# The tables of the thesis (3.5, 3.9), with what the authors' code adds: (in, out, kernel, stride, padding, bias).
EXTRACTORS = {
    "mnist": [(1, 64, 3, 1, 0, True), (64, 64, 4, 2, 1, True)],
    "svhn": [(3, 64, 3, 1, 0, True), (64, 64, 4, 2, 1, True)],
    "cifar10": [(3, 16, 3, 1, 0, True), (16, 32, 3, 2, 1, True), (32, 64, 3, 2, 1, True)],
}


def layers_of(images: str, kind: str) -> list[nn.Module]:
    """The layers of the tables in the order of the forward pass, for MNIST, SVHN and CIFAR-10."""
    layers: list[nn.Module] = []
    for before, after, kernel, stride, padding, bias in EXTRACTORS[images]:
        layers += [
            nn.Conv2d(before, after, kernel, stride, padding, bias=bias),
            nn.GroupNorm(min(32, after), after),
        ]
    timed = kind == "odenet"
    for _ in range(2):
        layers += [nn.Conv2d(64 + timed, 64, 3, 1, 1, bias=timed), nn.GroupNorm(32, 64)]
    return [*layers, nn.Linear(64, 10)]


def forward_by_layers(layers: list[nn.Module], kind: str, x: Tensor) -> Tensor:
    """The documented computation: Euler from 0 to 1 with 10 or 20 steps, or one residual block."""
    z = x
    *front, conv1, norm1, conv2, norm2, fc = layers
    for conv, norm in zip(front[::2], front[1::2], strict=True):
        z = F.relu(norm(conv(z)))
    steps = {"cnn": 1, "odenet": 10, "tisode": 20}[kind]
    for k in range(steps):
        time = [torch.full_like(z[:, :1], k / steps)] if kind == "odenet" else []
        inner = F.relu(norm1(conv1(torch.cat([*time, z], 1))))
        z = z + F.relu(norm2(conv2(torch.cat([*time, inner], 1)))) / steps
    return fc(z.mean((2, 3)))


@pytest.mark.parametrize("kind", ["cnn", "odenet", "tisode"])
@pytest.mark.parametrize("images", EXTRACTORS)
def test_weights_of_the_documented_layers_load_and_give_the_same_logits(images: str, kind: str) -> None:
    torch.manual_seed(1)
    layers = layers_of(images, kind)
    for layer in layers:
        if isinstance(layer, nn.GroupNorm):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.3)
    name = f"cnn-{images}-odenet" if kind == "cnn" else f"{kind}-{images}"
    model = zoo.load(name, pretrained=False)
    foreign = nn.Sequential(*layers).state_dict()
    model.load_state_dict(adopt(model, foreign), strict=True)
    x = torch.rand(2, *registry().model(name).input_size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.allclose(model(x), forward_by_layers(layers, kind, x), atol=1e-5)
    assert [t.shape for t in model.state_dict().values()] == [t.shape for t in foreign.values()]
    assert sum(p.numel() for p in model.parameters()) == sum(t.numel() for t in foreign.values())


def test_the_parameter_counts_of_the_methods_file() -> None:
    def count(name: str) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name).parameters())

    assert count("cnn_mnist_odenet") == count("tisode_mnist") == count("cnn_mnist_odenet_shared") == 141_130
    assert count("odenet_mnist") == 142_410
    assert count("tisode_svhn") - count("tisode_mnist") == 2 * 64 * 9
    assert count("tisode_mnist_fdn") - count("tisode_mnist") == 64 * 64
    assert count("tisode_mnist_ird") == count("tisode_mnist")
    # ImgNet10: conv 5x5, a block of stride 2 with a 1x1 shortcut, three blocks, linear; norms of 2 per channel
    front = 3 * 32 * 25 + 32 + 2 * 32
    block = 32 * 64 * 9 + 64 * 64 * 9 + 2 * 2 * 64 + 32 * 64 + 2 * 64
    inside = 3 * (2 * 64 * 64 * 9 + 2 * 2 * 64)
    assert count("cnn_imgnet10_odenet") == count("tisode_imgnet10") == front + block + inside + 650
    assert count("odenet_imgnet10") == count("tisode_imgnet10") + 3 * 2 * (64 * 9 + 64)
    assert 275_000 < count("tisode_imgnet10") < 285_000  # "approximately 280k"


def test_weights_of_other_layers_are_refused() -> None:
    model = zoo.load("tisode-mnist", pretrained=False)
    with pytest.raises(IntegrityError, match="13 tensors instead of 16"):
        adopt(model, dict(list(model.state_dict().items())[3:]))
    state = nn.Sequential(*layers_of("mnist", "odenet")).state_dict()
    with pytest.raises(IntegrityError, match="tensors instead of"):
        adopt(model, state)
    svhn = nn.Sequential(*layers_of("svhn", "tisode")).state_dict()
    with pytest.raises(IntegrityError, match=r"shape \(64, 3, 3, 3\), but 'conv1.weight'"):
        adopt(model, svhn)


def test_imgnet10_has_three_basic_blocks_in_its_dynamics() -> None:
    model = net("tisode_imgnet10", width=8, step=0.5).double()
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    z = F.max_pool2d(model.norm1(F.conv2d(x, model.conv1.weight, model.conv1.bias, 2, 2)), 2)
    inner = F.relu(model.block.norm1(F.conv2d(z, model.block.conv1.weight, None, 2, 1)))
    z = F.relu(model.block.norm2(model.block.conv2(inner)) + model.block.shortcut(z))
    z = F.max_pool2d(z, 2)
    for _ in range(2):
        state = z
        for part in model.ode.f.blocks:
            inner = F.relu(part.norm1(part.conv1(state)))
            state = F.relu(part.norm2(part.conv2(inner)) + state)
        z = z + 0.5 * state
    assert torch.allclose(model(x), model.fc(z.mean((2, 3))), atol=1e-12)


def test_the_shared_cnn_is_one_block_twenty_times() -> None:
    model = net("cnn_mnist_odenet_shared", width=8).double()
    once = net("cnn_mnist_odenet", width=8).double()
    once.load_state_dict(model.state_dict())
    x = torch.rand(2, 1, 28, 28, dtype=torch.float64)
    *_, z = once.extract(x, lambda name, feature: feature)
    for _ in range(20):
        z = z + once.ode.f(0.0, z)
    assert torch.allclose(model(x), model.fc(z.mean((2, 3))), rtol=1e-10)


@pytest.mark.parametrize("name", ["odenet_mnist", "tisode_mnist"])
def test_logits_know_no_batch_mates(name: str) -> None:
    model, x = net(name, width=16), torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        single = torch.cat([model(image) for image in x.split(1)])
        assert torch.allclose(model(x), single, atol=1e-5)
    if name == "tisode_mnist":
        pytest.importorskip("torchdiffeq")
        adaptive = net(name, width=8, solver="dopri5", step=0.5)
        with torch.no_grad():
            single = torch.cat([adaptive(image) for image in x.split(1)])
            assert torch.allclose(adaptive(x), single, atol=1e-5)
