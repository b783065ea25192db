"""Looking at every mask of a split once: which can be used, and how much of each id it holds."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimkit.console import make_console
from mimkit.data.intake.table import Table
from mimkit.data.looking.pace import Pace
from mimkit.data.pixels.unreadable import UnreadableError
from mimkit.data.truth.ids import NUM_IDS, read_ids
from mimkit.data.workers import cores
from mimkit.files import write_atomic

_FORMAT: Final = 1
"""Rises when what is kept changes, so that old files are no longer found."""


@dataclass(frozen=True)
class MaskSurvey:
    """What was found in the masks of a split.

    Args:
        counts: (N, 256) uint32, pixels of each id in the mask of each image; zeros where it has no
            mask that can be used.
        problems: why not, by the number of the image; "" where it simply has none.
    """

    counts: NDArray[np.uint32]
    problems: dict[int, str]


def survey_masks(
    table: Table, rows: NDArray[np.int64], sizes: NDArray[np.int32] | None, place: Path
) -> MaskSurvey:
    """Looks at all masks of a split, unless the cache tells what that would find.

    Args:
        table: images with masks.
        rows: (N,) int64, the rows that are used.
        sizes: (N, 2) int32, heights and widths of the images, which masks must have; None if they
            are not known.
        place: the folder of the cache for this split.

    Raises: OSError if the cache cannot be written.
    """
    assert table.masks is not None
    words = f"{_FORMAT} {table.masks.digest} {len(rows)}".encode()
    file = place / f"masks-{hashlib.sha256(words).hexdigest()[:16]}.npz"
    found = _load(file, len(rows))
    if found is None:
        found = _look(table, rows, sizes)
        write_atomic(file, lambda path: _save(path, found))
    return found


def _look(table: Table, rows: NDArray[np.int64], sizes: NDArray[np.int32] | None) -> MaskSurvey:
    counts = np.zeros((len(rows), NUM_IDS), dtype=np.uint32)
    problems: dict[int, str] = {}

    def look(number: int) -> str | None:
        masks, contents = table.masks, int(table.rows[rows[number]])
        assert masks is not None
        try:
            content = masks.content(contents)
            if content is None:
                return ""
            ids = read_ids(content)
        except (OSError, UnreadableError) as error:
            return str(error)
        if sizes is not None and ids.shape != tuple(sizes[number]):
            height, width = sizes[number].tolist()
            said = f"is of {ids.shape[1]} x {ids.shape[0]} px, but its image of {width} x {height}"
            turned = ids.shape == (width, height)
            return said + " (masks must lie as images are shown: turned as EXIF says)" * turned
        counts[number] = np.bincount(ids.ravel(), minlength=NUM_IDS)
        return None

    task = f"looking at {len(rows):,} mask{'s' * (len(rows) != 1)} (once)"
    with (
        ThreadPoolExecutor(cores()) as threads,  # decoding leaves Python's lock
        Pace(task, len(rows), 0, make_console(stderr=True)) as pace,
    ):
        for number, problem in enumerate(threads.map(look, range(len(rows)))):
            if problem is not None:
                problems[number] = problem
            pace.advance(1)
    return MaskSurvey(counts, problems)


def _save(path: Path, found: MaskSurvey) -> None:
    with path.open("wb") as file:
        problems = np.array(json.dumps(found.problems))
        np.savez_compressed(file, counts=found.counts, problems=problems)


def _load(path: Path, count: int) -> MaskSurvey | None:
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            problems = json.loads(str(file["problems"]))
            found = MaskSurvey(file["counts"], {int(k): str(v) for k, v in problems.items()})
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None  # not there yet, or damaged
    return found if found.counts.shape == (count, NUM_IDS) else None


def some_ids(ids: Sequence[int]) -> str:
    """The first few ids."""
    shown: Iterator[str] = map(str, ids[:4])
    return ", ".join(shown) + (", ..." if len(ids) > 4 else "")
