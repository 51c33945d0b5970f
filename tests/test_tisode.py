"""TisODE against its definition: solvers, blocks, networks, the steady-state loss, the companions."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.errors import ContractError, IntegrityError, MissingExtra, ZooError
from zoo.registry import registry
from zoo.step import Heads, Step
from zoo.threat import Threat
from zoo_tisode.block import ConvDynamics, OdeBlock, TisodeBlock, blocks_of
from zoo_tisode.denoising import FeatureDenoising
from zoo_tisode.randomisation import RandomResizePad
from zoo_tisode.recipe import steady_state
from zoo_tisode.solvers import ADAPTIVE, FIXED, grid, trajectory
from zoo_tisode.tisode import adopt

EPS = Threat.parse("linf:0.3")


@pytest.fixture(scope="module", autouse=True)
def _names() -> None:
    zoo.register_timm()


def net(name: str, **kwargs: Any) -> Any:
    """A network with random norms and biases, so that a lost one shows."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    return model


def solve(f: Callable[[Any, Tensor], Tensor], z: Tensor, t: float, steps: int, solver: str) -> Tensor:
    *_, end = trajectory(f, z, grid(0.0, t, t / steps), solver)
    return end


# -- solvers ---------------------------------------------------------------------------------------------

MATRIX = torch.tensor([[-0.6, 2.0], [-2.0, 0.1]], dtype=torch.float64)
Z0 = torch.tensor([[0.8, 0.5], [0.3, 0.1]], dtype=torch.float64)
PROBLEMS: dict[str, tuple[Any, Any]] = {
    "linear": (lambda t, z: z @ MATRIX.T, lambda t: Z0 @ torch.linalg.matrix_exp(MATRIX * t).T),
    "logistic": (lambda t, z: z * (1 - z), lambda t: Z0 / (Z0 + (1 - Z0) * math.exp(-t))),
    "time": (lambda t, z: z * t, lambda t: Z0 * math.exp(t * t / 2)),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_solvers_converge_with_their_order(solver: str, order: int, problem: str) -> None:
    f, exact = PROBLEMS[problem]
    errors = [float((solve(f, Z0, 1.0, n, solver) - exact(1.0)).abs().max()) for n in (40, 80, 160)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([order, order], abs=0.12)


def test_euler_is_the_left_end() -> None:
    """z + h (t_k z_k + 1) by hand, where the right end and the middle give other numbers."""
    z = torch.tensor([[2.0]], dtype=torch.float64)
    wanted = 2.0
    for k in range(4):
        wanted = wanted + 0.25 * (0.25 * k * wanted + 1)
    assert float(solve(lambda t, y: t * y + 1, z, 1.0, 4, "euler")) == pytest.approx(wanted, abs=1e-14)


@pytest.mark.parametrize(
    ("start", "end", "step", "words"),
    [
        (0, 1, 0.3, "does not divide the interval of length 1; use 0.25 or 0.333333"),
        (0, 1, 2.0, "does not divide"),
        (0, 1, 0.0, "must be above 0"),
        (0, 1, -0.1, "must be above 0"),
        (0, 1, math.nan, "must be above 0"),
        (0, 0, 0.1, "an end above 0"),
        (1, 0.5, 0.1, "an end above 1"),
        (0, math.inf, 0.1, "must run forwards"),
    ],
)
def test_a_bad_grid_is_refused(start: float, end: float, step: float, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        grid(start, end, step)


@pytest.mark.parametrize(
    ("start", "end", "step", "count"), [(0, 1, 0.1, 10), (0.9, 1.5, 0.05, 12), (0, 20, 1, 20)]
)
def test_a_grid_ends_where_it_shall(start: float, end: float, step: float, count: int) -> None:
    times = grid(start, end, step)
    assert len(times) == count + 1
    assert times[0] == start
    assert times[-1] == end
    assert max(abs(b - a - step) for a, b in pairwise(times)) < 1e-12


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_adaptive_solvers_are_exact_and_know_no_batch_mates(solver: str) -> None:
    pytest.importorskip("torchdiffeq")
    f, exact = PROBLEMS["linear"]
    states = list(trajectory(f, Z0, grid(0, 1, 0.5), solver, tolerance=1e-6))
    assert [
        bool(torch.allclose(z, exact(t), atol=5e-4)) for z, t in zip(states, (0, 0.5, 1), strict=True)
    ] == [True] * 3
    wild = torch.cat([Z0, 1e4 * Z0])
    assert torch.equal(list(trajectory(f, wild, grid(0, 1, 0.5), solver))[-1][:2],
                       list(trajectory(f, Z0, grid(0, 1, 0.5), solver))[-1])  # fmt: skip


def test_an_adaptive_solver_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(MissingExtra, match=r"adversarial-zoo\[ode\]"):
        TisodeBlock(4, solver="dopri5")(torch.rand(1, 4, 3, 3))


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
def test_fixed_solvers_agree_with_torchdiffeq(solver: str) -> None:
    odeint = pytest.importorskip("torchdiffeq").odeint
    block = OdeBlock(ConvDynamics(6, timed=True), step=0.125, solver=solver).double()
    z = torch.rand(2, 6, 5, 5, dtype=torch.float64)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    wanted = odeint(block.f, z, times, method=solver, options={"step_size": 0.125})[-1]
    assert torch.allclose(block(z), wanted, atol=1e-12)


# -- blocks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("timed", [False, True], ids=["tisode", "odenet"])
@pytest.mark.parametrize("solver", FIXED)
def test_gradients_of_a_block_are_those_of_its_values(solver: str, timed: bool, recompute: bool) -> None:
    torch.manual_seed(0)
    block = OdeBlock(ConvDynamics(2, timed), step=0.5, solver=solver, recompute=recompute).double()
    z = torch.rand(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in block.named_parameters()]

    def value(z: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (z,))

    assert torch.autograd.gradcheck(value, (z, *block.parameters()), atol=1e-5)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_gradients_of_adaptive_solvers_are_those_of_the_flow(solver: str) -> None:
    pytest.importorskip("torchdiffeq")
    z = Z0.clone().requires_grad_(True)
    *_, end = trajectory(PROBLEMS["linear"][0], z, [0.0, 1.0], solver)
    (gradient,) = torch.autograd.grad(end[:, 0].sum(), z)
    assert torch.allclose(gradient, torch.linalg.matrix_exp(MATRIX)[0].expand(2, 2), atol=1e-2)


@pytest.mark.parametrize("solver", [*FIXED, "dopri5"])
def test_recomputation_gives_the_same_gradients_and_keeps_less(solver: str) -> None:
    if solver == "dopri5":
        pytest.importorskip("torchdiffeq")
    kept: dict[bool, int] = {}
    gradients: dict[bool, list[Tensor]] = {}
    torch.manual_seed(0)
    block = OdeBlock(ConvDynamics(8, timed=True), step=0.25, solver=solver, tolerance=1e-2).train()
    start = torch.rand(2, 8, 4, 4)
    for recompute in (False, True):
        block.recompute = recompute
        seen: dict[int, int] = {}

        def pack(tensor: Tensor, seen: dict[int, int] = seen) -> Tensor:
            seen[tensor.data_ptr()] = tensor.numel()
            return tensor

        z = start.clone().requires_grad_(True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = block(z)
            moved = block.drift(block.trace.take(), 0.5, 1.5)
        kept[recompute] = sum(seen.values())
        gradients[recompute] = list(
            torch.autograd.grad(out.square().sum() + moved.sum(), [z, *block.parameters()])
        )
    assert all(torch.equal(a, b) for a, b in zip(gradients[False], gradients[True], strict=True))
    assert kept[True] < 0.5 * kept[False]


def test_the_time_is_the_first_channel_before_each_convolution() -> None:
    torch.manual_seed(0)
    f = ConvDynamics(4, timed=True).double()
    z = torch.rand(3, 4, 5, 5, dtype=torch.float64)
    plane = torch.full((3, 1, 5, 5), 0.7, dtype=torch.float64)
    inner = F.relu(f.norm1(f.conv1(torch.cat([plane, z], 1))))
    wanted = F.relu(f.norm2(f.conv2(torch.cat([plane, inner], 1))))
    assert torch.allclose(f(0.7, z), wanted, atol=1e-12)
    assert torch.allclose(f(torch.tensor(0.7, dtype=torch.float64), z), wanted, atol=1e-12)
    assert (f(0.7, z) - f(0.2, z)).abs().max() > 1e-3
    assert torch.equal(ConvDynamics(4).double()(0.7, z) * 0, z * 0)
    assert all(conv.bias is None for conv in (ConvDynamics(4).conv1, ConvDynamics(4).conv2))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"solver": "rk5"}, "euler, midpoint, rk4, adaptive_heun, bosh3, dopri5, dopri8, fehlberg2"),
        ({"t_end": 0.0}, "t_end=0 must be above 0"),
        ({"t_end": -1.0}, "t_end=-1 must be above 0"),
        ({"t_end": math.nan}, "must be above 0"),
        ({"step": 0.3}, "does not divide"),
        ({"step": 0.0}, "must be above 0"),
        ({"tolerance": 0.0}, "tolerance=0 must be above 0"),
        ({"randomise": 0.9}, "randomise=0.9 must be above 1"),
    ],
)
def test_bad_arguments_are_one_line_with_the_remedy(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractError, match=words) as caught:
        zoo.load("tisode-mnist", pretrained=False, width=4, **kwargs)
    assert "\n" not in str(caught.value)


