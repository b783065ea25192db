"""Looking at some images, and keeping what was found: a look that is killed goes on from there."""

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimkit.data.intake.table import Skipped, Table
from mimkit.data.looking.stored import tallies, tally
from mimkit.data.pixels.decode import SHRINKS, look
from mimkit.data.pixels.form import RGB, Form
from mimkit.data.pixels.readers import depth_misfit
from mimkit.data.pixels.unreadable import MisfitError, UnreadableError
from mimkit.files import write_atomic

DIGEST_BYTES = 32


@dataclass(frozen=True)
class Chunk:
    """What was found in some rows of a table.

    Args:
        rows: (n,) int64, those that hold usable images.
        sizes: (n, 2) int32, their heights and widths.
        digests: (n, 32) uint8, SHA-256 of their files.
        skipped: the other rows.
        misfits: of these, images with other channels, or another depth, than they must have.
        deep: (m, 2) int64, the least and the greatest value of each image of which more than 8 bits
            became 8.
        stored: (n, 3 + 2 C) float64, what values they store (`tally`); (0, ...) if nobody asked.
        pixels: (n, C, H, W) uint8 or float32, if they were asked for and all have one size; else
            (0,).
    """

    rows: NDArray[np.int64]
    sizes: NDArray[np.int32]
    digests: NDArray[np.uint8]
    skipped: tuple[Skipped, ...]
    misfits: tuple[Skipped, ...]
    deep: NDArray[np.int64]
    stored: NDArray[np.float64]
    pixels: NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """What is wanted of images, and what they must be.

    Args:
        form: what they are made into.
        deep: whether they are in float32.
        whole: whether their pixels are wanted.
    """

    form: Form
    deep: bool
    whole: bool

    @property
    def measures(self) -> bool:
        """Whether range, mean and deviation are wanted: nobody knows them of such images."""
        return self.deep or self.form.channels != RGB


def look_at(table: Table, rows: range, task: Task) -> Chunk:
    """Looks at some images, each to its end.

    Args:
        table: the images.
        rows: which of them.
        task: what is wanted of them.
    """
    kept: list[int] = []
    sizes: list[tuple[int, int]] = []
    digests: list[bytes] = []
    skipped: list[Skipped] = []
    misfits: list[Skipped] = []
    deep: list[tuple[int, int]] = []
    stored: list[list[float]] = []
    images: list[NDArray[Any]] = []
    for row in rows:
        try:
            content = table.content(row)
            full = task.whole or task.measures
            found = look(content, 1 if full else SHRINKS[-1], task.form)
            if found.image.deep is not task.deep:
                raise MisfitError(depth_misfit(found.image))
        except OSError as error:
            skipped.append(Skipped(table.where(row), f"cannot be read: {error.strerror}"))
        except MisfitError as error:
            misfits.append(Skipped(table.where(row), str(error)))
        except UnreadableError as error:
            skipped.append(Skipped(table.where(row), str(error)))
        else:
            kept.append(row)
            sizes.append(found.size)
            digests.append(hashlib.sha256(content).digest())
            if found.values is not None:
                deep.append(found.values)
            if task.measures:
                stored.append(tally(found.image, task.form))
            if task.whole:
                images.append(np.asarray(found.image))
    alike = task.whole and len(set(sizes)) == 1
    return Chunk(
        rows=np.array(kept, dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int32).reshape(-1, 2),
        digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES),
        skipped=tuple(skipped),
        misfits=tuple(misfits),
        deep=np.array(deep, dtype=np.int64).reshape(-1, 2),
        stored=tallies(stored, task.form),
        pixels=np.stack(images).transpose(0, 3, 1, 2) if alike else np.empty(0, np.uint8),
    )


def save_chunk(path: Path, chunk: Chunk) -> None:
    """Writes a chunk.

    Raises: OSError, DataError.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(
                file,
                rows=chunk.rows,
                sizes=chunk.sizes,
                digests=chunk.digests,
                skipped=np.array(json.dumps([asdict(item) for item in chunk.skipped])),
                misfits=np.array(json.dumps([asdict(item) for item in chunk.misfits])),
                deep=chunk.deep,
                stored=chunk.stored,
                pixels=chunk.pixels,
            )

    write_atomic(path, write)


def load_chunk(path: Path) -> Chunk | None:
    """Reads a chunk; None if it is not there, or damaged."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            return Chunk(
                rows=file["rows"],
                sizes=file["sizes"],
                digests=file["digests"],
                skipped=tuple(Skipped(**item) for item in json.loads(str(file["skipped"]))),
                misfits=tuple(Skipped(**item) for item in json.loads(str(file["misfits"]))),
                deep=file["deep"],
                stored=file["stored"],
                pixels=file["pixels"],
            )
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
