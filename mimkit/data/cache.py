"""What was found in an image set, kept on disk so that it is looked at only once."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from mimkit.data.intake.kept import mapped, write_array
from mimkit.data.intake.table import Listing, Skipped, Table
from mimkit.data.looking.changes import write_names
from mimkit.data.looking.meeting import glance, glimpse
from mimkit.data.looking.stored import Stored
from mimkit.data.looking.survey import Depth, Survey, forget, survey
from mimkit.data.pixels.form import Form
from mimkit.errors import DataError
from mimkit.files import write_atomic, write_text

_T = TypeVar("_T")
_FORMAT: Final = 2
"""Raised when what is cached changes, so that old files are no longer found."""


def folder() -> Path:
    """Returns ``$MIMKIT_CACHE``, by default ``~/.cache/mimkit``. It may be removed at any time."""
    return Path(os.environ.get("MIMKIT_CACHE") or Path.home() / ".cache" / "mimkit")


def split_folder(key: str) -> Path:
    """Returns the folder of the cache for one state of one split."""
    return folder() / "splits" / key


@dataclass(frozen=True)
class Wish:
    """Which images of a split are wanted.

    Args:
        listing: the split as found on disk.
        limit: how many images of it, or None for all.
        limit_key: of the recipe, which gives the limit.
        form: what they are made into.
    """

    listing: Listing
    limit: int | None
    limit_key: str
    form: Form

    @property
    def key(self) -> str:
        """Changes with the files, their sizes and times of change, and what is wanted of them."""
        words = f"{_FORMAT}\0{self.limit}\0{self.listing.stamp}{self.form.key}"
        return hashlib.sha256(words.encode()).hexdigest()[:32]

    def table(self) -> Table:
        """Reads the undecoded images."""
        return self.listing.read(folder()).limited(self.limit, self.limit_key)


@dataclass(frozen=True)
class Surveyed:
    """A split whose images have all been looked at, now or in an earlier run.

    Args:
        wish: which images.
        key: its name in the cache.
        survey: what was found.
    """

    wish: Wish
    key: str
    survey: Survey

    @property
    def stored(self) -> Stored | None:
        """What values images store; None if nobody needs to know."""
        return self.survey.stored

    def pixels(self) -> Tensor | None:
        """Maps the decoded pixels of small images, without reading them.

        Memory is copied where it is written to, so the file never changes.

        Shape: (N, C, H, W) uint8, or float32 as they are stored.
        """
        if self.survey.image_size is None:
            return None
        shape = (len(self.survey.rows), self.wish.form.channels, *self.survey.image_size)
        file, kind = _pixels(split_folder(self.key)), _TYPES[self.survey.deep]
        return torch.from_numpy(np.memmap(file, kind, "c", shape=shape))


_TYPES: Final = {False: np.uint8, True: np.float32}


def surveyed(wish: Wish) -> Surveyed:
    """Looks at every image of a split, unless the cache tells what that would find.

    A cached file that is damaged is made again. Processes that do this at the same time write the
    same.

    Raises: DataError if no image can be used, or the cache cannot be written.
    """
    key = wish.key
    place = split_folder(key)
    return Surveyed(
        wish, key, _cached(place, lambda at: _load(at, wish.form), lambda: _make(wish, place))
    )


@dataclass(frozen=True)
class Met:
    """A split whose images are looked at one by one, when each is first met.

    Args:
        wish: which images.
        table: its images.
        key: its name in the cache.
        fingerprint: of names, labels and a sample of the files.
        stored: what values they store, by a sample; None if nobody needs to know.
        sizes: the file for what is found when they are met.
    """

    wish: Wish
    table: Table
    key: str
    fingerprint: str
    stored: Stored | None
    sizes: Path


def met(wish: Wish) -> Met:
    """Opens a split without looking at its images.

    Raises: DataError if the cache cannot be written.
    """
    key = f"{wish.key}-met"
    table, place = wish.table(), split_folder(key)

    def load(place: Path) -> str | None:
        file = place / "fingerprint"
        return file.read_text("utf-8") if file.is_file() else None

    def make() -> str:
        write_names(place, table, range(len(table)), wish.listing.origin)
        found = glimpse(table)
        write_text(place / "fingerprint", found)
        return found

    def load_stored(place: Path) -> tuple[Stored | None] | None:
        file = place / "stored.json"
        return (_stored(json.loads(file.read_text("utf-8"))),) if file.is_file() else None

    def make_stored() -> tuple[Stored | None]:
        found = glance(table, wish.form)
        write_text(place / "stored.json", json.dumps(asdict(found) if found else None))
        return (found,)

    fingerprint = _cached(place, load, make)
    (stored,) = _cached(place, load_stored, make_stored)
    return Met(wish, table, key, fingerprint, stored, place / "sizes.bin")


def _cached(place: Path, load: Callable[[Path], _T | None], make: Callable[[], _T]) -> _T:
    found = load(place)
    if found is not None:
        return found
    try:
        place.mkdir(parents=True, exist_ok=True)
        return make()
    except OSError as error:
        raise DataError(
            f"{place}: what is found in the data must be cached here, but: {error}. Name "
            "another folder with MIMKIT_CACHE."
        ) from error


def _make(wish: Wish, place: Path) -> Survey:
    table, chunks = wish.table(), place / "chunks"
    made: list[Survey] = []
    write_atomic(
        place / "digests.bin",
        lambda digests: write_atomic(
            _pixels(place),
            lambda pixels: made.append(survey(table, wish.form, chunks, pixels, digests)),
        ),
    )
    write_names(place, table, made[0].rows, wish.listing.origin)
    _save(place, made[0])
    forget(chunks)
    return _load(place, wish.form) or made[0]  # mapped, so that what was made leaves memory


def _pixels(place: Path) -> Path:
    return place / "pixels.bin"


def _save(place: Path, found: Survey) -> None:
    words = {
        "classes": found.classes,
        "skipped": [asdict(item) for item in found.skipped],
        "fingerprint": found.fingerprint,
        "image_size": found.image_size,
        "depth": asdict(found.depth) if found.depth else None,
        "deep": found.deep,
        "stored": asdict(found.stored) if found.stored else None,
        "labelled": found.labels is not None,
    }
    write_array(place / "rows.npy", found.rows)
    write_array(place / "sizes.npy", found.sizes)
    if found.labels is not None:
        write_array(place / "labels.npy", found.labels)
    # Written last: where it is, all else is complete.
    write_text(place / "survey.json", json.dumps(words))


def _stored(words: dict[str, Any] | None) -> Stored | None:
    if words is None:
        return None
    return Stored(**{**words, "mean": tuple(words["mean"]), "std": tuple(words["std"])})


def _load(place: Path, form: Form) -> Survey | None:
    """Maps what was found: memory does not grow with the images, and processes share it."""
    try:
        words = json.loads((place / "survey.json").read_text(encoding="utf-8"))
        if words["depth"] and "deep" not in words:
            return None  # looked at before more than 8 bits were kept
        size = tuple(words["image_size"]) if words["image_size"] else None
        found = Survey(
            rows=mapped(place / "rows.npy"),
            sizes=mapped(place / "sizes.npy"),
            labels=mapped(place / "labels.npy") if words["labelled"] else None,
            classes=tuple(words["classes"]),
            skipped=tuple(Skipped(**item) for item in words["skipped"]),
            fingerprint=words["fingerprint"],
            image_size=(size[0], size[1]) if size else None,
            depth=Depth(**words["depth"]) if words["depth"] else None,
            deep=words.get("deep", False),
            stored=_stored(words.get("stored")),
        )
        value = np.dtype(_TYPES[found.deep]).itemsize * form.channels
        expected = len(found.rows) * value * size[0] * size[1] if size else 0
        whole = _pixels(place).stat().st_size == expected and len(found.sizes) == len(found.rows)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None  # not there yet, or damaged
    return found if whole else None
