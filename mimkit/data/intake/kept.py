"""Rows and labels of a table, kept in the cache: worked out once, and mapped by all processes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimkit.files import write_atomic, write_text

Labels = tuple[NDArray[np.int64] | None, tuple[str, ...]]
"""(N,) numbers of classes, -1 for none, or None if no image has one; and names of the classes."""


def keep(place: Path, labels: NDArray[np.int64] | None, classes: tuple[str, ...]) -> None:
    """Writes labels to a folder of the cache; none are kept where no image has one."""
    if labels is None or not (labels >= 0).any():
        labels, classes = None, ()
    kept = np.empty(0, dtype=np.int64) if labels is None else labels
    write_array(place / "labels.npy", kept)
    # Written last: where it is, the rest is complete.
    write_text(place / "classes.json", json.dumps(classes))


def kept(place: Path) -> Labels | None:
    """Reads what was kept; None if nothing was, or it is damaged."""
    try:
        classes = tuple(json.loads((place / "classes.json").read_text(encoding="utf-8")))
        labels: NDArray[np.int64] = mapped(place / "labels.npy")
    except (OSError, EOFError, ValueError):
        return None
    return (labels if len(labels) else None), classes


def kept_rows(place: Path, make: Callable[[], NDArray[np.int64]]) -> NDArray[np.int64]:
    """Maps the rows that were kept in a folder of the cache, making them where there are none."""
    path = place / "rows.npy"
    try:
        return mapped(path)
    except (OSError, EOFError, ValueError):
        write_array(path, make())
        return mapped(path)


def mapped(path: Path) -> NDArray[Any]:
    """Maps an array of a file; memory is copied where it is written to, so the file stays.

    Raises: OSError if it is not there; EOFError, ValueError if it is damaged.
    """
    array: NDArray[Any] = np.load(path, mmap_mode="c")
    return array


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Writes an array atomically."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, numpy would add .npy
            np.save(file, array)

    write_atomic(path, write)