# -- networks --------------------------------------------------------------------------------------------

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


# -- the steady-state loss -------------------------------------------------------------------------------


def step_of(model: nn.Module, epoch: int = 0) -> Step:
    return Step(0, epoch, 10, torch.Generator(), "float32", Heads(model))


def loss_by_definition(f: Any, z0: Tensor, h: float, start: float, end: float, form: str) -> Tensor:
    """Section 2.2 of the methods file: Euler to the start, then sums of h |f| along Euler's trajectory."""
    z = z0
    for _ in range(round(start / h)):
        z = z + h * f(z)
    moved = torch.zeros_like(z)
    for _ in range(round((end - start) / h)):
        moved = moved + h * f(z).abs()
        z = z + h * f(z)
    if form == "code":
        return moved.abs().mean()
    return moved.flatten(1).square().sum(1).sqrt().mean()


@pytest.mark.parametrize(("form", "start", "end"), [("code", 0.9, 1.5), ("text", 1.0, 2.0)])
def test_the_loss_is_that_of_the_text_or_of_the_code(form: str, start: float, end: float) -> None:
    model = net("tisode_mnist", width=4, step=0.1).double().train()
    x, y = torch.rand(3, 1, 28, 28, dtype=torch.float64), torch.arange(3)
    model(x)
    found, terms = steady_state(model, x, y, threat=EPS, step=step_of(model), form=form, start=start, end=end)
    *_, z0 = model.extract(x, lambda name, feature: feature)
    wanted = loss_by_definition(lambda z: model.ode.f(0.0, z), z0, 0.1, start, end, form)
    assert terms == {}
    assert torch.allclose(found, wanted, rtol=1e-10)
    parameters = [p for n, p in model.named_parameters() if not n.startswith("fc.")]
    ours = torch.autograd.grad(found, parameters, retain_graph=True)
    theirs = torch.autograd.grad(wanted, parameters)
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-14) for a, b in zip(ours, theirs, strict=True))
    assert all(bool(g.any()) for g in ours)  # the feature extractor too


