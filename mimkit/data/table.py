"""The undecoded images of one split, read with `datasets`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from mimkit.errors import DataError

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Skipped:
    """A file or row that is not used, and why.

    Args:
        path: the file, or the row and the name it was stored under.
        reason: in words.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class Table:
    """Images as bytes or paths, in the order of the data set.

    Args:
        records: a `datasets.Dataset` with one column, ``image``, of {bytes, path}.
        labels: (N,) int64, -1 where one image has none; None if no image has one.
        classes: the names that labels number.
    """

    records: datasets.Dataset
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.records)

    def where(self, row: int) -> str:
        """Names a row for people."""
        record = self.records[row]["image"]
        if record["bytes"] is None:
            return str(record["path"])
        return f"row {row}" + (f" ({record['path']})" if record["path"] else "")

    def content(self, row: int) -> bytes:
        """Returns the bytes of the image file.

        Raises: OSError if the file cannot be read.
        """
        record = self.records[row]["image"]
        content: bytes | None = record["bytes"]
        return Path(record["path"]).read_bytes() if content is None else content

    def head(self, count: int) -> Table:
        """Returns the first ``count`` images.

        Raises: DataError if there are fewer.
        """
        if count > len(self):
            raise DataError(
                f"data.num_images: must be at most {len(self):,}, which is how many images there "
                f"are, but is {count:,}."
            )
        return self.select(np.arange(count))

    def select(self, rows: NDArray[np.int64]) -> Table:
        """Returns these rows."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, records=self.records.select(rows), labels=labels)


class Listing(Protocol):
    """One split as found on disk, before any file is opened."""

    @property
    def origin(self) -> str:
        """Where it lies."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that it is made of."""

    @property
    def choice(self) -> str:
        """Tells splits that are made of the same files apart."""

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Files that are no images."""

    @property
    def note(self) -> str:
        """What a reader of results must know of how the split came about, or nothing."""

    def read(self, cache: Path) -> Table:
        """Reads the table; ``cache`` is a folder for what that needs on disk."""
