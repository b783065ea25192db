"""Image files as paths, a million of them in one memory-mapped file."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimkit.data.intake.kept import write_array
from mimkit.files import write_bytes


@dataclass(frozen=True)
class Paths:
    """Image files below one folder; their names lie in a file, so that processes share them.

    Args:
        root: the folder.
        place: the folder of the cache that holds the names.
    """

    root: str
    place: Path

    def __len__(self) -> int:
        return len(self._ends)

    def where(self, number: int) -> str:
        """The path."""
        start = int(self._ends[number - 1]) if number else 0
        return f"{self.root}/{self._names[start : int(self._ends[number])].tobytes().decode()}"

    def content(self, number: int) -> bytes:
        """Reads the file."""
        with open(self.where(number), "rb") as file:
            return file.read()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "place": self.place}  # not the names

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        ends: NDArray[np.int64] = np.load(self.place / "ends.npy", mmap_mode="r")
        return ends

    @cached_property
    def _names(self) -> NDArray[np.uint8]:
        return np.memmap(self.place / "names.bin", np.uint8, "r")


def write_paths(root: str, names: Sequence[str], place: Path) -> Paths:
    """Writes the names of files below ``root`` to the cache."""
    encoded = [name.encode() for name in names]
    ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    write_bytes(place / "names.bin", b"".join(encoded))
    write_array(place / "ends.npy", ends)
    return Paths(root, place)
