"""What is said of objects, in the cache: arrays that are mapped, so that it is parsed once."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimkit.data.intake.kept import write_array
from mimkit.data.intake.table import Skipped
from mimkit.data.truth.coco import NotCocoError, Parsed, parse, parse_tree
from mimkit.data.truth.records import Instances, Rle
from mimkit.files import reading, sha256, write_text

_FORMAT: Final = 1
"""Raised when what is kept changes, so that old files are no longer found."""


@dataclass(frozen=True)
class CocoFile:
    """What a JSON or a column of objects says; pickled, it is small.

    Args:
        where: the path of the JSON, or that of the table and the column, in words.
        name: of the JSON, or the column, in words.
        place: the folder of the cache that holds it as arrays.
    """

    where: str
    name: str
    place: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """The names that labels number."""
        return tuple(self._words["classes"])

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its images."""
        return tuple(self._words["files"])

    @property
    def has_regions(self) -> bool:
        """Whether every object has an outline."""
        return bool(self._words["has_regions"])

    @property
    def note(self) -> str:
        """What people must know of the outlines, or nothing."""
        return str(self._words["note"])

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What is not as it must be."""
        return tuple(Skipped(**each) for each in self._words["skipped"])

    @property
    def fingerprint(self) -> str:
        """Digest of what it says."""
        return str(self._words["fingerprint"])

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Heights and widths of its images, (n, 2)."""
        return self._array("sizes")

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many objects each image has, (n,)."""
        return np.diff(self._array("starts"))

    def instances(self, image: int) -> Instances:
        """Gives the objects of an image."""
        start, stop = self._array("starts")[image : image + 2].tolist()
        regions = None
        if self.has_regions:
            height, width = self.sizes[image].tolist()
            ends = [0 if start == 0 else int(self._array("ends")[start - 1])]
            ends += self._array("ends")[start:stop].tolist()
            runs = self._array("runs")[ends[0] : ends[-1]].tobytes()
            regions = tuple(
                Rle(size=[height, width], counts=runs[first - ends[0] : last - ends[0]])
                for first, last in itertools.pairwise(ends)
            )
        boxes, labels, crowd, areas = (
            np.array(self._array(name)[start:stop])
            for name in ("boxes", "labels", "crowd", "areas")
        )
        return Instances(boxes, labels, crowd, areas, regions)

    def __getstate__(self) -> dict[str, Any]:
        return {"where": self.where, "name": self.name, "place": self.place}  # not the arrays

    @cached_property
    def _words(self) -> Mapping[str, Any]:
        words: dict[str, Any] = json.loads((self.place / "words.json").read_text(encoding="utf-8"))
        return words

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    def _array(self, name: str) -> NDArray[Any]:
        if name not in self._arrays:
            self._arrays[name] = np.load(self.place / f"{name}.npy", mmap_mode="r")
        return self._arrays[name]


def open_coco(path: Path, cache: Path) -> CocoFile:
    """Opens a JSON of objects, which is read the first time and when it has changed.

    Raises: NotCocoError if it is none; DataError if it cannot be read, or the cache not written.
    """
    with reading(path):
        status = path.stat()
        words = f"{_FORMAT}\0{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
        place = cache / "objects" / hashlib.sha256(words.encode()).hexdigest()[:32]
        known = _known(place)
        if known is None:
            with _refusing(place):
                parsed = parse(path)
            _keep(place, parsed, sha256(path))
        elif "why_not" in known:
            raise NotCocoError(known["why_not"])
    return CocoFile(str(path), path.name, place)


def open_tree(file: CocoFile, tree: Callable[[], Any]) -> CocoFile:
    """Opens what stands in no file of its own; it is made and read where the cache has it not yet.

    Args:
        file: where it comes from, and its place in the cache, which changes with it.
        tree: makes the tree that a JSON of it would hold.

    Raises: NotCocoError if that cannot be; OSError if the cache cannot be written.
    """
    known = _known(file.place)
    if known is None:
        with _refusing(file.place):
            parsed = parse_tree(tree(), file.where)
        digest = hashlib.sha256(repr(parsed.classes).encode())
        for array in _arrays(parsed).values():
            digest.update(hashlib.sha256(array.tobytes()).digest())
        _keep(file.place, parsed, digest.hexdigest())
    elif "why_not" in known:
        raise NotCocoError(known["why_not"])
    return file


@contextmanager
def _refusing(place: Path) -> Iterator[None]:
    """Keeps why there are no objects, so that nobody looks again."""
    try:
        yield
    except NotCocoError as error:
        write_text(place / "words.json", json.dumps({"why_not": str(error)}))
        raise


def _known(place: Path) -> Mapping[str, Any] | None:
    try:
        words = json.loads((place / "words.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return words if isinstance(words, dict) else None


def _arrays(parsed: Parsed) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        "sizes": parsed.sizes,
        "starts": parsed.starts,
        "boxes": parsed.boxes,
        "labels": parsed.labels,
        "crowd": parsed.crowd,
        "areas": parsed.areas,
    }
    if parsed.regions is not None:
        arrays["ends"] = np.cumsum([len(runs) for runs in parsed.regions], dtype=np.int64)
        arrays["runs"] = np.frombuffer(b"".join(parsed.regions), dtype=np.uint8)
    return arrays


def _keep(place: Path, parsed: Parsed, fingerprint: str) -> None:
    for name, array in _arrays(parsed).items():
        write_array(place / f"{name}.npy", array)
    words = {
        "classes": parsed.classes,
        "files": parsed.files,
        "has_regions": parsed.regions is not None,
        "note": parsed.note,
        "skipped": [asdict(one) for one in parsed.skipped],
        "fingerprint": fingerprint,
    }
    # Written last: where it is, the rest is complete.
    write_text(place / "words.json", json.dumps(words))
