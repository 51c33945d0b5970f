"""The shared backbones, as data: what `zoo list` shows of them without an import of torch."""

from __future__ import annotations

from zoo.spec import ModelSpec

MODELS = [
    ModelSpec(
        name="resnet10-cifar",
        arch="zoo_base.cifar_resnet:resnet10_cifar",
        summary="ResNet-10 with a stem for 32x32 images",
        paper="https://arxiv.org/abs/1512.03385",
        tiny={"width": 8},
    ),
    ModelSpec(
        name="resnet18-cifar",
        arch="zoo_base.cifar_resnet:resnet18_cifar",
        summary="ResNet-18 with a stem for 32x32 images",
        paper="https://arxiv.org/abs/1512.03385",
        tiny={"width": 8},
    ),
    ModelSpec(
        name="resnet34-cifar",
        arch="zoo_base.cifar_resnet:resnet34_cifar",
        summary="ResNet-34 with a stem for 32x32 images",
        paper="https://arxiv.org/abs/1512.03385",
        tiny={"width": 8},
    ),
    ModelSpec(
        name="resnet50-cifar",
        arch="zoo_base.cifar_resnet:resnet50_cifar",
        summary="ResNet-50 with a stem for 32x32 images",
        paper="https://arxiv.org/abs/1512.03385",
        tiny={"layers": (1, 1, 1, 1), "width": 8},
    ),
    ModelSpec(
        name="resnet101-cifar",
        arch="zoo_base.cifar_resnet:resnet101_cifar",
        summary="ResNet-101 with a stem for 32x32 images",
        paper="https://arxiv.org/abs/1512.03385",
        tiny={"layers": (1, 1, 2, 1), "width": 8},
    ),
    ModelSpec(
        name="resnet20-cifar",
        arch="zoo_base.cifar_resnet:resnet20_cifar",
        summary="ResNet-20 for 32x32 images, 16 to 64 channels",
        paper="https://arxiv.org/abs/1512.03385",
        tiny={"width": 8},
    ),
    ModelSpec(
        name="resnet32-cifar",
        arch="zoo_base.cifar_resnet:resnet32_cifar",
        summary="ResNet-32 for 32x32 images, 16 to 64 channels",
        paper="https://arxiv.org/abs/1512.03385",
        tiny={"width": 8},
    ),
    ModelSpec(
        name="wrn28-10-cifar",
        arch="zoo_base.wide_resnet:wrn28_10_cifar",
        summary="WRN-28-10 with a stem for 32x32 images",
        paper="https://arxiv.org/abs/1605.07146",
        tiny={"depth": 10, "widen": 1, "width": 8},
    ),
    ModelSpec(
        name="wrn34-10-cifar",
        arch="zoo_base.wide_resnet:wrn34_10_cifar",
        summary="WRN-34-10 with a stem for 32x32 images",
        paper="https://arxiv.org/abs/1605.07146",
        tiny={"depth": 10, "widen": 1, "width": 8},
    ),
    ModelSpec(
        name="vgg16-bn-cifar",
        arch="zoo_base.cifar_vgg:vgg16_bn_cifar",
        summary="VGG-16 with BatchNorm and one linear layer for 32x32 images",
        paper="https://arxiv.org/abs/1409.1556",
        tiny={"width": 4},
    ),
    ModelSpec(
        name="densenet40-cifar",
        arch="zoo_base.cifar_densenet:densenet40_cifar",
        summary="DenseNet-40 of growth 12 for 32x32 images",
        paper="https://arxiv.org/abs/1608.06993",
        tiny={"depth": 10, "growth": 4, "width": 8},
    ),
    ModelSpec(
        name="small-cnn-mnist",
        arch="zoo_base.small_cnn:small_cnn_mnist",
        summary="the four convolutions of TRADES for 28x28 images",
        paper="https://arxiv.org/abs/1901.08573",
        input_size=(1, 28, 28),
        tiny={"width": 8, "hidden": 16, "zero_init": False},
    ),
    ModelSpec(
        name="efficientnet-b0-zoo",
        arch="zoo_base.efficientnet_b0:efficientnet_b0_zoo",
        summary="EfficientNet-B0 for 160x160 images, as trained on Imagenette",
        paper="https://arxiv.org/abs/1905.11946",
        input_size=(3, 160, 160),
        tiny={"width": 8, "depth": 0.25},
    ),
]
