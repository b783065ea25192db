"""Looking at every image once: which can be used, their sizes, their fingerprint, small pixels.

An image set that was never opened before is read to its end, so that a broken image is known
before training starts and a batch never depends on one. What was found is cached.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mimkit.console import make_console
from mimkit.data.decode import UnreadableError, decode, measure
from mimkit.data.table import Skipped, Table
from mimkit.data.workers import cores
from mimkit.errors import DataError

RESIDENT_SIZE: Final = 64
"""Images of one common size up to this many pixels a side are kept decoded."""
_CHUNK: Final = 256
_MANY: Final = 2000
"""From so many images on, starting processes pays."""


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
    """

    rows: NDArray[np.int64]
    sizes: NDArray[np.int32]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    fingerprint: str
    image_size: tuple[int, int] | None


def survey(table: Table, pixels: Path) -> Survey:
    """Looks at every image; writes the pixels of small ones to a file, (N, 3, H, W) uint8.

    The file stays empty if the images are large or of several sizes.

    Raises: DataError if not one image can be used.
    """
    image_size = _first_size(table)
    if max(image_size) > RESIDENT_SIZE:
        image_size = (0, 0)
    rows: list[NDArray[np.int64]] = []
    sizes: list[NDArray[np.int32]] = []
    skipped: list[Skipped] = []
    digest = hashlib.sha256()
    with pixels.open("wb") as file:
        for chunk in _chunks(table, whole=image_size != (0, 0)):
            rows.append(chunk.rows)
            sizes.append(chunk.sizes)
            skipped += chunk.skipped
            digest.update(chunk.digests)
            if (chunk.sizes != image_size).any():
                image_size = (0, 0)
                file.truncate(0)
            elif chunk.pixels is not None:
                file.write(chunk.pixels.numpy().data)
    kept = np.concatenate(rows)
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
    )


@dataclass(frozen=True)
class _Chunk:
    rows: NDArray[np.int64]
    sizes: NDArray[np.int32]
    skipped: list[Skipped]
    digests: bytes
    pixels: Tensor | None  # (n, 3, H, W) if all have one size; a tensor travels without a copy


class _Chunks(Dataset[_Chunk]):
    def __init__(self, table: Table, whole: bool) -> None:
        self.table = table
        self.whole = whole

    def __getitem__(self, start: int) -> _Chunk:
        rows: list[int] = []
        sizes: list[tuple[int, int]] = []
        images: list[NDArray[np.uint8]] = []
        skipped: list[Skipped] = []
        digests: list[bytes] = []
        for row in range(start, min(start + _CHUNK, len(self.table))):
            try:
                content = self.table.content(row)
                if self.whole:
                    images.append(np.asarray(decode(content)))
                    sizes.append(images[-1].shape[:2])
                else:
                    sizes.append(measure(content))
            except OSError as error:
                reason = f"cannot be read: {error.strerror}"
                skipped.append(Skipped(self.table.where(row), reason))
            except UnreadableError as error:
                skipped.append(Skipped(self.table.where(row), str(error)))
            else:
                rows.append(row)
                digests.append(hashlib.sha256(content).digest())
        alike = self.whole and len(set(sizes)) == 1
        return _Chunk(
            np.array(rows, dtype=np.int64),
            np.array(sizes, dtype=np.int32).reshape(-1, 2),
            skipped,
            b"".join(digests),
            torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()) if alike else None,
        )


def _chunks(table: Table, whole: bool) -> Iterator[_Chunk]:
    starts = range(0, len(table), _CHUNK)
    loader = DataLoader(
        _Chunks(table, whole),
        batch_size=None,
        sampler=starts,
        num_workers=cores() if len(table) >= _MANY else 0,
        generator=torch.Generator(),  # else starting a loader advances the global one
    )
    console, task = make_console(stderr=True), f"looking at {len(table):,} images (once)"
    many = len(table) >= _MANY
    if many and not console.is_terminal:
        console.print(task)
    yield from track(
        loader,
        description=task,
        total=len(starts),
        console=console,
        transient=True,
        disable=not many or not console.is_terminal,
    )


def _first_size(table: Table) -> tuple[int, int]:
    problem = "there is none"
    for row in range(len(table)):
        try:
            return measure(table.content(row))
        except (OSError, UnreadableError) as error:
            problem = f"{table.where(row)} {error}, and none of the others can be used either"
    raise DataError(f"the data must hold at least one image that can be read, but {problem}.")
