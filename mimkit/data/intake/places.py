"""Folders as places in a split, and how they are told to people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mimkit.data.intake.table import Skipped
from mimkit.data.intake.walk import Folder

Meaning = Literal["auto", "splits", "classes", "unlabelled"]
KEY: Final = "data.layout"
_SHOWN: Final = 4


@dataclass(frozen=True)
class Place:
    """A folder of a split.

    Args:
        folder: what lies in it.
        below: its path without the name of the split, by which its images are ordered.
    """

    folder: Folder
    below: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many images lie directly in it."""
        return len(self.folder.images)


@dataclass(frozen=True)
class Part:
    """The folders of one split.

    Args:
        name: of the split on disk; "" where there is none.
        places: the folders.
        labels: the class of each, -1 for none; None if none has one.
    """

    name: str
    places: tuple[Place, ...]
    labels: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """How many images there are."""
        return sum(place.count for place in self.places)


class Findings:
    """What is decided of a folder while it is looked through.

    Args:
        root: the folder.
        folders: all that hold images.
    """

    def __init__(self, root: str, folders: Sequence[Folder]) -> None:
        self.root = root
        self.folders = folders
        self.unused: list[Skipped] = []
        self.notes: list[str] = []

    def leave(self, left: Sequence[Folder], reason: str) -> list[str]:
        """Lists folders that are not used, with the number of their images.

        Returns: their names: the outermost below which nothing else lies; ``x/*`` for images that
            lie directly in a folder with others.
        """
        gone = {folder.name for folder in left}
        kept = {
            folder.parts[:depth]
            for folder in self.folders
            if folder.name not in gone
            for depth in range(len(folder.parts) + 1)
        }
        counts = Counter[str]()
        for folder in left:
            above = (folder.parts[:depth] for depth in range(len(folder.parts) + 1))
            top = next((path for path in above if path not in kept), None)
            counts[folder.path("*") if top is None else "/".join(top)] += len(folder.images)
        for name, count in counts.items():
            path = f"{self.root}/{name}".rstrip("/")
            self.unused.append(Skipped(path, f"{count:,} images not used: {reason}"))
        return list(counts)


def whole(folders: Sequence[Folder]) -> Part:
    """All folders as one part."""
    skip = shared([folder.parts for folder in folders])
    return Part("", tuple(Place(folder, folder.parts[skip:]) for folder in folders))


def shared(paths: Sequence[tuple[str, ...]]) -> int:
    """Through how many folders all paths lead."""
    depth = 0
    while all(len(path) > depth for path in paths) and len({path[depth] for path in paths}) == 1:
        depth += 1
    return depth


def some(names: Sequence[str]) -> str:
    """The first few names."""
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
