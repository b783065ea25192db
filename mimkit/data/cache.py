"""What was found in an image set, kept on disk so that it is looked at only once."""

import hashlib
import json
import os
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from mimkit.data.intake.table import Listing, Skipped, Table
from mimkit.data.survey import Survey, survey
from mimkit.errors import DataError
from mimkit.files import write_atomic

_FORMAT: Final = 1
"""Raised when what is cached changes, so that old files are no longer found."""


def folder() -> Path:
    """Returns ``$MIMKIT_CACHE``, by default ``~/.cache/mimkit``. It may be removed at any time."""
    return Path(os.environ.get("MIMKIT_CACHE") or Path.home() / ".cache" / "mimkit")


@dataclass(frozen=True)
class Surveyed:
    """A split whose images have all been looked at, now or in an earlier run.

    Args:
        listing: its files.
        limit: how many images of it, or None for all.
        limit_key: of the recipe, which gives the limit.
        place: its folder in the cache.
        survey: what was found.
    """

    listing: Listing
    limit: int | None
    limit_key: str
    place: Path
    survey: Survey

    def table(self) -> Table:
        """Reads the undecoded images."""
        return self.listing.read(folder()).limited(self.limit, self.limit_key)

    def pixels(self) -> Tensor | None:
        """Maps the decoded pixels of small images, (N, 3, H, W) uint8, without reading them.

        Memory is copied where it is written to, so the file never changes.
        """
        if self.survey.image_size is None:
            return None
        shape = (len(self.survey.rows), 3, *self.survey.image_size)
        return torch.from_numpy(np.memmap(_pixels(self.place), np.uint8, "c", shape=shape))


def surveyed(listing: Listing, limit: int | None, limit_key: str) -> Surveyed:
    """Looks at every image of a split, unless the cache tells what that would find.

    The cache is keyed by paths, sizes and times of change of the files. A cached file that is
    damaged is made again. Processes that do this at the same time write the same.

    Raises: DataError if no image can be used, or the cache cannot be written.
    """
    place = folder() / _key(listing, limit)
    found = _load(place)
    if found is None:
        try:
            found = _make(listing.read(folder()).limited(limit, limit_key), place)
        except OSError as error:
            raise DataError(
                f"{place}: what is found in the data must be cached here, but: {error}. Name "
                "another folder with MIMKIT_CACHE."
            ) from error
    return Surveyed(listing, limit, limit_key, place, found)


def _key(listing: Listing, limit: int | None) -> str:
    return hashlib.sha256(f"{_FORMAT}\0{limit}\0{listing.stamp}".encode()).hexdigest()[:32]


def _make(table: Table, place: Path) -> Survey:
    made: list[Survey] = []
    write_atomic(_pixels(place), lambda path: made.append(survey(table, path)))
    # Written last: where it is, the pixels are complete.
    write_atomic(place / "survey.npz", lambda path: _save(path, made[0]))
    return made[0]


def _pixels(place: Path) -> Path:
    return place / "pixels.bin"


def _save(path: Path, found: Survey) -> None:
    words = {
        "classes": found.classes,
        "skipped": [asdict(item) for item in found.skipped],
        "fingerprint": found.fingerprint,
        "image_size": found.image_size,
    }
    with path.open("wb") as file:
        np.savez(
            file,
            words=np.array(json.dumps(words)),
            rows=found.rows,
            sizes=found.sizes,
            labels=np.empty(0, np.int64) if found.labels is None else found.labels,
        )


def _load(place: Path) -> Survey | None:
    try:
        with (place / "survey.npz").open("rb") as opened, np.load(opened) as file:
            words = json.loads(str(file["words"]))
            size = tuple(words["image_size"]) if words["image_size"] else None
            found = Survey(
                rows=file["rows"],
                sizes=file["sizes"],
                labels=file["labels"] if file["labels"].size else None,
                classes=tuple(words["classes"]),
                skipped=tuple(Skipped(**item) for item in words["skipped"]),
                fingerprint=words["fingerprint"],
                image_size=(size[0], size[1]) if size else None,
            )
        expected = len(found.rows) * 3 * size[0] * size[1] if size else 0
        whole = _pixels(place).stat().st_size == expected
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None  # not there yet, or damaged
    return found if whole else None
