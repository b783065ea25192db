"""Which file or column says what the images of a data set show: found, or named."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimkit.data.cache import Wish
from mimkit.data.intake.beside import is_of_other_kind, words_of
from mimkit.data.intake.folder import FolderListing
from mimkit.data.intake.rows import RowListing
from mimkit.data.intake.table import Listing, Skipped, Table
from mimkit.data.intake.words import TEST_WORDS, TRAIN_WORDS
from mimkit.data.registered import Split
from mimkit.data.truth.coco import NotCocoError, looks_like_coco
from mimkit.data.truth.coco_file import CocoFile, open_coco
from mimkit.data.truth.column import objects_of_rows
from mimkit.data.truth.objects import CocoObjects, match, objects_in
from mimkit.errors import DataError

_WORDS: Final[Mapping[Split, Sequence[str]]] = {"train": TRAIN_WORDS, "test": TEST_WORDS}


@dataclass(frozen=True)
class Named:
    """A file, and which images of a split it names.

    Args:
        file: the COCO file.
        numbers: for every image as it lies on disk its number in the file, or -1.
    """

    file: CocoFile
    numbers: NDArray[np.int64]


class Annotations:
    """The files or columns of objects of a data set, one for each split.

    Attributes:
        notes: of a split, what people must know of objects that are there but not read.

    Args:
        asked: ``data.objects``, which names files here; columns are found with the images'.
        listings: both splits as found on disk.
        cache: folder of everything cached.

    Raises: DataError if a file that is named is not there, no COCO file, or not of these images.
    """

    def __init__(
        self,
        asked: str | None,
        listings: Mapping[Split, Listing],
        cache: Path,
    ) -> None:
        self.cache = cache
        self.folders = {
            split: listing
            for split, listing in listings.items()
            if isinstance(listing, FolderListing)
        }
        self.tables = {
            split: listing
            for split, listing in listings.items()
            if isinstance(listing, RowListing) and listing.columns.objects is not None
        }
        self.asked = asked
        self.notes: dict[Split, str] = {}
        self.named: dict[Split, Named] = {}
        if asked == "none":
            return
        if asked is not None and not self.tables:
            self._take([self._open(path, asked) for path in self._asked(asked)], asked)
            return
        for split, listing in self.folders.items():
            if found := self._find(split, listing):
                self.named[split] = found

    def of(
        self,
        split: Split,
        wish: Wish,
        rows: NDArray[np.int64] | None = None,
        sizes: NDArray[np.int32] | None = None,
    ) -> CocoObjects | None:
        """Gives the objects of a split, if they are known.

        Args:
            split: which.
            wish: which images it has.
            rows: which of these are used; None for all.
            sizes: their heights and widths, (n, 2); None if they are not known yet.

        Raises: DataError if the splits have not the same classes, or no size fits.
        """
        if split in self.tables:
            return self._of_column(split, wish, rows, sizes)
        found = self.named.get(split)
        if found is None:
            return None
        whole, wanted = self._tables[split], wish.table()
        numbers = np.full(len(whole.contents), -1, dtype=np.int64)
        numbers[whole.rows] = found.numbers
        used = wanted if rows is None else wanted.select(rows)
        alike = [each for each in self.named.values() if each.file.where == found.file.where]
        there = {number for each in alike for number in each.numbers.tolist()}
        lost = [name for number, name in enumerate(found.file.files) if number not in there]
        first = self.named.get("train", found)
        return objects_in(
            found.file,
            numbers[used.rows],
            sizes=sizes,
            classes=first.file.classes,
            where=used.where,
            lost=lost,
        )

    def unused(self, skipped: Sequence[Skipped]) -> tuple[Skipped, ...]:
        """Leaves the files of objects out of those that are not used, as they are no images."""
        files = {each.file.where for each in self.named.values()}
        return tuple(each for each in skipped if each.path not in files)

    def _of_column(
        self,
        split: Split,
        wish: Wish,
        rows: NDArray[np.int64] | None,
        sizes: NDArray[np.int32] | None,
    ) -> CocoObjects | None:
        listing = self.tables[split]
        used = wish.table() if rows is None else wish.table().select(rows)
        try:
            if sizes is None:
                raise NotCocoError("boxes need the sizes of images: data.survey=true")
            return objects_of_rows(listing, self.tables["train"].store, used, sizes, self.cache)
        except NotCocoError as error:
            told = f"the column '{listing.columns.objects}' is not read as objects: {error}"
            if self.asked is not None:
                raise DataError(
                    f"data.objects: {listing.origin}: {told}. For none: data.objects='none'."
                ) from error
            self.notes[split] = told
            return None

    @cached_property
    def _tables(self) -> dict[Split, Table]:
        return {split: listing.read(self.cache) for split, listing in self.folders.items()}

    @cached_property
    def _paths(self) -> dict[Split, list[str]]:
        return {
            split: [table.where(row) for row in range(len(table))]
            for split, table in self._tables.items()
        }

    def _find(self, split: Split, listing: FolderListing) -> Named | None:
        for name in _of_split(split, listing):
            path = Path(listing.root, name)
            if looks_like_coco(path):
                try:
                    file = open_coco(path, self.cache)
                except (NotCocoError, DataError):
                    continue
                named = self._named(file, split)
                if named is not None:
                    return named
        return None

    def _named(self, file: CocoFile, split: Split) -> Named | None:
        """Finds the images of a split that a file names, if it names any.

        Folders are left out where no image of either split lies in one that the file says.
        """
        numbers = match(file.files, self._paths[split])
        if (numbers < 0).all() and not any(
            (match(file.files, paths) >= 0).any() for paths in self._paths.values()
        ):
            numbers = match(file.files, self._paths[split], names_alone=True)
        return Named(file, numbers) if (numbers >= 0).any() else None

    def _asked(self, asked: str) -> list[Path]:
        if not self.folders:
            raise DataError(
                f"data.objects: must stand beside a folder of images, or be a column of a table of "
                f"them, but is '{asked}', and these data are neither."
            )
        folder = Path(next(iter(self.folders.values())).root)
        for root in (Path(), folder, folder.parent):
            found = sorted(glob.glob(str(root / Path(asked).expanduser())))
            if found:
                return [Path(path) for path in found]
        raise DataError(
            f"data.objects: must be a JSON of objects as COCO has them, or a pattern of two, but "
            f"'{asked}' is no file, neither here nor in {folder}. For none: data.objects='none'."
        )

    def _open(self, path: Path, asked: str) -> CocoFile:
        try:
            return open_coco(path, self.cache)
        except NotCocoError as error:
            raise DataError(
                f"data.objects: '{asked}' must be a JSON of objects as COCO has them, with lists "
                f"'images', 'annotations' and 'categories', but of {path}: {error}."
            ) from error

    def _take(self, files: Sequence[CocoFile], asked: str) -> None:
        for split in self.folders:
            named = [each for file in files if (each := self._named(file, split))]
            if named:
                self.named[split] = max(named, key=lambda each: int((each.numbers >= 0).sum()))
        if not self.named:
            first = f", such as {files[0].files[0]}" if files[0].files else ""
            raise DataError(
                f"data.objects: '{asked}' must name images of these data, but it names "
                f"{len(files[0].files):,} others{first}; an image here is "
                f"{next(iter(self._paths.values()))[0]}."
            )


def told_of(objects: CocoObjects | None) -> tuple[Skipped, ...]:
    """Lists what is not as it must be of objects, where there are any."""
    return () if objects is None else objects.skipped


def _of_split(split: Split, listing: FolderListing) -> list[str]:
    """Files that may be meant, the likeliest first; none that is called after the other split."""
    words = set(_WORDS[split])
    folders = {place.folder.name for place in listing.part.places}

    def rank(path: str) -> tuple[bool, bool, bool, str]:
        beside = path.rpartition("/")[0] in folders
        return is_of_other_kind(path), not words & words_of(path), not beside, path

    mine = (p for p in listing.annotations if words & words_of(p) or not words_of(p))
    return sorted(listing.annotations if listing.share else mine, key=rank)
