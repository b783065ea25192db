"""Opening a data set: one split, its images looked at, small ones decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from PIL import Image
from torch import Tensor

from mimkit.data import shapes
from mimkit.data.cache import folder as cache_folder
from mimkit.data.cache import surveyed
from mimkit.data.intake.locate import Wanted, locate, registered
from mimkit.data.intake.table import Listing, Skipped
from mimkit.data.readers import Files, Pictures, Reader
from mimkit.data.registered import IMAGENET_MEAN, IMAGENET_STD, DataSet, Split
from mimkit.data.survey import RESIDENT_SIZE
from mimkit.data.views import Augment, render
from mimkit.errors import DataError
from mimkit.parts.records import View
from mimkit.recipe.sections import DataSection

SPLITS: Final[tuple[Split, Split]] = ("train", "test")
DRAWN: Final = {"train": 10_000, "test": 2_000}
"""How many pictures of the embedded set there are where the recipe does not say."""

_SHOWN: Final = 4
"""So many names of classes are printed."""


@dataclass(frozen=True, eq=False)
class Source:
    """One split of a data set, opened.

    Args:
        name: as the recipe calls the data set.
        split: ``"train"`` or ``"test"``.
        origin: where it was found.
        classes: the names that labels number; () if there are no labels.
        labels: (N,) int64, -1 for single images without one; None if no image has one.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        fingerprint: changes whenever images, labels or their order change.
        sizes: (N, 2) int32, heights and widths.
        skipped: what is not used, and why.
        note: what readers of results must know of how the split came about, or nothing.
        pixels: (N, 3, H, W) uint8 if all images have one size of at most 64 pixels, else None.
        reader: decodes one image; None where there are pixels.
    """

    name: str
    split: Split
    origin: str
    classes: tuple[str, ...]
    labels: Tensor | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    sizes: Tensor
    skipped: tuple[Skipped, ...] = ()
    note: str = ""
    pixels: Tensor | None = None
    reader: Reader | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, index: int, shrink: int = 1) -> Image.Image:
        """Returns an image in RGB, at its full size, or up to ``shrink`` times smaller.

        Raises: DataError if its file can no longer be read.
        """
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index].permute(1, 2, 0).cpu().numpy())
        assert self.reader is not None
        return self.reader(index, shrink)

    def view(self, index: Tensor, view: View) -> Tensor:
        """Renders whole images, not augmented.

        Shape: index (n,) int64; (n, C, H, W) float32 on the CPU.
        """
        return render(self, index, view, None, Augment.none()).cpu()

    def to(self, device: torch.device | str) -> Source:
        """Returns the same source with its decoded pixels, if it has any, on a device."""
        return self if self.pixels is None else replace(self, pixels=self.pixels.to(device))

    def describe(self) -> str:
        """Says what was opened, in one line and one more for each oddity."""
        height, width = self.sizes[0].tolist()
        alike = bool((self.sizes == self.sizes[0]).all())
        size = f"of {width} x {height} px" if alike else "of several sizes"
        classes = f"{len(self.classes)} classes ({_some(self.classes)})"
        if not self.classes:
            classes = "no labels"
        elif self.labels is not None and bool((self.labels < 0).any()):
            classes += f", {int((self.labels < 0).sum()):,} images without a label"
        lines = [f"{self.name} {self.split}: {len(self):,} images {size}, {classes}, {self.origin}"]
        if self.note:
            lines.append(f"  {self.note}")
        if self.skipped:
            lines.append(f"  {len(self.skipped):,} skipped, all listed in the ledger; the first:")
            lines += [f"    {item.path} {item.reason}" for item in self.skipped[:3]]
        return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def open_source(section: DataSection, split: Split) -> Source:
    """Opens a split of the data set that a recipe names.

    The first time, every image is looked at; what cannot be decoded is skipped and listed. The
    result is cached, and so are the pixels of small images.

    Raises: DataError if the data cannot be found or used.
    """
    return _open(section, (split,), "data.name")[0]


def open_sources(section: DataSection) -> tuple[Source, Source]:
    """Opens both splits, in one walk over the disk, so that they are of one moment.

    Raises: DataError as `open_source`.
    """
    train, test = _open(section, SPLITS, "data.name")
    return train, test


def open_labelled(section: DataSection) -> tuple[Source, Source] | None:
    """Opens both splits of ``data.labelled``; None if the recipe names none.

    All of its images are used, and ``data.path`` does not matter: it says where the images to
    pre-train on are.

    Raises: DataError if the data cannot be found or used, or have no labels.
    """
    if section.labelled is None:
        return None
    change = {"name": section.labelled, "labelled": None, "path": None}
    change |= {"num_images": None, "num_test_images": None}
    train, test = _open(section.model_copy(update=change), SPLITS, "data.labelled")
    for source in (train, test):
        if source.labels is None or not bool((source.labels >= 0).any()):
            raise DataError(
                f"data.labelled: must name labelled images, but the {source.split} split of "
                f"'{source.name}' ({source.origin}) has no labels. Put the images into one folder "
                "a class, name the column of labels (data.label_column), or a table of files and "
                "labels (data.labels)."
            )
    return train, test


def _open(section: DataSection, splits: Sequence[Split], key: str) -> list[Source]:
    dataset = registered(section.name)
    limits = {"train": section.num_images, "test": section.num_test_images}
    if dataset is not None and dataset.hub is None:
        found = [_draw(section, dataset, each, limits[each] or DRAWN[each]) for each in splits]
    else:
        # What says which labels to take speaks of the labelled set, if there is one.
        elsewhere = section.labelled is not None
        wanted = Wanted(
            key,
            section.name,
            section.path,
            dataset,
            cache=cache_folder(),
            meaning=section.layout,
            labels=None if elsewhere else section.labels,
            image_column=section.image_column,
            label_column=None if elsewhere else section.label_column,
        )
        listings = locate(wanted)
        found = [_read(section, dataset, each, listings[each], limits[each]) for each in splits]
    return [replace(s, mean=section.mean or s.mean, std=section.std or s.std) for s in found]


def _read(
    section: DataSection, dataset: DataSet | None, split: Split, listing: Listing, limit: int | None
) -> Source:
    limit_key = "data.num_images" if split == "train" else "data.num_test_images"
    found = surveyed(listing, limit, limit_key)
    survey, pixels = found.survey, found.pixels()
    return Source(
        name=section.name,
        split=split,
        origin=listing.origin,
        classes=survey.classes,
        labels=None if survey.labels is None else torch.from_numpy(survey.labels),
        mean=dataset.mean if dataset else IMAGENET_MEAN,
        std=dataset.std if dataset else IMAGENET_STD,
        fingerprint=survey.fingerprint,
        sizes=torch.from_numpy(survey.sizes),
        skipped=listing.skipped + survey.skipped,
        note=listing.note,
        pixels=pixels,
        reader=Files(found.table(), survey.rows, survey.sizes) if pixels is None else None,
    )


def _draw(section: DataSection, dataset: DataSet, split: Split, count: int) -> Source:
    image_size = max(section.image_size)
    if image_size < shapes.MIN_IMAGE_SIZE:
        raise DataError(
            f"data.image_size: must be at least {shapes.MIN_IMAGE_SIZE} for '{dataset.name}', but "
            f"is {image_size}."
        )
    numbers = shapes.split(split, count)
    resident = image_size <= RESIDENT_SIZE
    # Labels do not depend on the size, so large pictures are drawn small to learn them.
    drawn_size = image_size if resident else shapes.MIN_IMAGE_SIZE
    images, labels = shapes.draw(numbers, image_size=drawn_size)
    fingerprint = hashlib.sha256(f"{image_size}\0".encode() + images.tobytes() + labels.tobytes())
    return Source(
        name=section.name,
        split=split,
        origin="drawn",
        classes=shapes.CLASSES,
        labels=torch.from_numpy(labels),
        mean=dataset.mean,
        std=dataset.std,
        fingerprint=fingerprint.hexdigest(),
        sizes=torch.full((count, 2), image_size, dtype=torch.int32),
        pixels=torch.from_numpy(images) if resident else None,
        reader=None if resident else Pictures(numbers, image_size),
    )