def test_the_integral_is_of_the_absolute_value() -> None:
    """dz/dt = -z: the state falls, the loss does not."""

    class Decay(nn.Module):
        def forward(self, t: Any, z: Tensor) -> Tensor:
            return -z

    block = OdeBlock(Decay(), step=0.01, solver="rk4").train()
    z = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    block(z)
    moved = block.drift(block.trace.take(), 1.0, 2.0)
    assert torch.allclose(moved, torch.full_like(moved, math.exp(-1) - math.exp(-2)), rtol=6e-3)


def test_the_loss_sees_the_images_of_the_update_and_starts_when_told() -> None:
    model = net("tisode_mnist", width=4, step=0.1).train()
    x, noisy, y = torch.rand(2, 1, 28, 28), torch.rand(2, 1, 28, 28), torch.arange(2)

    def term(epoch: int = 0, **params: Any) -> Tensor:
        return steady_state(model, x, y, threat=EPS, step=step_of(model, epoch), **params)[0]

    step_of(model).forward(noisy)
    on_noisy = term()
    model(x)
    assert not torch.allclose(on_noisy, term())
    model(x)
    assert float(term(epoch=4, after=5)) == 0
    assert model.ode.trace.states == []  # not kept for a later call
    model(x)
    assert term(epoch=5, after=5).item() > 0
    with pytest.raises(ZooError, match=r"must call step\.forward"):
        term()
    model.eval()
    model(x)
    model.train()
    with torch.no_grad():
        model(x)
    with pytest.raises(ZooError, match="no trajectory"):
        term()  # neither attacks in eval mode nor measurements leave one
    with pytest.raises(ContractError, match="use code or text"):
        term(form="paper")
    model(x)
    with pytest.raises(ContractError, match=r"starts at 0\.95, which is not on the grid of step 0\.1"):
        term(start=0.95, end=1.05)
    model(x)
    with pytest.raises(ContractError, match="does not divide the interval"):
        term(start=0.9, end=1.45)
    plain = nn.Linear(2, 2)
    with pytest.raises(ZooError, match="has no ODE block"):
        steady_state(plain, x, y, threat=EPS, step=step_of(plain))


