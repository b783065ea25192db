"""Looking at some images, and keeping what was found: a look that is killed goes on from there."""

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimkit.data.intake.table import Skipped, Table
from mimkit.data.pixels.decode import SHRINKS, UnreadableError, look
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
        deep: (m, 2) int64, the least and the greatest value of each image whose values take more
            than 8 bits.
        pixels: (n, 3, H, W) uint8, if they were asked for and all have one size; else (0,).
    """

    rows: NDArray[np.int64]
    sizes: NDArray[np.int32]
    digests: NDArray[np.uint8]
    skipped: tuple[Skipped, ...]
    deep: NDArray[np.int64]
    pixels: NDArray[np.uint8]


def look_at(table: Table, rows: range, *, whole: bool) -> Chunk:
    """Looks at some images, each to its end.

    Args:
        table: the images.
        rows: which of them.
        whole: whether their pixels are wanted.
    """
    kept: list[int] = []
    sizes: list[tuple[int, int]] = []
    digests: list[bytes] = []
    skipped: list[Skipped] = []
    deep: list[tuple[int, int]] = []
    images: list[NDArray[np.uint8]] = []
    for row in rows:
        try:
            content = table.content(row)
            found = look(content, 1 if whole else SHRINKS[-1])
        except OSError as error:
            skipped.append(Skipped(table.where(row), f"cannot be read: {error.strerror}"))
        except UnreadableError as error:
            skipped.append(Skipped(table.where(row), str(error)))
        else:
            kept.append(row)
            sizes.append(found.size)
            digests.append(hashlib.sha256(content).digest())
            if found.values is not None:
                deep.append(found.values)
            if whole:
                images.append(np.asarray(found.image))
    alike = whole and len(set(sizes)) == 1
    return Chunk(
        rows=np.array(kept, dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int32).reshape(-1, 2),
        digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES),
        skipped=tuple(skipped),
        deep=np.array(deep, dtype=np.int64).reshape(-1, 2),
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
                deep=chunk.deep,
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
                deep=file["deep"],
                pixels=file["pixels"],
            )
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
