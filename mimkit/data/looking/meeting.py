"""Images that are looked at when they are first met, not before training starts.

What was found is kept in a file that all processes share, so that an image is looked at once. It
says nothing but what the image file says, so that a batch does not depend on when it is read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimkit.data.intake.table import Skipped, Table
from mimkit.data.looking.stored import Stored, tallies, tally
from mimkit.data.looking.survey import first_look
from mimkit.data.pixels.decode import SHRINKS, look
from mimkit.data.pixels.form import RGB, Form
from mimkit.data.pixels.raster import Raster, Scale
from mimkit.data.pixels.readers import in_depth, read_again
from mimkit.data.pixels.unreadable import MisfitError, UnreadableError
from mimkit.errors import DataError
from mimkit.files import write_atomic

_BROKEN: Final = -1
_SAMPLE: Final = 1024
"""How many files the fingerprint reads."""


@dataclass(frozen=True, eq=False)
class Meeting:
    """Reads images; in the place of one that cannot be read stands another.

    That is the next of the data set, or of those with its label, that can be read; after the last
    comes the first. So it is a function of the files and the image's number alone.

    Args:
        table: the undecoded images.
        file: (N, 2) int32: heights and widths of images met, 0 for those not met, -1 for those
            that cannot be read.
        form: what images are made into.
        scale: stored values that become 0 and 1; None: images are in 8 bits.
    """

    table: Table
    file: Path
    form: Form
    scale: Scale | None

    @classmethod
    def made(cls, table: Table, file: Path, form: Form, scale: Scale | None) -> Meeting:
        """Opens the file, making it where there is none.

        Raises: OSError if it cannot be written.
        """
        size = len(table) * 8
        if not file.is_file() or file.stat().st_size != size:
            write_atomic(file, lambda path: _blank(path, size))
        return cls(table, file, form, scale)

    def __len__(self) -> int:
        return len(self.table)

    def __call__(self, index: int, shrink: int = 1) -> Raster:
        """Decodes an image, or the one in its place.

        Raises: DataError if it is not what it was, or none can be read.
        """
        row = self._readable(index)
        height, width = map(int, self._sizes[row])
        return read_again(self.table, row, (height, width), shrink, self)

    def measure(self, index: NDArray[np.int64]) -> NDArray[np.int32]:
        """Tells heights and widths, (n, 2), of these images or of those in their place."""
        rows = [self._readable(int(each)) for each in index]
        return np.array(self._sizes[rows])

    def broken(self) -> tuple[Skipped, ...]:
        """Lists the images met so far that cannot be read."""
        return tuple(
            Skipped(self.table.where(row), self._look(row) or "could not be read")
            for row in np.flatnonzero(self._sizes[:, 0] == _BROKEN).tolist()
        )

    def _readable(self, index: int) -> int:
        for row in self._successors(index):
            if self._sizes[row, 0] == 0:
                self._look(row)
            if self._sizes[row, 0] != _BROKEN:
                return row
        raise DataError(
            f"{self.table.where(index)}: cannot be read, nor can any other image of its class that "
            "might stand in its place."
        )

    def _look(self, row: int) -> str | None:
        """Notes the size of an image; says why it cannot be read, if so."""
        reason = None
        size = _BROKEN, _BROKEN
        try:
            found = look(self.table.content(row), SHRINKS[-1], self.form)
            in_depth(found.image, self.scale)
            size = found.size
        except MisfitError as error:
            raise DataError(f"{self.table.where(row)}: {error}.") from error
        except (FileNotFoundError, PermissionError) as error:
            reason = f"cannot be read: {error.strerror}"
        except UnreadableError as error:
            reason = str(error)
        except OSError as error:  # which may go by: the image must not be written off
            raise DataError(
                f"{self.table.where(row)}: cannot be read: {error.strerror}. Repeat the command."
            ) from error
        self._sizes[row] = size
        return reason

    def _successors(self, index: int) -> Iterator[int]:
        yield index
        labels = self.table.labels
        rows = np.arange(len(self)) if labels is None else np.flatnonzero(labels == labels[index])
        yield from rows[rows > index].tolist()
        yield from rows[rows < index].tolist()

    @cached_property
    def _sizes(self) -> NDArray[np.int32]:
        # Shared by all processes, and by later runs.
        return np.memmap(self.file, np.int32, "r+", shape=(len(self.table), 2))

    def __getstate__(self) -> dict[str, Any]:
        # Each process maps the file itself.
        return {name: getattr(self, name) for name in ("table", "file", "form", "scale")}


def _blank(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)


def glimpse(table: Table) -> str:
    """Returns a fingerprint of labels, number and a sample of the files, evenly spaced."""
    digest = hashlib.sha256(f"not looked at\0{len(table)}".encode())
    digest.update(b"" if table.labels is None else table.labels.tobytes())
    for row in _sample(table):
        try:
            digest.update(hashlib.sha256(table.content(row)).digest())
        except OSError:
            digest.update(b"unreadable")
    return digest.hexdigest()


def glance(table: Table, form: Form) -> Stored | None:
    """Finds out what values images store, by a sample; None if nobody needs to know.

    Raises: DataError if no image can be used, or one has other channels or another depth.
    """
    _, deep = first_look(table, form)
    if not deep and form.channels == RGB:
        return None
    rows = []
    for row in _sample(table):
        try:
            image = look(table.content(row), 1, form).image
            rows.append(tally(in_depth(image, (0.0, 1.0) if deep else None), form))
        except MisfitError as error:
            raise DataError(f"{table.where(row)}: {error}.") from error
        except (OSError, UnreadableError):
            continue  # it is told of when it is met
    return Stored.of(deep, tallies(rows, form))


def _sample(table: Table) -> list[int]:
    count = min(_SAMPLE, len(table))
    return [int(row) for row in np.arange(count) * len(table) // count]
