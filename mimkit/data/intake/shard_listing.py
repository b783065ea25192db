"""Tar shards as listings: which belong to a split, and what is known of their samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimkit.data.intake.columns import Asked
from mimkit.data.intake.folder import HELD_OUT
from mimkit.data.intake.groups import rows_of_share, split_groups
from mimkit.data.intake.kept import keep, kept, kept_rows
from mimkit.data.intake.labels import Codes, NoClassesError, codes_of, unite
from mimkit.data.intake.shard_names import gaps, grouped_shards
from mimkit.data.intake.shard_sets import Found, Summary, copies_in
from mimkit.data.intake.shards import ShardMasks, Shards, write_shards
from mimkit.data.intake.table import Skipped, Table
from mimkit.data.intake.tars import LABEL_FIELDS
from mimkit.data.intake.urls import ShardFile
from mimkit.data.registered import Split
from mimkit.errors import DataError, nearest

_FORMAT: Final = 2
"""Rises when what is kept changes, so that old files are no longer found."""
CLASSES: Final = "classes.txt"
"""Beside shards: the name of each class that labels number, one a line."""
MASK_CLASSES: Final = "mask-classes.txt"
"""Beside shards: what the ids of masks stand for, one a line."""


@dataclass(frozen=True)
class ShardListing:
    """One split of images in tar shards.

    Args:
        origin: where they lie, for people.
        found: the shards.
        label: the field of labels, or None.
        names: what its numbers stand for, if that is known.
        other: the shards of the other split, with which the classes are shared.
        share: which share of the images to take, where no shards are those of a test part.
        skipped: what is not used.
        note: how the split came about.
        masks: where the masks are, in words; nothing if there are none.
        mask_names: what the ids of masks stand for; None if that is not known.
    """

    origin: str
    found: Found
    label: str | None = None
    names: tuple[str, ...] | None = None
    other: Found | None = None
    share: Split | None = None
    skipped: tuple[Skipped, ...] = ()
    note: str = ""
    masks: str = ""
    mask_names: tuple[str, ...] | None = None

    @cached_property
    def stamp(self) -> str:
        """Digest of the shards, of the field of labels and of the share."""
        words = [_FORMAT, self.label, self.names, self.share, self.found.digest]
        words.append(self.other.digest if self.other else None)
        return hashlib.sha256(repr(words).encode()).hexdigest()[:32]

    def read(self, cache: Path) -> Table:
        """Maps where images lie, and numbers the labels."""
        place = cache / "tables" / self.stamp
        shards = Shards(self.found.files, place, copies_in(cache))
        found = kept(place)
        if found is None:
            write_shards(self.found.indices(cache), place)
        rows = kept_rows(place, lambda: rows_of_share(len(shards), self.share))
        if found is None:
            labels, classes = self._labels(cache)
            keep(place, None if labels is None else labels[rows], classes)
            found = kept(place)
            assert found is not None
        masks = ShardMasks(shards, self.found.digest) if self.masks else None
        return Table(shards, rows, *found, masks, shards.ends)

    def _labels(self, cache: Path) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
        if self.label is None:
            return None, ()
        parts = [self.found] if self.other is None else [self.found, self.other]
        return unite([self._codes(part, cache) for part in parts])[0]

    def _codes(self, found: Found, cache: Path) -> Codes:
        import pyarrow as pa  # noqa: PLC0415 -- slow to import

        assert self.label is not None
        values = [
            pa.array(index.labels.get(self.label, [None] * len(index)), pa.string())
            for index in found.indices(cache)
        ]
        column = pa.chunked_array(values, pa.string())
        try:
            numbers = column.cast(pa.int64())
            if numbers.cast(pa.string()).equals(column):  # "007" stays what it is
                column = numbers
            return codes_of(column, self.names if column is numbers else None)
        except pa.ArrowInvalid:  # words
            return codes_of(column)
        except NoClassesError as error:
            raise DataError(
                f"{self.origin}/{CLASSES}: must name every class that the field '{self.label}' "
                f"numbers, from 0 on, but {error}."
            ) from error


def list_shards(
    files: Sequence[ShardFile],
    origin: str,
    asked: Asked,
    cache: Path,
    *,
    missing: Sequence[Skipped] = (),
    names: tuple[str, ...] | None = None,
    mask_names: tuple[str, ...] | None = None,
) -> dict[Split, ShardListing]:
    """Lists both splits of images in tar shards.

    Args:
        files: the shards.
        origin: where they lie, for people.
        asked: what is known of the fields.
        cache: folder of everything cached.
        missing: shards that were named and are not there.
        names: of the classes, if they are known.
        mask_names: what the ids of masks stand for, if that is known.

    Raises: DataError if there is no image, or a field that was asked for is not there.
    """
    groups = grouped_shards(files, origin)
    trains, tests, notes, skipped = split_groups(
        {name: [file.url for file in of] for name, of in groups.items()}
    )
    train = Found(tuple(file for name in trains for file in groups[name]), asked)
    summary = train.summary(cache)
    if not sum(summary.counts):
        raise DataError(_empty(origin, train, summary))
    label = _label(origin, summary, asked)
    if label is None and asked.label is None:
        known = ", ".join(summary.known[:8])
        notes.append(
            f"no labels: samples hold {known}, none of which is called cls, label or so; if one "
            "holds them: data.label_column"
        )
    elif label not in (None, "cls"):
        notes.append(f"labels are those of '{label}' (data.label_column)")
    other, test_summary = None, summary
    if tests:
        candidates = {name: Found(groups[name], asked) for name in tests}
        sums = {name: found.summary(cache) for name, found in candidates.items()}
        chosen = max(tests, key=lambda name: bool(label and sums[name].labels.get(label)))
        if len(tests) > 1:
            left = [name for name in tests if name != chosen]
            notes.append(f"the test split is {chosen}; not used: {', '.join(left)}")
            skipped += [Skipped(f.url, f"not used: {n}") for n in left for f in groups[n]]
        other, test_summary = candidates[chosen], sums[chosen]
    held = "" if other else f"no test part: one image of {HELD_OUT}, chosen by number, is held out"
    mask = "files beside the images, in shards"
    listing = ShardListing(
        origin,
        train,
        label,
        names,
        other,
        None if other else "train",
        tuple(dict.fromkeys((*skipped, *missing, *gaps(files), *_problems(train, summary)))),
        "; ".join(each for each in (held, *notes) if each),
        mask if summary.masks else "",
        mask_names,
    )
    test = replace(listing, share=None if other else "test", skipped=(), note=held)
    if other is not None:
        masks = mask if test_summary.masks else ""
        told = tuple(_problems(other, test_summary))
        test = replace(test, found=other, other=train, masks=masks, skipped=told)
        if not sum(test_summary.counts):
            raise DataError(_empty(origin, other, test_summary))
    return {"train": listing, "test": test}


def _problems(found: Found, summary: Summary) -> Iterable[Skipped]:
    for number, why in summary.problems.items():
        count = summary.counts[number]
        left = f"; its {count:,} images before that are used" if count else ""
        yield Skipped(found.files[number].url, f"{why}{left}")


def _label(origin: str, summary: Summary, asked: Asked) -> str | None:
    """The field of labels: the one asked for, or the best of those that hold some."""
    if asked.label == "none":
        return None
    if asked.label is not None and asked.label not in summary.labels:
        raise DataError(
            f"{origin}: data.label_column = '{asked.label}' must be a field of samples, or a key "
            f"of their JSON, but there is none.{nearest(asked.label, summary.known)}"
        )
    if asked.label is not None:
        return asked.label
    held = [name for name, count in summary.labels.items() if count]
    return min(held, key=lambda name: LABEL_FIELDS.index(name.lower()), default=None)


def _empty(origin: str, found: Found, summary: Summary) -> str:
    asked, first = found.asked, found.files[0].url
    if 0 in summary.problems:
        return f"{origin}: must hold tar shards of images, but {first} {summary.problems[0]}."
    what = "images" if asked.image is None else f"images called '{asked.image}'"
    fields = ", ".join(summary.known[:8]) or "no samples"
    close = nearest(asked.image, summary.known) if asked.image else ""
    return (
        f"{origin}: its {len(found.files):,} tar shards must hold {what} (KEY.jpg, with KEY.cls or "
        f"KEY.json for its label), but they hold {fields}.{close}"
    )
