"""Tar shards as they are written: the same bytes whenever the same files are put in."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Final, Self

from PIL import Image

from mimkit.data.intake.columns import Asked
from mimkit.data.intake.tars import index_tar
from mimkit.data.intake.walk import ARRAYS, EXTENSIONS
from mimkit.errors import DataError

_LONGEST_NAME: Final = 60
_ODD: Final = re.compile(r"[^A-Za-z0-9_-]+")


class TarWriter:
    """Writes files into a tar, without times and owners.

    Args:
        path: of the tar.
    """

    def __init__(self, path: Path) -> None:
        self.packed = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    @property
    def size(self) -> int:
        """How many bytes it has so far."""
        return int(self.packed.offset)

    def add(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Adds the files of a sample: names and contents."""
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            self.packed.addfile(info, io.BytesIO(content))
        # Else it keeps them all.
        self.packed.members.clear()  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        """Begins."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the tar."""
        self.packed.close()


def verify(path: Path, name: Path, digests: Sequence[bytes]) -> None:
    """Reads a shard again and compares its images with what was put in.

    Args:
        path: where it lies.
        name: what it will be called, for people.
        digests: SHA-256 of each image.

    Raises: DataError if they differ.
    """
    with path.open("rb") as file:
        index = index_tar(file, Asked(label="none", mask="mask"))
        found = []
        for offset, size in index.spans.tolist():
            file.seek(offset)
            found.append(hashlib.sha256(file.read(size)).digest())
    if index.problem or found != list(digests):
        raise DataError(
            f"{name}: must read back as it was written, but does not. Is the disk sound? To write "
            "this shard again, repeat the command."
        )


def key_of(row: int, where: str) -> str:
    """What the files of a sample are called: its number, and the name that its image had.

    >>> key_of(7, "/data/cats/a b.1.jpg"), key_of(8, "row 8"), key_of(9, "row 9 (x/9.png)")
    ('00000007-a_b_1', '00000008', '00000009-9')
    """
    stem = "" if _is_row(where) else PurePosixPath(where.rstrip(")")).stem
    stem = _ODD.sub("_", stem)[:_LONGEST_NAME]
    return f"{row:08d}-{stem}" if stem else f"{row:08d}"


def kind_of(where: str, content: bytes) -> str:
    """The ending for an image file: that of its name, or one after its content.

    >>> kind_of("a/B.JPEG", b""), kind_of("row 3", b"GIF89a" + bytes(10)), kind_of("row 4", b"?")
    ('jpeg', 'gif', 'jpg')
    """
    suffix = "" if _is_row(where) else PurePosixPath(where.rstrip(")")).suffix.lower()
    if suffix in EXTENSIONS | ARRAYS:
        return suffix[1:]
    try:
        with Image.open(io.BytesIO(content)) as image:
            found = str(image.format).lower()
    except Exception:  # Pillow may raise anything on what is no image, which is packed as it is
        return "jpg"
    return found if f".{found}" in EXTENSIONS else "jpg"


def _is_row(where: str) -> bool:
    return where.startswith("row ") and not where.endswith(")")
