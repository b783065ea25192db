"""One walk over a folder: every image below it, what else lies there, and a digest of it."""

import hashlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from mimkit.errors import DataError

EXTENSIONS: Final = frozenset(
    f".{kind}"
    for kind in (
        *("avif", "bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "pbm", "pgm"),
        *("png", "pnm", "ppm", "tif", "tiff", "webp"),
    )
)
ARRAYS: Final = frozenset((".npy",))
"""Images only where there are no others: beside image files lie masks and features of this kind."""
_IGNORED: Final = frozenset(("__MACOSX", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN"))
"""What systems leave behind; names that begin with a dot are passed over as well."""


@dataclass(frozen=True)
class Folder:
    """What lies directly in a folder.

    Args:
        name: its path below the root, with slashes; "" for the root.
        images: names of files that are images by their extension, sorted.
        others: names of all other files, sorted.
        unnameable: names of images whose paths are not UTF-8, sorted.
        digest: changes with name, size or time of change of an image.
    """

    name: str
    images: tuple[str, ...]
    others: tuple[str, ...]
    unnameable: tuple[str, ...]
    digest: bytes

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the folders that lead to it."""
        return tuple(self.name.split("/")) if self.name else ()

    def path(self, file: str) -> str:
        """The path of a file below the root."""
        return f"{self.name}/{file}" if self.name else file


@dataclass(frozen=True)
class Tree:
    """A folder with all that lies below it.

    Args:
        root: its absolute path.
        folders: those that hold files, itself among them, each before what lies below it.
    """

    root: str
    folders: tuple[Folder, ...]

    @property
    def count(self) -> int:
        """How many images there are."""
        return sum(len(folder.images) for folder in self.folders)

    def others(self) -> Iterator[str]:
        """Paths below the root of files that are no images."""
        for folder in self.folders:
            yield from (folder.path(name) for name in folder.others)


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is passed over without a word."""
    return name.startswith(".") or name in _IGNORED


def walk(root: str) -> Tree:
    """Lists a folder; links are followed, each folder is entered once.

    Raises: DataError if a folder cannot be listed.
    """
    root = os.path.abspath(root)
    tree = _walk(root, EXTENSIONS)
    if not tree.count and any(os.path.splitext(name)[1] in ARRAYS for name in tree.others()):
        return _walk(root, ARRAYS)
    return tree


def _walk(root: str, kinds: Collection[str]) -> Tree:
    folders: list[Folder] = []
    waiting, entered = [""], set()
    while waiting:
        name = waiting.pop()
        place = f"{root}/{name}" if name else root
        try:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            folder, below = _look(place, name, kinds)
        except OSError as error:
            raise DataError(f"{place}: cannot be listed: {error.strerror}.") from error
        if folder.images or folder.others or folder.unnameable:
            folders.append(folder)
        waiting += [f"{name}/{each}" if name else each for each in sorted(below, reverse=True)]
    return Tree(root, tuple(folders))


def _look(place: str, name: str, kinds: Collection[str]) -> tuple[Folder, list[str]]:
    # A million files pass through here: nothing is called for each that can be written out.
    names: list[str] = []
    stamps: list[str] = []
    others: list[str] = []
    unnameable: list[str] = []
    below: list[str] = []
    utf8 = is_utf8(name)
    with os.scandir(place) as entries:
        for entry in entries:
            file = entry.name
            if file[0] == "." or file in _IGNORED:
                continue
            if entry.is_dir():
                below.append(file)
            elif file[file.rfind(".") :].lower() not in kinds:
                others.append(file)
            elif not utf8 or not (file.isascii() or is_utf8(file)):
                unnameable.append(file)
            else:
                names.append(file)
                try:
                    status = entry.stat()
                    stamps.append(f"{file}\0{status.st_size}\0{status.st_mtime_ns}")
                except OSError:  # a link to nowhere: the survey lists it
                    stamps.append(f"{file}\0-\0-")
    names.sort()
    stamps.sort()
    digest = hashlib.blake2b("\0".join(stamps).encode()).digest()
    files = tuple(names), tuple(sorted(others)), tuple(sorted(unnameable))
    return Folder(name, *files, digest), below


def is_utf8(name: str) -> bool:
    """Whether a path is UTF-8 on disk, so that it can be printed and written down."""
    return name == name.encode(errors="replace").decode()