def test_a_copy_takes_no_trajectory_along() -> None:
    model = net("tisode_mnist", width=4, step=0.5).train()
    model(torch.rand(2, 1, 28, 28))
    assert len(model.ode.trace.states) == 3
    other = copy.deepcopy(model)  # a tensor with a graph could not be copied
    assert other.ode.trace.states == []
    assert len(model.ode.trace.states) == 3


def test_the_block_drops_into_any_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2), TisodeBlock(4, step=0.25), nn.Conv2d(4, 6, 3, 2), TisodeBlock(6, step=0.5),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10),
    )  # fmt: skip
    x, y = torch.rand(4, 1, 16, 16), torch.arange(4)
    before = x.clone()
    step = step_of(model)
    logits, _ = step.forward(x)
    params = {"start": 0.5, "end": 1.5}
    total, _ = steady_state(model, x, y, threat=EPS, step=step, **params)
    step.forward(x)
    parts = [block.drift(block.trace.take(), 0.5, 1.5).mean() for block in blocks_of(model)]
    assert len(parts) == 2
    assert torch.allclose(total, parts[0] + parts[1])
    (F.cross_entropy(logits, y) + 0.1 * total).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    assert torch.equal(x, before)


# -- companions ------------------------------------------------------------------------------------------


def test_feature_denoising_is_the_dot_product_mean() -> None:
    torch.manual_seed(0)
    block = FeatureDenoising(3).double()
    z = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    assert torch.equal(block(z), z)
    nn.init.normal_(block.conv.weight)
    wanted = z.clone()
    for n in range(2):
        points = z[n].flatten(1).T  # [20,3]
        means = torch.stack([sum((p @ q) * q for q in points) / 20 for p in points])
        wanted[n] += (block.conv.weight[:, :, 0, 0] @ means.T).view(3, 4, 5)
    assert torch.allclose(block(z), wanted, atol=1e-12)


def test_denoising_stands_before_the_classifier() -> None:
    model = net("tisode_mnist_fdn", width=4, step=0.5)
    nn.init.normal_(model.denoise.conv.weight)
    x = torch.rand(2, 1, 28, 28)
    *_, z = model.extract(x, lambda name, feature: feature)
    assert torch.allclose(model(x), model.fc(model.denoise(model.ode(z)).mean((2, 3))), atol=1e-6)


def test_random_resizing_is_that_of_the_nearest_pixel_with_zeros_around() -> None:
    layer = RandomResizePad()
    x = torch.rand(64, 2, 28, 28, generator=torch.Generator().manual_seed(0)) + 0.1
    torch.manual_seed(3)
    out = layer(x)
    assert out.shape == (64, 2, 31, 31)
    found = set()
    for image, placed in zip(x, out, strict=True):
        rows, columns = (placed.sum((0, d)).nonzero().flatten() for d in (2, 1))
        side = len(rows)
        assert len(columns) == side
        found.add((side, int(rows[0]), int(columns[0])))
        inside = placed[:, rows[0] : rows[0] + side, columns[0] : columns[0] + side]
        assert torch.equal(inside, F.interpolate(image[None], size=side, mode="nearest")[0])
        assert float(placed.sum()) == pytest.approx(float(inside.sum()), rel=1e-5)
    assert {side for side, *_ in found} == {28, 29, 30}  # never the padded side itself
    assert {place for _, *both in found for place in both} == {0, 1, 2, 3}
    assert all(max(places) <= 31 - side for side, *places in found)
    torch.manual_seed(3)
    assert torch.equal(layer(x), out)
    with pytest.raises(ContractError, match="takes square ones"):
        layer(torch.rand(1, 1, 28, 32))


def test_gradients_pass_through_random_resizing() -> None:
    x = torch.rand(3, 1, 12, 12, requires_grad=True)
    torch.manual_seed(0)
    out = RandomResizePad(1.25)(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert float(gradient.sum()) == pytest.approx(float((out > 0).sum()), abs=1)
    assert float(gradient.min()) >= 1  # enlarged, so that every pixel is seen
    assert registry().model("tisode-mnist-ird").stochastic


def test_the_state_stays_in_float32_under_autocast() -> None:
    """Steps far below the resolution of bfloat16 still move the state: 512 steps of 1/512 from 1 with f = 1."""

    class One(nn.Module):
        def forward(self, t: float, z: Tensor) -> Tensor:
            return torch.ones_like(z)

    block = OdeBlock(One(), step=1 / 512)
    with torch.autocast("cpu", torch.bfloat16):
        end = block(torch.ones(1, 1, 2, 2, dtype=torch.bfloat16))
    assert end.dtype == torch.float32
    assert torch.allclose(end, torch.full_like(end, 2.0))
