"""Images in Arrow files, mapped into memory, and the one copy that is made of parquet for that."""

from __future__ import annotations

import bisect
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimkit.files import write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 256


@dataclass(frozen=True)
class Records:
    """A column of images in Arrow streams on disk, as ``save_to_disk`` writes them.

    Args:
        files: in order.
        column: of images: their bytes, or {bytes, path}.
        root: the folder that paths are relative to.
    """

    files: tuple[str, ...]
    column: str
    root: str

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def shards(self) -> None:
        """Mapped, each row is within reach alike."""
        return None

    @property
    def digest(self) -> str:
        """Changes with the files."""
        stamps = [os.stat(file).st_mtime_ns for file in self.files]
        return hashlib.sha256(repr((self.files, self.column, stamps)).encode()).hexdigest()

    def where(self, number: int) -> str:
        """The path if the row holds only that, else its number and path."""
        content, path = self._row(number)
        if content is None and path:
            return path
        return f"row {number}" + (f" ({path})" if path else "")

    def content(self, number: int) -> bytes:
        """The bytes of the image file."""
        content, path = self._row(number)
        if content is not None:
            return content
        if not path:
            return b""
        below = os.path.join(self.root, path)
        with open(below if os.path.exists(below) else path, "rb") as file:
            return file.read()

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "column": self.column, "root": self.root}  # not the maps

    def _row(self, number: int) -> tuple[bytes | None, str | None]:
        chunk = bisect.bisect_right(self._ends, number)
        value = self._chunks[chunk][number - (self._ends[chunk - 1] if chunk else 0)].as_py()
        if isinstance(value, dict):
            return value.get("bytes"), value.get("path")
        return value, None

    @cached_property
    def _chunks(self) -> list[pa.Array]:
        import pyarrow as pa  # noqa: PLC0415 -- slow to import

        tables = [pa.ipc.open_stream(pa.memory_map(file)).read_all() for file in self.files]
        return [chunk for table in tables for chunk in table[self.column].chunks]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(map(len, self._chunks)))


def copy_column(files: Sequence[Path], column: str, cache: Path) -> Records:
    """Copies a column of parquet files, whose rows cannot be reached one by one, to Arrow files.

    A file is copied once, whatever splits and numbers of images it is used for.

    Raises: ArrowException if a file is damaged, OSError if the cache cannot be written.
    """
    copies: list[str] = []
    for path in files:
        status = path.stat()
        words = (str(path.absolute()), str(status.st_size), str(status.st_mtime_ns), column)
        name = hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]
        copy = cache / "arrow" / f"{name}.arrow"
        if not copy.is_file():
            write_atomic(copy, partial(copy_column_of, path, column))
        copies.append(str(copy))
    return Records(tuple(copies), column, str(files[0].parent))


def copy_column_of(path: Path, column: str, to: Path) -> None:
    """Writes a column of a parquet file as an Arrow stream.

    Raises: ArrowException if the file is damaged, OSError if the copy cannot be written.
    """
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    with pq.ParquetFile(path) as opened:
        index = opened.schema_arrow.get_field_index(column)
        schema = pa.schema([opened.schema_arrow.field(index)])
        with pa.OSFile(str(to), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
            for batch in opened.iter_batches(_BATCH, columns=[column]):
                stream.write_batch(batch)
