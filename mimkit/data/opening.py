"""Opening a data set: one split, its images looked at, small ones decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mimkit.data.cache import Wish, met, split_folder, surveyed
from mimkit.data.cache import folder as cache_folder
from mimkit.data.drawing import split as numbers_of
from mimkit.data.intake.locate import Wanted, locate, registered
from mimkit.data.intake.table import Listing, Table
from mimkit.data.looking.survey import RESIDENT_SIZE
from mimkit.data.pixels.readers import Files, Pictures
from mimkit.data.registered import IMAGENET_MEAN, IMAGENET_STD, DataSet, Split
from mimkit.data.source import Source
from mimkit.data.truth.drawn import DrawnMasks
from mimkit.data.truth.drawn_objects import DrawnObjects
from mimkit.data.truth.found import Annotations, told_of
from mimkit.data.truth.look import survey_masks
from mimkit.data.truth.masks import Looked, numbered
from mimkit.errors import DataError
from mimkit.recipe.sections import DataSection

SPLITS: Final[tuple[Split, Split]] = ("train", "test")
DRAWN: Final = {"train": 10_000, "test": 2_000}
"""How many pictures of the embedded set there are where the recipe does not say."""


@dataclass(frozen=True)
class Found:
    """Where the images that a recipe names lie on disk; small images that are drawn lie nowhere.

    Args:
        images: what to pre-train on.
        labelled: ``data.labelled``.
    """

    images: Mapping[Split, Listing] | None
    labelled: Mapping[Split, Listing] | None


def find(section: DataSection) -> Found:
    """Looks for the data on disk, in one walk, and downloads what is missing.

    Raises: DataError if the data cannot be found.
    """
    labelled = _labelled(section)
    return Found(
        _listings(section, "data.name"),
        None if labelled is None else _listings(labelled, "data.labelled"),
    )


def open_source(section: DataSection, split: Split) -> Source:
    """Opens a split of the data set that a recipe names.

    The first time, every image is looked at, unless ``data.survey`` is false; what cannot be
    decoded is skipped and listed. The result is cached, and so are the pixels of small images.

    Raises: DataError if the data cannot be found or used.
    """
    return _open(section, (split,), _listings(section, "data.name"))[0]


def open_sources(section: DataSection, found: Found | None = None) -> tuple[Source, Source]:
    """Opens both splits, in one walk over the disk, so that they are of one moment.

    Args:
        section: of the recipe.
        found: where the data lie, if that is known.

    Raises: DataError as `open_source`.
    """
    listings = found.images if found else _listings(section, "data.name")
    train, test = _open(section, SPLITS, listings)
    return train, test


def open_labelled(section: DataSection, found: Found | None = None) -> tuple[Source, Source] | None:
    """Opens both splits of ``data.labelled``; None if the recipe names none.

    All of its images are used, and ``data.path`` does not matter: it says where the images to
    pre-train on are.

    Raises: DataError if the data cannot be found or used, or have no labels, masks or objects.
    """
    labelled = _labelled(section)
    if labelled is None:
        return None
    listings = found.labelled if found else _listings(labelled, "data.labelled")
    train, test = _open(labelled, SPLITS, listings)
    for source in (train, test):
        known = source.masks is not None or source.objects is not None
        if not known and (source.labels is None or not bool((source.labels >= 0).any())):
            raise DataError(
                f"data.labelled: must name labelled images, but the {source.split} split of "
                f"'{source.name}' ({source.origin}) has no labels. Put the images into one folder "
                "a class, name the column of labels (data.label_column), or a table of files and "
                "labels (data.labels)."
            )
    return train, test


def _labelled(section: DataSection) -> DataSection | None:
    if section.labelled is None:
        return None
    change = {
        "name": section.labelled,
        "labelled": None,
        "path": None,
        "num_images": None,
        "num_test_images": None,
        "survey": True,
    }
    return section.model_copy(update=change)


def _listings(section: DataSection, key: str) -> Mapping[Split, Listing] | None:
    dataset = registered(section.name)
    if dataset is not None and dataset.drawing is not None:
        return None
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
        masks=None if elsewhere else section.masks or (dataset.masks if dataset else None),
        objects=None if elsewhere else section.objects,
    )
    return locate(wanted)


def _open(
    section: DataSection, splits: Sequence[Split], listings: Mapping[Split, Listing] | None
) -> list[Source]:
    dataset = registered(section.name)
    looked: dict[Split, Looked] = {}
    limits = {"train": section.num_images, "test": section.num_test_images}
    # What says what images show speaks of the labelled set, if there is one.
    asked = section.objects if section.labelled is None else None
    annotations = Annotations(asked, listings or {}, cache_folder())
    keys = {"train": "data.num_images", "test": "data.num_test_images"}
    opened = []
    for split in splits:
        if listings is None:
            assert dataset is not None
            source = _draw(section, dataset, split, limits[split] or DRAWN[split])
        else:
            wish = Wish(listings[split], limits[split], keys[split])
            # Held-out images are judged one by one: none may stand in for another.
            read = _read if section.survey or split == "test" else _meet
            source = read(section, dataset, split, wish, annotations)
            if wish.listing.masks:
                looked[split] = _look_at_masks(source, wish)
        opened.append(source)
    if looked:
        names = next(listings[split].mask_names for split in looked) if listings else None
        opened = _with_masks(opened, looked, section, dataset, names)
    return [replace(s, mean=section.mean or s.mean, std=section.std or s.std) for s in opened]


def _look_at_masks(source: Source, wish: Wish) -> Looked:
    table = wish.table()
    rows = np.arange(len(table)) if source.rows is None else source.rows
    sizes = None if source.sizes is None else source.sizes.numpy()
    try:
        found = survey_masks(table, rows, sizes, split_folder(source.key))
    except OSError as error:
        raise DataError(
            f"{split_folder(source.key)}: what is found in masks must be cached here, but: {error}."
            " Name another folder with MIMKIT_CACHE."
        ) from error
    return Looked(table, rows, found, wish.listing.masks)


def _with_masks(
    opened: Sequence[Source],
    looked: Mapping[Split, Looked],
    section: DataSection,
    dataset: DataSet | None,
    names: Sequence[str] | None,
) -> list[Source]:
    """Adds masks, whose classes all splits share."""
    names = (dataset.mask_names if dataset else None) or names
    ignore = section.mask_ignore
    if ignore is None and dataset is not None:
        ignore = dataset.mask_ignore
    masks = numbered(looked, names, ignore)
    return [replace(source, masks=masks.get(source.split)) for source in opened]


def _read(
    section: DataSection,
    dataset: DataSet | None,
    split: Split,
    wish: Wish,
    annotations: Annotations,
) -> Source:
    found = surveyed(wish)
    survey, pixels = found.survey, found.pixels()
    objects = annotations.of(split, wish, survey.rows, survey.sizes)
    depth = survey.depth.note if survey.depth else ""
    notes = [wish.listing.note, depth, annotations.notes.get(split, "")]
    return Source(
        name=section.name,
        split=split,
        origin=wish.listing.origin,
        classes=survey.classes,
        labels=None if survey.labels is None else torch.from_numpy(survey.labels),
        mean=dataset.mean if dataset else IMAGENET_MEAN,
        std=dataset.std if dataset else IMAGENET_STD,
        fingerprint=survey.fingerprint,
        sizes=torch.from_numpy(survey.sizes),
        skipped=annotations.unused(wish.listing.skipped) + survey.skipped + told_of(objects),
        note="; ".join(note for note in notes if note),
        pixels=pixels,
        reader=Files(wish.table(), survey.rows, survey.sizes) if pixels is None else None,
        key=found.key,
        rows=survey.rows,
        objects=objects,
        shards=_ends(wish.table(), survey.rows) if pixels is None else (),
    )


def _meet(
    section: DataSection,
    dataset: DataSet | None,
    split: Split,
    wish: Wish,
    annotations: Annotations,
) -> Source:
    found = met(wish)
    labels = found.table.labels
    objects = annotations.of(split, wish)
    notes = [wish.listing.note, annotations.notes.get(split, "")]
    return Source(
        name=section.name,
        split=split,
        origin=wish.listing.origin,
        classes=found.table.classes,
        labels=None if labels is None else torch.from_numpy(labels),
        mean=dataset.mean if dataset else IMAGENET_MEAN,
        std=dataset.std if dataset else IMAGENET_STD,
        fingerprint=found.fingerprint,
        sizes=None,
        skipped=annotations.unused(wish.listing.skipped) + told_of(objects),
        note="; ".join(note for note in notes if note),
        reader=found.reader,
        key=found.key,
        objects=objects,
        shards=_ends(found.table),
    )


def _ends(table: Table, used: NDArray[np.int64] | None = None) -> tuple[int, ...]:
    ends = table.ends(used)
    return () if ends is None else tuple(ends.tolist())


def _draw(section: DataSection, dataset: DataSet, split: Split, count: int) -> Source:
    drawing = dataset.drawing
    assert drawing is not None
    image_size = max(section.image_size)
    if image_size < drawing.min_image_size:
        raise DataError(
            f"data.image_size: must be at least {drawing.min_image_size} for '{dataset.name}', but "
            f"is {image_size}."
        )
    numbers = numbers_of(split, count)
    resident = image_size <= RESIDENT_SIZE
    # Labels do not depend on the size, so large pictures are drawn small to learn them.
    drawn_size = image_size if resident else drawing.min_image_size
    images, labels = drawing.draw(numbers, image_size=drawn_size)
    fingerprint = hashlib.sha256(f"{image_size}\0".encode() + images.tobytes() + labels.tobytes())
    return Source(
        name=section.name,
        split=split,
        origin="drawn",
        classes=drawing.classes,
        labels=torch.from_numpy(labels),
        mean=dataset.mean,
        std=dataset.std,
        fingerprint=fingerprint.hexdigest(),
        sizes=torch.full((count, 2), image_size, dtype=torch.int32),
        pixels=torch.from_numpy(images) if resident else None,
        reader=None if resident else Pictures(drawing, numbers, image_size),
        masks=DrawnMasks(drawing, numbers, image_size) if drawing.annotate else None,
        objects=DrawnObjects(drawing, numbers, image_size) if drawing.annotate else None,
    )
