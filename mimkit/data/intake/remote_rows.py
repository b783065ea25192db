"""Parquet in buckets and on servers: labels by requests of their column, images by copies."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from mimkit.data.intake.answering import answering
from mimkit.data.intake.copies import Copies, fetch
from mimkit.data.intake.records import Records, copy_column_of
from mimkit.data.intake.rows import Store
from mimkit.data.intake.shard_sets import copies_in
from mimkit.data.intake.urls import ShardFile, again, arrow_file_system
from mimkit.files import write_json

if TYPE_CHECKING:
    import pyarrow as pa

_T = TypeVar("_T")
_AT_ONCE: Final = 8
_MAPPED: Final = 128
_TRIES: Final = 3


@dataclass(frozen=True)
class RemoteStore(Store):
    """Parquet files of one split that lie elsewhere.

    Args:
        files: their addresses as paths, for their names alone.
        arrow: never.
        remote: the files.
    """

    remote: tuple[ShardFile, ...] = ()

    @classmethod
    def of(cls, remote: Sequence[ShardFile]) -> RemoteStore:
        """Makes one of files."""
        return cls(tuple(Path(file.url) for file in remote), remote=tuple(remote))

    @property
    def origin(self) -> str:
        """The folder."""
        return self.remote[0].url.rpartition("/")[0]

    def joined(self, others: Sequence[Self]) -> Self:
        """Its files, and after them those of others."""
        remote = tuple(file for each in (self, *others) for file in each.remote)
        return replace(super().joined(others), remote=remote)

    def schema(self) -> pa.Schema:
        """Of the first file."""
        import pyarrow.parquet as pq  # noqa: PLC0415 -- slow to import

        return self._each(pq.read_schema, self.remote[:1])[0]

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of all files, in memory; nothing else of them is fetched."""
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415

        def read(path: str, filesystem: Any) -> pa.ChunkedArray:
            return pq.read_table(path, columns=[name], filesystem=filesystem)[name]

        columns = self._each(read, self.remote)
        chunks = [chunk for column in columns for chunk in column.chunks]
        return pa.chunked_array(chunks, columns[0].type)

    def count(self) -> int:
        """How many rows there are."""
        return sum(self._counts())

    def records(self, column: str, cache: Path) -> RemoteRecords:  # type: ignore[override]
        """The images, each within reach once the copy of its file is made."""
        words = hashlib.sha256(repr(self.words()).encode()).hexdigest()[:32]
        place = cache / "shards" / "sets" / f"{words}-rows.json"
        try:
            counts = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not there yet, or damaged
            counts = self._counts()
            write_json(place, counts)
        ends = tuple(np.cumsum(counts).tolist())
        return RemoteRecords(self.remote, ends, column, copies_in(cache))

    def words(self) -> list[str]:
        """Addresses, sizes and what changes when they do."""
        return [repr(astuple(file)) for file in self.remote]

    def _counts(self) -> list[int]:
        import pyarrow.parquet as pq  # noqa: PLC0415

        def count(path: str, filesystem: Any) -> int:
            return int(pq.read_metadata(path, filesystem=filesystem).num_rows)

        return self._each(count, self.remote)

    def _each(self, do: Callable[..., _T], files: Sequence[ShardFile]) -> list[_T]:
        def one(file: ShardFile) -> _T:
            def attempt() -> _T:
                filesystem, path = arrow_file_system(file.url)
                return do(path, filesystem=filesystem)

            with answering(file.url):
                return again(attempt)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(one, files))


@dataclass(frozen=True)
class RemoteRecords:
    """A column of images in parquet files that lie elsewhere.

    Args:
        files: in order.
        ends: where each ends, in rows of all.
        column: of images: their bytes, or {bytes, path}.
        copies: of the column of each file.
    """

    files: tuple[ShardFile, ...]
    ends: tuple[int, ...]
    column: str
    copies: Copies

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @property
    def shards(self) -> NDArray[np.int64]:
        """Where each file ends, (S,)."""
        return np.array(self.ends, dtype=np.int64)

    @property
    def digest(self) -> str:
        """Changes with the files."""
        return hashlib.sha256(repr((self.files, self.column)).encode()).hexdigest()

    def where(self, number: int) -> str:
        """The file and the row in it."""
        shard, row = self._place(number)
        return f"{self.files[shard].url}, row {row}"

    def content(self, number: int) -> bytes:
        """The bytes of the image file.

        Raises: DataError if it cannot be fetched.
        """
        shard, row = self._place(number)
        return _mapped(self.files[shard], self.column, self.copies).content(row)

    def _place(self, number: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.ends, number, side="right"))
        return shard, number - (self.ends[shard - 1] if shard else 0)


@functools.lru_cache(maxsize=_MAPPED)
def _mapped(file: ShardFile, column: str, copies: Copies) -> Records:
    def write(to: Path) -> None:
        whole = to.with_name(f"{to.name}.parquet")
        try:
            fetch(file, whole)
            copy_column_of(whole, column, to)
        finally:
            whole.unlink(missing_ok=True)

    # Columns may have any name, files may not.
    kind = f"{hashlib.sha256(column.encode()).hexdigest()[:8]}.arrow"
    for attempt in range(1, _TRIES + 1):
        records = Records((str(copies.path(file, kind, write)),), column, "")
        try:
            len(records)  # maps it, so that it stays within reach when it is removed
        except FileNotFoundError:
            if attempt == _TRIES:
                raise
        else:
            return records
    raise AssertionError
