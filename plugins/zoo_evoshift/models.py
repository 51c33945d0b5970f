"""The architectures of the plugin, as data."""

from __future__ import annotations

from zoo.spec import ModelSpec

SMALL = {"blocks": ((8,), (8,)), "hidden": 16}

MODELS = [
    ModelSpec(
        name="graynet",
        arch="zoo_evoshift.nets:graynet",
        summary="GrayNet, two convolutions for 28x28 images: EvoShift's candidate on MNIST",
        input_size=(1, 28, 28),
        tiny=SMALL,
    ),
    ModelSpec(
        name="graynet-3x3",
        arch="zoo_evoshift.nets:graynet_3x3",
        summary="two convolutions without padding for 28x28 images: the optimisers' benchmark on MNIST",
        input_size=(1, 28, 28),
        tiny={"blocks": ((8, 8),), "hidden": 16},
    ),
    ModelSpec(
        name="colornet",
        arch="zoo_evoshift.nets:colornet",
        summary="ColorNet, six convolutions for 32x32 images: EvoShift's candidate on CIFAR-10",
        tiny={"blocks": ((8, 8), (8, 8), (8, 8)), "hidden": 16},
    ),
    ModelSpec(
        name="vibce-graynet",
        arch="zoo_evoshift.vib:vibce_graynet",
        summary="vibCE: a variational autoencoder on GrayNet's trunk whose mean code is classified",
        input_size=(1, 28, 28),
        tiny={**SMALL, "latent": 6},
        twin="graynet",
    ),
    ModelSpec(
        name="vibce-colornet",
        arch="zoo_evoshift.vib:vibce_colornet",
        summary="vibCE: a variational autoencoder on ColorNet's trunk whose mean code is classified",
        tiny={"blocks": ((8, 8), (8, 8), (8, 8)), "hidden": 16, "latent": 6},
        twin="colornet",
    ),
]
