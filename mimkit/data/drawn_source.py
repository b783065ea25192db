"""Opening an embedded data set: its pictures are drawn, small ones at once."""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import torch

from mimkit.data.drawing import split as numbers_of
from mimkit.data.looking.stored import Stored, tallies, tally
from mimkit.data.looking.survey import RESIDENT_SIZE
from mimkit.data.pixels.arrays import rasterised
from mimkit.data.pixels.form import RGB, Form
from mimkit.data.pixels.readers import Pictures
from mimkit.data.registered import DataSet, Split
from mimkit.data.source import Source
from mimkit.data.truth.drawn import DrawnMasks
from mimkit.data.truth.drawn_objects import DrawnObjects
from mimkit.errors import DataError
from mimkit.recipe.sections import DataSection

DRAWN: Final = {"train": 10_000, "test": 2_000}
"""How many pictures of the embedded set there are where the recipe does not say."""
_MEASURED: Final = 1_000
"""So many pictures of the training split tell mean and deviation of their grey."""


def draw_source(section: DataSection, dataset: DataSet, split: Split, limit: int | None) -> Source:
    """Opens a split of a set that is drawn.

    Args:
        section: of the recipe.
        dataset: what draws it.
        split: which.
        limit: how many pictures; None for the usual number.

    Raises: DataError if the pictures would be too small, or cannot have so many channels.
    """
    drawing = dataset.drawing
    assert drawing is not None
    image_size = max(section.image_size)
    if image_size < drawing.min_image_size:
        raise DataError(
            f"data.image_size: must be at least {drawing.min_image_size} for '{dataset.name}', but "
            f"is {image_size}."
        )
    if section.channels not in (1, RGB) or isinstance(section.range, tuple):
        key, expected, given = "channels", "3, or 1 for grey,", str(section.channels)
        if section.channels in (1, RGB):
            key, expected, given = "range", "left out", str(list(section.range))
        raise DataError(
            f"data.{key}: must be {expected} for '{dataset.name}', whose pictures are drawn in "
            f"8-bit RGB, but is {given}."
        )
    numbers = numbers_of(split, DRAWN[split] if limit is None else limit)
    resident = image_size <= RESIDENT_SIZE
    # Labels do not depend on the size, so large pictures are drawn small to learn them.
    drawn_size = image_size if resident else drawing.min_image_size
    images, labels = drawing.draw(numbers, image_size=drawn_size)
    fingerprint = hashlib.sha256(f"{image_size}\0".encode() + images.tobytes() + labels.tobytes())
    form, mean, std, note = Form(section.channels), dataset.mean, dataset.std, ""
    if section.channels == 1:
        fingerprint.update(b"grey")
        mean, std, note = _grey_statistics(dataset, drawn_size)
        greys = [rasterised(image.transpose(1, 2, 0), form) for image in images]
        images = np.stack([np.asarray(grey).transpose(2, 0, 1) for grey in greys])
    return Source(
        name=section.name,
        split=split,
        origin="drawn",
        classes=drawing.classes,
        labels=torch.from_numpy(labels),
        mean=mean,
        std=std,
        fingerprint=fingerprint.hexdigest(),
        sizes=torch.full((len(numbers), 2), image_size, dtype=torch.int32),
        note=note,
        pixels=torch.from_numpy(images) if resident else None,
        reader=None if resident else Pictures(drawing, numbers, image_size, section.channels),
        masks=DrawnMasks(drawing, numbers, image_size) if drawing.annotate else None,
        objects=DrawnObjects(drawing, numbers, image_size) if drawing.annotate else None,
    )


def _grey_statistics(
    dataset: DataSet, size: int
) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    assert dataset.drawing is not None
    form = Form(1)
    images, _ = dataset.drawing.draw(numbers_of("train", _MEASURED), image_size=size)
    rasters = [rasterised(image.transpose(1, 2, 0), form) for image in images]
    stored = Stored.of(False, tallies([tally(raster, form) for raster in rasters], form))
    assert stored is not None
    return *stored.statistics(form), stored.note(form)
