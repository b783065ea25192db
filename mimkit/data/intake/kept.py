"""Labels of a table, kept in the cache so that they are worked out only once."""

import json
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
        labels: NDArray[np.int64] = np.load(place / "labels.npy")
    except (OSError, EOFError, ValueError):
        return None
    return (labels if len(labels) else None), classes


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Writes an array atomically."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, numpy would add .npy
            np.save(file, array)

    write_atomic(path, write)
