"""ODENet, TisODE and their CNN twins (Yan et al., ICLR 2020, arXiv:1910.05513; the text here is Yan's thesis).

Feature extractor, one block that keeps the shape, global average pooling and a linear layer. The block is an ODE
of time and state (ODENet), of the state alone (TisODE), or a residual block (CNN), which is one Euler step of
length 1 of TisODE's. Pixels in [0,1], no normalisation, PyTorch's default initialisation, GroupNorm of 32 groups,
or as many as there are channels where those are fewer.

The MNIST networks are the authors' (their code gives paddings, groups and biases, of which the thesis is silent);
those for SVHN are the same with three input channels. Of the other two the thesis has only channels, kernels and
strides. Chosen here: for CIFAR-10 the paddings and biases of MNIST (0 in the first convolution, 1 in the strided
ones; biases in the extractor only); for ImgNet10 padding 2 in the 5x5 convolution, which has a bias, none in the
blocks (He et al. 2016), no ReLU behind the first norm, where the table has none, and 1x1 shortcuts with norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

from zoo.errors import IntegrityError
from zoo.loading import build, timm_cfgs
from zoo.nn import Classifier, Normalize, Tap, keep
from zoo_tisode.block import BlockDynamics, ConvDynamics, OdeBlock, group_norm
from zoo_tisode.denoising import FeatureDenoising
from zoo_tisode.models import MODELS
from zoo_tisode.randomisation import RandomResizePad
from zoo_tisode.recipes import RECIPES


class OdeNet(Classifier):
    """The networks of one kind of images: those of MNIST and SVHN; subclasses have other extractors.

    Tap points: `act1`, `act2` (what leaves a convolution of the extractor), `ode` (what leaves the block).

    Args:
        width: channels of the block.
        in_chans, num_classes, pixel_mean, pixel_std, global_pool: as `zoo_base.cifar_resnet.CifarResNet`.
        timed: ODENet: the convolutions of f see the time and have biases. Else TisODE.
        t_end, step, solver, recompute, tolerance: as `OdeBlock`. t_end and step of 1 make the CNN.
        denoise: a block of feature denoising behind the ODE block (FDn).
        randomise: how much larger the padded image of a random resizing is, such as 1.107 (IRd); 0 is off.
    """

    feature_names: ClassVar[tuple[str, ...]] = ("act1", "act2", "ode")
    feature_parts: ClassVar[dict[str, tuple[str, ...]]] = {"act2": ("conv2", "norm2"), "ode": ("denoise",)}
    # of each convolution: its channels as a share of the width, kernel, stride, padding
    extractor: ClassVar[tuple[tuple[float, int, int, int], ...]] = ((1, 3, 1, 0), (1, 4, 2, 1))
    dynamics: ClassVar[type[ConvDynamics] | type[BlockDynamics]] = ConvDynamics

    def __init__(
        self,
        width: int = 64,
        in_chans: int = 1,
        num_classes: int = 10,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        global_pool: str = "avg",
        timed: bool = False,
        t_end: float = 1.0,
        step: float = 0.1,
        solver: str = "euler",
        recompute: bool = False,
        tolerance: float = 1e-5,
        denoise: bool = False,
        randomise: float = 0.0,
    ) -> None:
        super().__init__()
        self.randomise = RandomResizePad(randomise) if randomise else nn.Identity()
        self.normalize = Normalize(pixel_mean, pixel_std, in_chans)
        self.build_extractor(in_chans, width)
        self.ode = OdeBlock(
            self.dynamics(width, timed),
            t_end=t_end,
            step=step,
            solver=solver,
            recompute=recompute,
            tolerance=tolerance,
        )
        self.denoise = FeatureDenoising(width) if denoise else nn.Identity()
        self.set_head(width, num_classes, global_pool)

    def build_extractor(self, in_chans: int, width: int) -> None:
        """Create the extractor's modules and call `set_features`."""
        before, channels, reductions = in_chans, [], [1]
        for index, (share, kernel, stride, padding) in enumerate(self.extractor, start=1):
            after = max(1, int(share * width))
            self.add_module(f"conv{index}", nn.Conv2d(before, after, kernel, stride, padding))
            self.add_module(f"norm{index}", group_norm(after))
            self.add_module(f"act{index}", nn.ReLU())
            channels.append(after)
            reductions.append(reductions[-1] * stride)
            before = after
        self.set_features([*channels, width], [*reductions[1:], reductions[-1]])

    def extract(self, x: Tensor, tap: Tap) -> Iterator[Tensor]:
        """The feature maps of the extractor."""
        for index in range(1, len(self.extractor) + 1):
            x = self.get_submodule(f"norm{index}")(self.get_submodule(f"conv{index}")(x))
            x = tap(f"act{index}", self.get_submodule(f"act{index}")(x))
            yield x

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """The extractor's maps, and what leaves the block, denoised; see `Classifier.stages`."""
        for x in self.extract(self.normalize(self.randomise(x)), tap):  # noqa: B020
            yield x
        yield self.denoise(tap("ode", self.ode(x)))


