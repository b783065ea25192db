"""Looking at every image once: which can be used, their sizes, their fingerprint, small pixels.

An image set that was never opened before is read to its end, so that a broken image is known
before training starts and a batch never depends on one. What was found is cached; a look that is
killed goes on where it was.
"""

import hashlib
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from mimkit.console import make_console
from mimkit.data.intake.table import Skipped, Table
from mimkit.data.looking.chunks import Chunk, Task, load_chunk, look_at, save_chunk
from mimkit.data.looking.pace import Pace
from mimkit.data.looking.stored import Stored
from mimkit.data.pixels.decode import SHRINKS, look
from mimkit.data.pixels.form import Form
from mimkit.data.pixels.unreadable import MisfitError, UnreadableError
from mimkit.data.workers import cores, leave_signals_to_parent
from mimkit.errors import DataError

RESIDENT_SIZE: Final = 64
"""Images of one common size up to this many pixels a side are kept decoded."""
_CHUNK: Final = 256
_MANY: Final = 2000
"""From so many images on, starting processes pays."""
_HINT: Final = (
    "to start at once, and look at each image when training first meets it: --set data.survey=false"
)


@dataclass(frozen=True)
class Depth:
    """Of the images of which more than 8 bits became 8, the range that these use.

    Args:
        count: how many images.
        low: the least value of all.
        high: the greatest.
    """

    count: int
    low: int
    high: int

    @property
    def note(self) -> str:
        """What a reader of results must know of it, or nothing."""
        if self.low < 0 or self.high > _WHITE:
            return (
                f"{self.count:,} images hold values from {self.low:,} to {self.high:,}: what is "
                f"outside 0 to {_WHITE:,} becomes black or white. Scale them to 0 to 255, 8 bits"
            )
        if self.high <= _WHITE // 2:
            levels = (self.high * 255 + _WHITE // 2) // _WHITE + 1
            return (
                f"{self.count:,} images in 16 bits use only values up to {self.high:,}: as "
                f"{_WHITE:,} is white, at most {levels} of 256 levels are left and all is dark. "
                "Scale them to 0 to 255, 8 bits"
            )
        return ""


_WHITE: Final = 65_535


@dataclass(frozen=True)
class Survey:
    """What is known of a table after all its images were looked at.

    Args:
        rows: (N,) int64, the rows that hold usable images.
        sizes: (N, 2) int32, their heights and widths.
        labels: (N,) int64, or None.
        classes: the names that labels number.
        skipped: the other rows.
        fingerprint: of the usable images' files and labels.
        image_size: the common size of images that are kept decoded, or None.
        depth: of images of which more than 8 bits became 8; None if there is none.
        deep: whether images are in float32.
        stored: what values images store; None if nobody needs to know.
    """

    rows: NDArray[np.int64]
    sizes: NDArray[np.int32]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    fingerprint: str
    image_size: tuple[int, int] | None
    depth: Depth | None
    deep: bool
    stored: Stored | None


def survey(table: Table, form: Form, chunks: Path, pixels: Path, digests: Path) -> Survey:
    """Looks at every image; writes down the pixels of small ones, and what tells files apart.

    Args:
        table: the images.
        form: what they are made into.
        chunks: folder for what was found so far; it may hold what an earlier call found.
        pixels: file for (N, C, H, W) uint8 or float32, empty if the images are large or of several
            sizes.
        digests: file for (N, 32) uint8, SHA-256 of each usable image's file.

    Raises: DataError if not one image can be used, or some have other channels or another depth
        than the rest; OSError if a file cannot be written.
    """
    image_size, is_deep = first_look(table, form)
    if max(image_size) > RESIDENT_SIZE:
        image_size = (0, 0)
    work = _Work(table, chunks, Task(form, is_deep, whole=image_size != (0, 0)))
    work.run()
    rows: list[NDArray[np.int64]] = []
    sizes: list[NDArray[np.int32]] = []
    deep: list[NDArray[np.int64]] = []
    stored: list[NDArray[np.float64]] = []
    misfits: list[Skipped] = []
    skipped: list[Skipped] = []
    digest = hashlib.sha256()
    with pixels.open("wb") as pixels_file, digests.open("wb") as digests_file:
        for number in range(len(work)):
            chunk = work.found(number)
            rows.append(chunk.rows)
            sizes.append(chunk.sizes)
            deep.append(chunk.deep)
            stored.append(chunk.stored)
            misfits += chunk.misfits
            skipped += chunk.skipped
            digest.update(chunk.digests.tobytes())
            digests_file.write(chunk.digests.tobytes())
            if (chunk.sizes != image_size).any():
                image_size = (0, 0)
                pixels_file.truncate(0)
            elif chunk.pixels.size:
                pixels_file.write(np.ascontiguousarray(chunk.pixels).data)
    _refuse_misfits(misfits, len(table))
    kept, values = np.concatenate(rows), np.concatenate(deep)
    labels = None if table.labels is None else table.labels[kept]
    digest.update(b"" if labels is None else labels.tobytes())
    return Survey(
        rows=kept,
        sizes=np.concatenate(sizes),
        labels=labels,
        classes=table.classes,
        skipped=tuple(skipped),
        fingerprint=digest.hexdigest(),
        image_size=None if image_size == (0, 0) else image_size,
        depth=Depth(len(values), int(values.min()), int(values.max())) if len(values) else None,
        deep=is_deep,
        stored=Stored.of(is_deep, np.concatenate(stored)),
    )


def _refuse_misfits(misfits: list[Skipped], total: int) -> None:
    if misfits:
        raise DataError(
            f"{misfits[0].path}: {misfits[0].reason}. So {len(misfits):,} of {total:,} images do "
            "not go with the others: give them another folder, or convert them."
        )


class _Work(Dataset[int | Exception]):
    """The chunks of a table; each is looked at once, in whichever process, and kept in a file."""

    def __init__(self, table: Table, folder: Path, task: Task) -> None:
        self.table = table
        self.folder = folder
        self.task = task

    def __len__(self) -> int:
        return math.ceil(len(self.table) / _CHUNK)

    def rows(self, number: int) -> range:
        return range(number * _CHUNK, min((number + 1) * _CHUNK, len(self.table)))

    def file(self, number: int) -> Path:
        rows = self.rows(number)
        return self.folder / f"{rows.start}-{rows.stop}.npz"

    def __getitem__(self, number: int) -> int | Exception:
        """Looks at a chunk; gives the number of its images, or why it has none, or is not kept."""
        try:
            if not self.file(number).exists():  # by a process that does the same
                save_chunk(self.file(number), self.look(number))
        # Handed over, because a loader process that raises adds its traceback to the message.
        except DataError as error:  # of a bucket, say, which is no fault of the cache
            return error
        except OSError as error:
            return OSError(str(error))
        return len(self.rows(number))

    def look(self, number: int) -> Chunk:
        return look_at(self.table, self.rows(number), self.task)

    def found(self, number: int) -> Chunk:
        """Reads a chunk, or looks again where its file is damaged or gone."""
        return load_chunk(self.file(number)) or self.look(number)

    def run(self) -> None:
        """Looks at all chunks that were not looked at before."""
        total = len(self.table)
        if total < _MANY:
            return  # the chunks are made as they are asked for
        self.folder.mkdir(parents=True, exist_ok=True)
        left = [number for number in range(len(self)) if not self.file(number).exists()]
        done = total - sum(len(self.rows(number)) for number in left)
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=left,
            num_workers=min(cores(), len(left)),
            worker_init_fn=leave_signals_to_parent,
            generator=torch.Generator(),  # else starting a loader advances the global one
        )
        task = f"looking at {total:,} images (once)"
        with Pace(task, total, done, make_console(stderr=True), hint=_HINT) as pace:
            for count in loader:
                if isinstance(count, Exception):
                    raise count
                pace.advance(count)


def forget(chunks: Path) -> None:
    """Removes what was kept for going on."""
    shutil.rmtree(chunks, ignore_errors=True)


def first_look(table: Table, form: Form) -> tuple[tuple[int, int], bool]:
    """Tells height and width of the first image that can be used, and whether it is in float32.

    Raises: DataError if there is none.
    """
    problem = "there is none"
    for row in range(len(table)):
        try:
            found = look(table.content(row), SHRINKS[-1], form)
        except MisfitError as error:
            raise DataError(f"{table.where(row)}: {error}.") from error
        except (OSError, UnreadableError) as error:
            problem = f"{table.where(row)} {error}, and none of the others can be used either"
        else:
            return found.size, found.image.deep
    raise DataError(f"the data must hold at least one image that can be read, but {problem}.")
