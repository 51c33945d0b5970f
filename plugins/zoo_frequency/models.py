"""The networks, as data: literals only, no torch."""

from __future__ import annotations

from zoo.spec import ModelSpec

XU = "https://arxiv.org/abs/2002.12416"  # of the networks; the thesis (Chaudhury, chapter 5) has no page
OWN = "frequency-white-box"

MODELS = [
    ModelSpec(
        name="dct-resnet50",
        arch="zoo_frequency.frequency:dct_resnet50",
        summary="ResNet-50 on 24 DCT channels of 8x8 tiles, from pixels; rounded coefficients",
        paper=XU,
        input_size=(3, 224, 224),
        num_classes=1000,
        tiny={"layers": (1, 1, 1, 1), "width": 8, "resize": 64, "crop": 56},
        differentiable=False,
        views="zoo_frequency.attack:views",
        attack=OWN,
        twin="image-resnet50",
    ),
    ModelSpec(
        name="image-resnet50",
        arch="zoo_frequency.frequency:image_resnet50",
        summary="ResNet-50 on pixels, the twin of dct-resnet50",
        paper="https://arxiv.org/abs/1512.03385",
        input_size=(3, 224, 224),
        num_classes=1000,
        tiny={"layers": (1, 1, 1, 1), "width": 4},
    ),
    ModelSpec(
        name="dct-resnet10-cifar-tiles",
        arch="zoo_frequency.frequency:dct_resnet10_cifar_tiles",
        summary="ResNet-10 on 24 DCT channels of 8x8 tiles, for 32x32 images enlarged four times",
        paper=XU,
        tiny={"width": 8, "resize": 64},
        differentiable=False,
        views="zoo_frequency.attack:views",
        attack=OWN,
        twin="image-resnet10-cifar",
    ),
    *(
        ModelSpec(
            name=f"{kind}-resnet{depth}-{images}",
            arch=f"zoo_frequency.frequency:{kind}_resnet{depth}_{images}",
            summary=f"ResNet-{depth} on {what} of {size}x{size} images",
            paper=XU if kind == "dct" else "https://arxiv.org/abs/1512.03385",
            input_size=(chans, size, size),
            tiny={"width": 8} if depth == 10 else {"layers": (1, 1, 1, 1), "width": 8},
            attack=OWN if kind == "dct" else "",
            twin=f"image-resnet{depth}-{images}" if kind == "dct" else "",
        )
        for images, chans, size in (("cifar", 3, 32), ("mnist", 1, 28))
        for depth in (10, 50)
        for kind, what in (("dct", "the whole-image DCT"), ("image", "pixels in [-1,1]"))
    ),
]
