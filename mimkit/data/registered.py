"""The data sets known by name: where they lie, how their columns are called, their statistics."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from mimkit.data import objects, shapes
from mimkit.data.drawing import Drawing

Split = Literal["train", "test"]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DataSet:
    """What must be known of a data set before it is opened.

    Args:
        name: registered name, which recipes use.
        hub: Hugging Face id that it is downloaded from; None: it is drawn, or got by hand.
        folder: glob of its folder below ``--data`` and ``$MIMKIT_DATA``. The folder holds parquet
            files as on the Hugging Face Hub, or ``train/CLASS/*`` and ``val/CLASS/*``.
        image_size: height and width in pixels; None if they vary, or can be chosen.
        num_classes: how many classes images are labelled with.
        image: name of the column of images in its parquet files.
        label: name of the column of labels in its parquet files; None if images have no labels.
        splits: the files (by their first word) that make up a split here.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        drawing: what draws it, where nothing is downloaded.
        masks: the folder or column of masks, if it is not called as people call them.
        mask_names: what the ids of masks stand for, from 0 on.
        mask_ignore: ids in masks that are not judged.
    """

    name: str
    hub: str | None
    folder: str
    image_size: tuple[int, int] | None
    num_classes: int
    image: str = "image"
    label: str | None = "label"
    splits: Mapping[Split, tuple[str, ...]] = field(
        default_factory=lambda: {"train": ("train",), "test": ("test",)}
    )
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    drawing: Drawing | None = None
    masks: str | None = None
    mask_names: tuple[str, ...] | None = None
    mask_ignore: tuple[int, ...] | None = None


CIFAR10: Final = DataSet(
    name="cifar10",
    hub="uoft-cs/cifar10",
    folder="cifar10",
    image_size=(32, 32),
    num_classes=10,
    image="img",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
CIFAR100: Final = DataSet(
    name="cifar100",
    hub="uoft-cs/cifar100",
    folder="cifar100",
    image_size=(32, 32),
    num_classes=100,
    image="img",
    label="fine_label",
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)
STL10: Final = DataSet(
    name="stl10",
    hub="jxie/stl10",
    folder="stl10",
    image_size=(96, 96),
    num_classes=10,
    # Made for learning from its 100,000 unlabelled images; their label is -1.
    splits={"train": ("train", "unlabeled"), "test": ("test",)},
    mean=(0.4467, 0.4398, 0.4066),
    std=(0.2603, 0.2566, 0.2713),
)
TINY_IMAGENET: Final = DataSet(
    name="tiny_imagenet",
    hub="zh-plus/tiny-imagenet",
    folder="tiny[-_]imagenet*",
    image_size=(64, 64),
    num_classes=200,
    splits={"train": ("train",), "test": ("valid",)},
    mean=(0.4802, 0.4481, 0.3975),
    std=(0.2770, 0.2691, 0.2821),
)
IN32: Final = DataSet(
    name="in32",
    hub="benjamin-paine/imagenet-1k-32x32",
    folder="in32*",
    image_size=(32, 32),
    num_classes=1000,
    splits={"train": ("train",), "test": ("validation",)},
    mean=(0.4811, 0.4575, 0.4079),
    std=(0.2605, 0.2533, 0.2683),
)
IN224: Final = DataSet(
    name="in224",
    hub="ILSVRC/imagenet-1k",
    folder="in224*",
    image_size=None,
    num_classes=1000,
    splits={"train": ("train",), "test": ("validation",)},
)
CAMVID: Final = DataSet(
    name="camvid",
    hub=None,
    folder="camvid*",
    image_size=None,
    num_classes=0,
    label=None,
    mask_names=(
        *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car"),
        *("pedestrian", "bicyclist"),
    ),
    mask_ignore=(11,),
)
ADE20K: Final = DataSet(
    name="ade20k",
    hub=None,
    folder="ADEChallengeData2016*",
    image_size=None,
    num_classes=0,
    label=None,
    mask_ignore=(0,),
)
COCO: Final = DataSet(
    name="coco",
    hub=None,
    folder="coco*",
    image_size=None,
    num_classes=0,
    label=None,
)
NUCLEI: Final = DataSet(
    name="nuclei",
    hub=None,
    folder="nuclei*",
    image_size=None,
    num_classes=0,
    label=None,
)
SHAPES: Final = DataSet(
    name="shapes",
    hub=None,
    folder="",
    image_size=None,
    num_classes=10,
    mean=(0.5, 0.5, 0.5),
    std=(0.189, 0.175, 0.198),
    drawing=shapes.SHAPES,
)
OBJECTS: Final = DataSet(
    name="objects",
    hub=None,
    folder="",
    image_size=None,
    num_classes=10,
    mean=(0.5, 0.5, 0.5),
    std=(0.224, 0.211, 0.235),
    drawing=objects.OBJECTS,
)
