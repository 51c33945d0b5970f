"""The data sets that are folders of image files: any folder, Imagenette, ImageNet, ImgNet10."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from picture_files import pictures, write_pictures
from PIL import Image

import zoo
from zoo.data import load_data
from zoo.errors import UnknownName, ZooError
from zoo.grammar import parse_name
from zoo.images import Transform
from zoo.loading import create
from zoo_base import datasets_folder
from zoo_base.dataset_specs import IMAGENETTE, IMGNET10


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def noise(height, width, seed=0, channels=3):
    return pictures(1, (height, width, channels), seed)[0].squeeze()


# --- any folder


@pytest.fixture
def root(tmp_path):
    """Two classes, of which `cat` has more images, in two splits."""
    counts = {"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 2}
    write_pictures(tmp_path / "set", counts, (10, 10, 3))
    return tmp_path / "set"


def picture(path):
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def test_folder(root):
    data = load_data("folder", "train", root=root)
    assert data.lazy
    assert data.num_classes == 2
    assert data.labels.tolist() == [0, 1, 0, 1, 0]  # the first n are as balanced as can be
    order = ["cat/0.png", "dog/0.png", "cat/1.png", "dog/1.png", "cat/2.png"]
    assert torch.equal(data.images, torch.stack([picture(root / "train" / name) for name in order]))
    assert torch.equal(data.pixels(slice(1, 3)), data.images[1:3] / 255)
    assert load_data("folder", "test", root=root).labels.tolist() == [0, 1, 1]
    rest, held = data.split(2)
    assert sorted([*rest.source.names, *held.source.names]) == sorted(order)


def test_folder_takes_the_size_of_the_model_unless_told_otherwise(root):
    def shape(text, input_size=None):
        data = load_data(text, "test", root=root, input_size=input_size)
        assert tuple(data.images.shape[1:]) == data.shape
        return data.shape

    assert shape("folder") == (3, 10, 10)
    assert shape("folder", (1, 6, 7)) == (1, 6, 7)
    assert shape("folder(size=5)", (1, 6, 7)) == (1, 5, 5)
    assert shape("folder(channels=3)", (1, 6, 7)) == (3, 6, 7)
    assert shape("folder(channels=1)") == (1, 10, 10)
    gray = load_data("folder(channels=1)", "test", root=root).images
    luma = load_data("folder", "test", root=root).images.float()
    luma = 0.299 * luma[:, 0] + 0.587 * luma[:, 1] + 0.114 * luma[:, 2]
    assert (gray[:, 0] - luma).abs().max() <= 1


def test_the_name_of_folder_data_finds_it_again(root):
    call = "folder(size=6, channels=1, fit=stretch, interpolation=bicubic, crop=0.5)"
    data = load_data(call, "test", root=root)
    assert data.name == "folder(channels=1,crop=0.5,fit=stretch,interpolation=bicubic,size=6)"
    assert load_data(data.name, "test", root=root).sha256 == data.sha256
    assert load_data("folder", "test", root=root, input_size=(3, 7, 7)).name == "folder(size=7)"
    assert load_data("folder", "test", root=root).sha256 != data.sha256


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_other_names_of_the_test_folder(root, name):
    (root / "test").rename(root / name)
    assert len(load_data("folder", "test", root=root)) == 3


def test_folder_of_classes_alone_is_for_tests(root):
    assert len(load_data("folder", "test", root=root / "train")) == 5
    with pytest.raises(ZooError, match=r"has no folder train; set it up as DIR/train/<class>"):
        load_data("folder", "train", root=root / "train")


def test_classes_are_those_of_train(root):
    shutil.rmtree(root / "test/cat")
    data = load_data("folder", "test", root=root)
    assert data.labels.tolist() == [1, 1]
    assert data.num_classes == 2
    write(root / "test/bird/0.png", noise(10, 10))
    with pytest.raises(ZooError, match="train has no class 'bird', only cat, dog"):
        load_data("folder", "test", root=root)


def test_folders_that_are_refused(root, tmp_path, monkeypatch):
    def refused(message, split="test", place=root, text="folder"):
        with pytest.raises(ZooError, match=message) as caught:
            load_data(text, split, root=place)
        assert "\n" not in str(caught.value)

    refused("pass --data-root DIR", place=None)
    refused("absent is no folder", place=tmp_path / "absent")
    refused("holds no class folders; at least two", place=root / "train/cat")
    refused("did you mean size", text="folder(sise=3)")
    refused("did you mean crop", text="folder(fit=crap)")
    refused("channels=0", text="folder(channels=0)")
    refused("size=0", text="folder(size=0)")
    refused("did you mean test", split="tets")
    write(root / "test/dog/9.png", noise(10, 11))
    refused(r"10x10 pixels, .*9\.png has 11x10; give one size.*folder\(size=64\)")
    assert load_data("folder(size=4)", "test", root=root).images.shape == (3 + 1, 3, 4, 4)
    for path in (root / "train/dog").iterdir():
        path.unlink()
    refused(r"train/dog holds 0 image files .*at least 1", split="train")
    shutil.rmtree(root / "train/dog")
    refused("holds one class folder, cat; at least two", split="train")
    (root / "train/dog").mkdir()
    shutil.rmtree(root / "test")
    refused("has no folder test or val or")
    (root / "test/cat").mkdir(parents=True)
    refused("hold no image files")


def test_evaluate_on_a_folder(root, tmp_path):
    """End to end: the size and the channel come from the model, as do the logits."""
    model = create(parse_name("resnet10-cifar"), {"width": 8, "in_chans": 1, "num_classes": 2}).eval()
    result = zoo.evaluate(model, "folder", threat="linf:0.1", suite="fgsm", data_root=root, n=2)
    assert result.dataset == "folder(channels=1,size=32)"
    data = load_data("folder(channels=1,size=32)", "test", root=root).subset(2)
    assert result.data_sha256 == data.sha256
    with torch.no_grad():
        right = (model(data.pixels()).argmax(1) == data.labels).float().mean()
    assert result.clean == float(right)


def test_a_model_of_other_classes_is_not_measured_on_a_folder(root):
    model = create(parse_name("resnet10-cifar"), {"width": 8, "num_classes": 3}).eval()
    with pytest.raises(ZooError, match=r"has 2 classes, .* gives 3 logits"):
        zoo.evaluate(model, "folder", threat="linf:0.1", suite="fgsm", data_root=root)


# --- Imagenette, ImageNet, ImgNet10


def test_imagenette(tmp_path):
    counts = {f"{split}/{wnid}": 1 for split in ("train", "val") for wnid in IMAGENETTE}
    for folder, shape in (("imagenette2-160", (160, 200, 3)), ("imagenette2-320", (330, 320, 3))):
        write_pictures(tmp_path / folder, counts, shape)
    small = tmp_path / "imagenette2-160"
    data = load_data("imagenette", "test", root=tmp_path)
    assert data.name == "imagenette"
    assert data.labels.tolist() == list(range(10))
    assert data.shape == (3, 160, 160)
    first = picture(small / "val" / "n01440764" / "0.png")
    assert torch.equal(data.batch(torch.tensor([0]))[0], first[:, :, 20:180])  # cut, not scaled
    assert load_data("imagenette", "train", root=small).shape == (3, 160, 160)
    large = load_data("imagenette(variant=320, size=300)", "test", root=tmp_path)
    assert large.shape == (3, 300, 300)
    assert large.name == "imagenette(size=300,variant=320)"
    assert large.source.base == tmp_path / "imagenette2-320" / "val"
    with pytest.raises(
        ZooError, match=r"no folder imagenette2, only imagenette2-160; fetch it with 'curl -L"
    ):
        load_data("imagenette(variant=full)", "test", root=tmp_path)
    with pytest.raises(UnknownName, match="variant"):
        load_data("imagenette(variant=64)", "test", root=tmp_path)
    with pytest.raises(ZooError, match=r"imagenette2-160\.tgz \| tar -xz -C DIR' and pass --data-root"):
        load_data("imagenette", "test")
    shutil.rmtree(small / "val" / "n03888257")
    with pytest.raises(ZooError, match="lacks the class folders n03888257 of imagenette"):
        load_data("imagenette", "test", root=tmp_path)
    write_pictures(small / "val", {"n03888257": 1, "n00000001": 1}, (160, 160, 3))
    with pytest.raises(ZooError, match="holds n00000001, which imagenette has not"):
        load_data("imagenette", "test", root=tmp_path)
    shutil.rmtree(small / "train")
    with pytest.raises(ZooError, match="has no folder train"):
        load_data("imagenette", "train", root=tmp_path)


def test_imagenet(tmp_path):
    wnids = [f"n{number:08d}" for number in range(1000)]
    write_pictures(
        tmp_path / "imagenet", {f"val/{wnid}": 1 for wnid in reversed(wnids)}, (40, 30, 3), codec="jpeg"
    )
    write_pictures(tmp_path / "imagenet", {"val/n00000001": 2}, (40, 30, 3), codec="jpeg")
    data = load_data("imagenet", "test", root=tmp_path)
    assert data.shape == (3, 224, 224)
    assert data.name == "imagenet"
    assert data.source.transform == Transform((3, 224, 224), crop=0.875)
    assert data.source.names == [*(f"{wnid}/0.jpeg" for wnid in wnids), "n00000001/1.jpeg"]
    assert data.labels.tolist() == [*range(1000), 1]
    assert data.batch(torch.tensor([999])).shape == (1, 3, 224, 224)
    assert load_data("imagenet", "test", root=tmp_path, input_size=(3, 64, 64)).name == "imagenet(size=64)"
    with pytest.raises(ZooError, match="no folder train"):
        load_data("imagenet", "train", root=tmp_path)
    digest, kaggle = data.sha256, tmp_path / "kaggle"
    (kaggle / "ILSVRC/Data").mkdir(parents=True)
    (tmp_path / "imagenet").rename(kaggle / "ILSVRC/Data/CLS-LOC")
    for place in (kaggle, kaggle / "ILSVRC/Data/CLS-LOC"):
        assert load_data("imagenet", "test", root=place).sha256 == digest
    with pytest.raises(ZooError, match=r"neither train/ nor val/.*https://image-net\.org"):
        load_data("imagenet", "test", root=tmp_path)
    shutil.rmtree(kaggle / "ILSVRC/Data/CLS-LOC/val/n00000999")
    with pytest.raises(ZooError, match=r"holds 999 class folders, imagenet has 1,000; .*--data folder"):
        load_data("imagenet", "test", root=kaggle)


def test_imgnet10(tmp_path, monkeypatch):
    for name, value in (("IMAGENET_LEAST", 2), ("IMGNET10_TEST", 4), ("IMGNET10_TRAIN", 5)):
        monkeypatch.setattr(datasets_folder, name, value)
    counts = {wnid: 4 for wnids in IMGNET10.values() for wnid in wnids}
    counts |= {"n01980166": 2, "n09999999": 1}
    place = tmp_path / "imagenet" / "train"
    write_pictures(place, counts, (20, 30, 3))
    test, train = (load_data("imgnet10", split, root=tmp_path) for split in ("test", "train"))
    assert test.shape == train.shape == (3, 128, 128)
    assert (len(test), len(train)) == (40, 50)
    assert test.name == "imgnet10"
    assert load_data("imgnet10(fit=crop)", "test", root=tmp_path).name == "imgnet10(fit=crop)"
    assert test.labels.bincount().tolist() == [4] * 10
    names = [
        [name for name, label in zip(d.source.names, d.labels, strict=True) if label == 9]
        for d in (test, train)
    ]
    fiddler, rock, king = IMGNET10["crab"]  # in turn; of the first there are two
    assert names[0] == [f"{fiddler}/0.png", f"{rock}/0.png", f"{king}/0.png", f"{fiddler}/1.png"]
    assert names[1] == [f"{w}/{n}.png" for w, n in ((rock, 1), (king, 1), (rock, 2), (king, 2), (rock, 3))]
    assert test.source.names[1] == "n01532829/0.png"  # classes are in the order of table 3.6: dog, bird, ...
    stretched = Image.open(place / test.source.names[0]).resize((128, 128), Image.Resampling.BILINEAR)
    assert np.array_equal(test.batch(torch.tensor([0]))[0], np.asarray(stretched).transpose(2, 0, 1))
    (place / "n01980166/1.png").unlink()
    with pytest.raises(ZooError, match=r"n01980166 holds 1 image files .*at least 2"):
        load_data("imgnet10", "test", root=tmp_path)
    shutil.rmtree(place / "n01980166")
    with pytest.raises(ZooError, match="lacks the class folders n01980166 of imgnet10"):
        load_data("imgnet10", "test", root=tmp_path)


def test_synsets_of_imgnet10_are_of_imagenet():
    timm_data = pytest.importorskip("timm.data")
    info = timm_data.ImageNetInfo()
    known = set(info.label_names())
    listed = [wnid for wnids in IMGNET10.values() for wnid in wnids]
    assert len(set(listed)) == 30
    assert known >= {*listed, *IMAGENETTE}
    assert list(IMAGENETTE) == sorted(IMAGENETTE)
    assert all(name in info.label_name_to_description(wnid) for wnid, name in IMAGENETTE.items())
