"""Opening a data set: one split, its images looked at, small ones decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mimkit.data.cache import Met, Surveyed, Wish, met, split_folder, surveyed
from mimkit.data.cache import folder as cache_folder
from mimkit.data.drawn_source import draw_source
from mimkit.data.intake.locate import Wanted, locate, registered
from mimkit.data.intake.table import Listing, Table
from mimkit.data.looking.meeting import Meeting
from mimkit.data.looking.stored import Stored
from mimkit.data.pixels.raster import scaled
from mimkit.data.pixels.readers import Files
from mimkit.data.registered import DataSet, Split
from mimkit.data.source import Source
from mimkit.data.truth.found import Annotations, told_of
from mimkit.data.truth.look import survey_masks
from mimkit.data.truth.masks import Looked, numbered
from mimkit.data.values import Values, form_of
from mimkit.errors import DataError
from mimkit.recipe.sections import DataSection

SPLITS: Final[tuple[Split, Split]] = ("train", "test")


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
    return _Opening(section, _listings(section, "data.name")).splits((split,))[0]


def open_sources(section: DataSection, found: Found | None = None) -> tuple[Source, Source]:
    """Opens both splits, in one walk over the disk, so that they are of one moment.

    Args:
        section: of the recipe.
        found: where the data lie, if that is known.

    Raises: DataError as `open_source`.
    """
    listings = found.images if found else _listings(section, "data.name")
    train, test = _Opening(section, listings).splits(SPLITS)
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
    images = found.images if found else _listings(section, "data.name")
    # What is black and white in the images to pre-train on is so here.
    train, test = _Opening(labelled, listings, _Opening(section, images)).splits(SPLITS)
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


@dataclass(frozen=True)
class _Opening:
    """Opens splits of one data set.

    Args:
        section: of the recipe.
        listings: of its splits; None: it is drawn.
        lead: of the images to pre-train on, if these are others.
    """

    section: DataSection
    listings: Mapping[Split, Listing] | None
    lead: _Opening | None = None

    def splits(self, wanted: Sequence[Split]) -> list[Source]:
        """Opens some splits."""
        section, dataset = self.section, registered(self.section.name)
        if self.listings is None:
            assert dataset is not None
            limits = {"train": section.num_images, "test": section.num_test_images}
            opened = [draw_source(section, dataset, split, limits[split]) for split in wanted]
        else:
            opened = self._found(self.listings, wanted, dataset)
        return [replace(s, mean=section.mean or s.mean, std=section.std or s.std) for s in opened]

    def stored(self) -> Stored | None:
        """Tells what values training images store; None if nobody needs to know."""
        if self.listings is None:
            return None
        own = _look(self.section, "train", self.listings["train"]).stored
        led = self.lead.stored() if self.lead is not None and own is not None else None
        return led if led is not None and own is not None and led.deep is own.deep else own

    def _found(
        self, listings: Mapping[Split, Listing], wanted: Sequence[Split], dataset: DataSet | None
    ) -> list[Source]:
        # What says what images show speaks of the labelled set, if there is one.
        asked = self.section.objects if self.section.labelled is None else None
        annotations = Annotations(asked, listings, cache_folder())
        looked: dict[Split, Looked] = {}
        opened: list[Source] = []
        deep: list[bool] = []
        for split in wanted:
            found = _look(self.section, split, listings[split])
            stored = None if found.stored is None else self.stored()
            deep.append(found.stored is not None and found.stored.deep)
            if stored is not None and stored.deep is not deep[-1]:
                deep.append(stored.deep)
            values = Values.of(form_of(self.section), dataset, stored)
            if isinstance(found, Surveyed):
                source = _read(self.section, split, found, values)
            else:
                source = _meet(self.section, split, found, values)
            opened.append(_annotated(source, found.wish, values.note, annotations))
            if found.wish.listing.masks:
                looked[split] = _look_at_masks(opened[-1], found.wish)
        if len(set(deep)) > 1:
            raise DataError(
                f"{self.section.name}: both splits must be stored in 8 bits, or both in more, but "
                "one is in more. Say which values are black and white with data.range = [LOW, "
                "HIGH], or data.range = 'type' for what each type can hold."
            )
        if looked:
            names = next(listings[split].mask_names for split in looked)
            opened = _with_masks(opened, looked, self.section, dataset, names)
        return opened


def _look(section: DataSection, split: Split, listing: Listing) -> Surveyed | Met:
    """Looks at the images of a split, unless that was done before.

    Held-out images are judged one by one: none may stand in for another.
    """
    limit, key = section.num_images, "data.num_images"
    if split == "test":
        limit, key = section.num_test_images, "data.num_test_images"
    wish = Wish(listing, limit, key, form_of(section))
    return surveyed(wish) if section.survey or split == "test" else met(wish)


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


def _read(section: DataSection, split: Split, found: Surveyed, values: Values) -> Source:
    survey, pixels, wish = found.survey, found.pixels(), found.wish
    if pixels is not None and values.scale is not None:
        pixels = torch.from_numpy(scaled(pixels.numpy(), values.scale))
    files = Files(wish.table(), survey.rows, survey.sizes, values.form, values.scale)
    return Source(
        name=section.name,
        split=split,
        origin=wish.listing.origin,
        classes=survey.classes,
        labels=None if survey.labels is None else torch.from_numpy(survey.labels),
        mean=values.mean,
        std=values.std,
        fingerprint=values.fingerprint(survey.fingerprint),
        sizes=torch.from_numpy(survey.sizes),
        skipped=survey.skipped,
        note=survey.depth.note if survey.depth else "",
        pixels=pixels,
        reader=files if pixels is None else None,
        key=found.key,
        scale=values.scale,
        rows=survey.rows,
        shards=_ends(wish.table(), survey.rows) if pixels is None else (),
    )


def _meet(section: DataSection, split: Split, found: Met, values: Values) -> Source:
    labels = found.table.labels
    return Source(
        name=section.name,
        split=split,
        origin=found.wish.listing.origin,
        classes=found.table.classes,
        labels=None if labels is None else torch.from_numpy(labels),
        mean=values.mean,
        std=values.std,
        fingerprint=values.fingerprint(found.fingerprint),
        sizes=None,
        reader=Meeting.made(found.table, found.sizes, values.form, values.scale),
        key=found.key,
        scale=values.scale,
        shards=_ends(found.table),
    )


def _annotated(source: Source, wish: Wish, note: str, annotations: Annotations) -> Source:
    """Adds what images show, and what is to be said of the split."""
    sizes = None if source.sizes is None else source.sizes.numpy()
    objects = annotations.of(source.split, wish, source.rows, sizes)
    notes = [wish.listing.note, note, source.note, annotations.notes.get(source.split, "")]
    return replace(
        source,
        objects=objects,
        skipped=annotations.unused(wish.listing.skipped) + source.skipped + told_of(objects),
        note="; ".join(note for note in notes if note),
    )


def _ends(table: Table, used: NDArray[np.int64] | None = None) -> tuple[int, ...]:
    ends = table.ends(used)
    return () if ends is None else tuple(ends.tolist())