class CifarOdeNet(OdeNet):
    """The small networks for CIFAR-10: three convolutions of 16, 32 and 64 channels before the block."""

    feature_names = ("act1", "act2", "act3", "ode")
    feature_parts = {"act2": ("conv2", "norm2"), "act3": ("conv3", "norm3"), "ode": ("denoise",)}
    extractor = ((1 / 4, 3, 1, 0), (1 / 2, 3, 2, 1), (1, 3, 2, 1))


class ImgnetOdeNet(OdeNet):
    """The networks for ImgNet10, 128x128: convolution and pooling, a residual block and pooling, and the block.

    Tap points: `pool1`, `pool2`, `ode`.
    """

    feature_names = ("pool1", "pool2", "ode")
    feature_parts = {"pool2": ("block",), "ode": ("denoise",)}
    dynamics = BlockDynamics

    def build_extractor(self, in_chans: int, width: int) -> None:
        """See `OdeNet.build_extractor`."""
        half = max(1, width // 2)
        self.conv1, self.norm1 = nn.Conv2d(in_chans, half, 5, 2, 2), group_norm(half)
        self.pool1, self.pool2 = nn.MaxPool2d(2), nn.MaxPool2d(2)
        self.block = ResidualBlock(half, width)
        self.set_features([half, width, width], [4, 16, 16])

    def extract(self, x: Tensor, tap: Tap) -> Iterator[Tensor]:
        """See `OdeNet.extract`."""
        x = tap("pool1", self.pool1(self.norm1(self.conv1(x))))
        yield x
        yield tap("pool2", self.pool2(self.block(x)))


class ResidualBlock(nn.Module):
    """He et al.'s basic block of stride 2 with GroupNorm, and a 1x1 shortcut with norm."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, after, 3, 2, 1, bias=False), group_norm(after)
        self.conv2, self.norm2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), group_norm(after)
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, 2, bias=False), group_norm(after))

    def forward(self, x: Tensor) -> Tensor:
        """`[N,before,H,W]` to `[N,after,H/2,W/2]`, not negative."""
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


def adopt(model: nn.Module, foreign: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that were trained elsewhere with the documented layers, under this model's names.

    The layers must stand in the order of the forward pass, each with its weight before its bias, as in every
    `nn.Sequential` of them; only the names may differ.

    Args:
        model: for whose `load_state_dict` the result is.
        foreign: a state dict.

    Raises:
        IntegrityError: another number of tensors, or a shape that does not fit.
    """
    own = model.state_dict()
    if len(own) != len(foreign):
        raise IntegrityError(
            f"{len(foreign)} tensors instead of {len(own)}; the layers are not those of this model"
        )
    for (name, tensor), (key, other) in zip(own.items(), foreign.items(), strict=True):
        if tensor.shape != other.shape:
            raise IntegrityError(
                f"{key!r} has shape {tuple(other.shape)}, but {name!r} in its place {tuple(tensor.shape)}"
            )
    return dict(zip(own, foreign.values(), strict=True))


default_cfgs = timm_cfgs(MODELS, RECIPES)

CNN = {"step": 1.0}  # z + f(z)
ODENET = {"timed": True, "step": 0.1}
TISODE = {"step": 0.05}
RGB = {"in_chans": 3}
FDN = {"denoise": True}
IRD = {"randomise": 331 / 299}


@register_model
def cnn_mnist_odenet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The CNN beside ODENet and TisODE on MNIST: 141,130 parameters."""
    return build(OdeNet, "cnn_mnist_odenet", pretrained, CNN, **kwargs)


@register_model
def cnn_mnist_odenet_shared(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The same CNN with its block 20 times, one set of weights: as many evaluations as 20 Euler steps."""
    return build(OdeNet, "cnn_mnist_odenet_shared", pretrained, {**CNN, "t_end": 20.0}, **kwargs)


@register_model
def cnn_mnist_odenet_fdn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The MNIST CNN with feature denoising before its classifier."""
    return build(OdeNet, "cnn_mnist_odenet_fdn", pretrained, {**CNN, **FDN}, **kwargs)


@register_model
def cnn_mnist_odenet_ird(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The MNIST CNN behind random resizing and padding."""
    return build(OdeNet, "cnn_mnist_odenet_ird", pretrained, {**CNN, **IRD}, **kwargs)


@register_model
def odenet_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ODENet for MNIST, Euler with step 0.1: 142,410 parameters."""
    return build(OdeNet, "odenet_mnist", pretrained, ODENET, **kwargs)


@register_model
def tisode_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TisODE for MNIST, Euler with step 0.05: 141,130 parameters."""
    return build(OdeNet, "tisode_mnist", pretrained, TISODE, **kwargs)


@register_model
def tisode_mnist_fdn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TisODE for MNIST with feature denoising before its classifier."""
    return build(OdeNet, "tisode_mnist_fdn", pretrained, {**TISODE, **FDN}, **kwargs)


@register_model
def tisode_mnist_ird(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TisODE for MNIST behind random resizing and padding."""
    return build(OdeNet, "tisode_mnist_ird", pretrained, {**TISODE, **IRD}, **kwargs)


@register_model
def cnn_svhn_odenet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The CNN for SVHN: the MNIST one with three input channels."""
    return build(OdeNet, "cnn_svhn_odenet", pretrained, {**CNN, **RGB}, **kwargs)


@register_model
def cnn_svhn_odenet_fdn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The SVHN CNN with feature denoising before its classifier."""
    return build(OdeNet, "cnn_svhn_odenet_fdn", pretrained, {**CNN, **RGB, **FDN}, **kwargs)


@register_model
def cnn_svhn_odenet_ird(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The SVHN CNN behind random resizing and padding."""
    return build(OdeNet, "cnn_svhn_odenet_ird", pretrained, {**CNN, **RGB, **IRD}, **kwargs)


@register_model
def odenet_svhn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ODENet for SVHN, Euler with step 0.1."""
    return build(OdeNet, "odenet_svhn", pretrained, {**ODENET, **RGB}, **kwargs)


@register_model
def tisode_svhn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TisODE for SVHN, Euler with step 0.05."""
    return build(OdeNet, "tisode_svhn", pretrained, {**TISODE, **RGB}, **kwargs)


@register_model
def tisode_svhn_fdn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TisODE for SVHN with feature denoising before its classifier."""
    return build(OdeNet, "tisode_svhn_fdn", pretrained, {**TISODE, **RGB, **FDN}, **kwargs)


@register_model
def tisode_svhn_ird(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TisODE for SVHN behind random resizing and padding."""
    return build(OdeNet, "tisode_svhn_ird", pretrained, {**TISODE, **RGB, **IRD}, **kwargs)


@register_model
def cnn_cifar10_odenet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The small CNN for CIFAR-10."""
    return build(CifarOdeNet, "cnn_cifar10_odenet", pretrained, {**CNN, **RGB}, **kwargs)


@register_model
def odenet_cifar10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The small ODENet for CIFAR-10."""
    return build(CifarOdeNet, "odenet_cifar10", pretrained, {**ODENET, **RGB}, **kwargs)


@register_model
def tisode_cifar10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The small TisODE for CIFAR-10."""
    return build(CifarOdeNet, "tisode_cifar10", pretrained, {**TISODE, **RGB}, **kwargs)


@register_model
def cnn_imgnet10_odenet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The CNN for ImgNet10, images of 128x128."""
    return build(ImgnetOdeNet, "cnn_imgnet10_odenet", pretrained, {**CNN, **RGB}, **kwargs)


@register_model
def odenet_imgnet10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ODENet for ImgNet10, Euler with step 0.1."""
    return build(ImgnetOdeNet, "odenet_imgnet10", pretrained, {**ODENET, **RGB}, **kwargs)


@register_model
def tisode_imgnet10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TisODE for ImgNet10, Euler with step 0.05."""
    return build(ImgnetOdeNet, "tisode_imgnet10", pretrained, {**TISODE, **RGB}, **kwargs)
