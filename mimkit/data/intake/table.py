"""The records of the intake: a listing of a split as found, and the table of its images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mimkit.data.counter import uniform
from mimkit.errors import DataError

_LIMIT_STREAM = 104


@dataclass(frozen=True)
class Skipped:
    """A file, folder or row that is not used, and why.

    Args:
        path: the file or folder, or the row and the name it was stored under.
        reason: in words.
    """

    path: str
    reason: str


class Contents(Protocol):
    """Undecoded images by number. Pickled, it is small: what it reads lies on disk."""

    def __len__(self) -> int:
        """How many there are."""

    def where(self, number: int) -> str:
        """Names an image for people."""

    def content(self, number: int) -> bytes:
        """Returns the bytes of the image file; OSError if it cannot be read."""


class MaskContents(Protocol):
    """Undecoded masks by the number of their image. Pickled, it is small."""

    @property
    def digest(self) -> str:
        """Changes with the files."""

    def where(self, number: int) -> str:
        """Names a mask, or the image that has none, for people."""

    def content(self, number: int) -> bytes | None:
        """Returns the bytes of a mask's file, None if there is none; OSError if it fails."""


@dataclass(frozen=True, eq=False)
class Table:
    """Images as bytes or paths, in the order of the data set.

    Args:
        contents: the undecoded images.
        rows: (N,) int64, which of them, in which order.
        labels: (N,) int64, -1 where one image has none; None if no image has one.
        classes: the names that labels number.
        masks: the undecoded masks of all contents; None if there are none.
        shards: (S,) int64, ascending: where each of the files ends in which contents lie one after
            the other, so that reading them in order is fast; None if each is within reach alike.
    """

    contents: Contents
    rows: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    masks: MaskContents | None = None
    shards: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int) -> str:
        """Names a row for people."""
        return self.contents.where(int(self.rows[row]))

    def content(self, row: int) -> bytes:
        """Returns the bytes of the image file.

        Raises: OSError if the file cannot be read.
        """
        return self.contents.content(int(self.rows[row]))

    def select(self, rows: NDArray[np.int64]) -> Table:
        """Returns these rows; nothing is copied but their numbers."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, rows=self.rows[rows], labels=labels)

    def ends(self, used: NDArray[np.int64] | None = None) -> NDArray[np.int64] | None:
        """Tells where shards end among the rows, which must ascend; None if there are no shards.

        Shape: (S,) int64, ascending, the last of which is the number of rows.

        Args:
            used: (n,) int64, ascending: which rows alone are counted; None: all.
        """
        if self.shards is None:
            return None
        ends = np.searchsorted(self.rows, self.shards)
        ends = np.unique(ends if used is None else np.searchsorted(used, ends))
        return ends[ends > 0].astype(np.int64)

    def limited(self, count: int | None, key: str) -> Table:
        """Returns ``count`` rows, drawn as `balanced` says, in the order of the table.

        Args:
            count: how many; None for all.
            key: of the recipe, which gave the number.

        Raises: DataError if there are fewer.
        """
        if count is None:
            return self
        if count > len(self):
            raise DataError(
                f"{key}: must be at most {len(self):,}, which is how many images there are, but "
                f"is {count:,}. For all of them: --set {key}=none"
            )
        return self.select(balanced(self.labels, len(self), count))


def balanced(labels: NDArray[np.int64] | None, total: int, count: int) -> NDArray[np.int64]:
    """Draws ``count`` of ``total`` rows, from all classes as equally as their sizes allow.

    Rows without a label count as one more class. A smaller draw lies inside a larger one.

    Shape: labels (total,) or None; result (count,) int64, ascending.
    """
    key = uniform(0, _LIMIT_STREAM, np.arange(total), 1)[:, 0]
    rank = np.zeros(total, dtype=np.int64)
    if labels is not None:
        ranked = np.lexsort((key, labels))  # class by class
        _, start, counts = np.unique(labels[ranked], return_index=True, return_counts=True)
        rank[ranked] = np.arange(total) - np.repeat(start, counts)
    return np.sort(np.lexsort((key, rank))[:count])


class Listing(Protocol):
    """One split as found on disk, before any image is opened."""

    @property
    def origin(self) -> str:
        """Where it lies."""

    @property
    def stamp(self) -> str:
        """Hex digest of paths, sizes and times of change of all files, and of what was decided."""

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What is not used, known before any image is opened."""

    @property
    def note(self) -> str:
        """What a reader of results must know of how the split came about, or nothing."""

    @property
    def masks(self) -> str:
        """Where the masks of its images are, in words; nothing if they have none."""

    @property
    def mask_names(self) -> tuple[str, ...] | None:
        """What the ids of masks stand for, from 0 on; None if that is not known."""

    def read(self, cache: Path) -> Table:
        """Reads the table.

        Args:
            cache: folder of everything cached. What a listing needs on disk it writes to a folder
                below, named by a digest of what it is made of, and finds there the next time.

        Raises: DataError if a file is damaged; OSError if the cache cannot be written.
        """
