"""What a split is made of, by name, so that two states of it can be told apart for people."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimkit.data.intake.table import Table
from mimkit.data.looking.chunks import DIGEST_BYTES
from mimkit.files import write_atomic

_SHOWN: Final = 3


@dataclass(frozen=True)
class Changes:
    """How two states of a split differ; each a list of names, in the order of the split."""

    added: tuple[str, ...]
    gone: tuple[str, ...]
    changed: tuple[str, ...]

    def describe(self) -> str:
        """Says it in words."""
        said = [
            f"{len(names):,} {word} ({', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)})"
            for word, names in (
                ("added", self.added),
                ("gone", self.gone),
                ("changed", self.changed),
            )
            if names
        ]
        return ", ".join(said) or "no name is new, none is gone: contents, labels or order changed"


def write_names(place: Path, table: Table, rows: Iterable[int], origin: str) -> None:
    """Writes down what the images of a split are called, below the folder where they lie."""
    root = os.path.abspath(origin) + os.sep

    def write(to: Path) -> None:
        with to.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            for number, row in enumerate(rows):  # one by one: together they would fill memory
                file.write("\0" * (number > 0) + table.where(int(row)).removeprefix(root))

    write_atomic(_names(place), write)


def changes(before: Path, now: Path) -> Changes | None:
    """Compares two states of a split, by their folders in the cache; None if one is gone."""
    try:
        old, new = _read(before), _read(now)
    except (OSError, ValueError):
        return None
    return Changes(
        added=tuple(name for name in new if name not in old),
        gone=tuple(name for name in old if name not in new),
        changed=tuple(n for n, digest in new.items() if n in old and old[n] != digest),
    )


def _names(place: Path) -> Path:
    return place / "names.bin"


def _read(place: Path) -> dict[str, bytes]:
    """Reads names, and digests of the files where they were looked at."""
    names = _names(place).read_bytes().decode("utf-8").split("\0")
    digests: NDArray[np.uint8] = np.zeros((len(names), DIGEST_BYTES), np.uint8)
    if (place / "digests.bin").is_file():
        digests = np.fromfile(place / "digests.bin", np.uint8).reshape(len(names), DIGEST_BYTES)
    return dict(zip(names, map(bytes, digests), strict=True))
