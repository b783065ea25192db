"""Images in tar shards, each read from where it lies in its shard: none is unpacked."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimkit.data.intake.copies import Copies, fetch, is_packed
from mimkit.data.intake.kept import write_array
from mimkit.data.intake.paths import Paths
from mimkit.data.intake.tars import ShardIndex
from mimkit.data.intake.urls import ShardFile
from mimkit.files import write_atomic

_OPEN: Final = 128
"""So many shards a process keeps open."""
_TRIES: Final = 3


@dataclass(frozen=True)
class Shards:
    """Image files in tar shards; where they lie is written in files, which processes share.

    Args:
        files: the shards, in order.
        place: the folder of the cache that says where images lie.
        copies: of shards that cannot be read where they are.
    """

    files: tuple[ShardFile, ...]
    place: Path
    copies: Copies

    def __len__(self) -> int:
        return len(self._spans)

    @property
    def ends(self) -> NDArray[np.int64]:
        """Where each shard ends, (S,): the number of its last image, plus one."""
        return self._ends

    def where(self, number: int) -> str:
        """The path of the shard, and the name in it."""
        return f"{self._file(number).url}{Paths('', self.place).where(number)}"

    def content(self, number: int) -> bytes:
        """Reads the bytes of an image file.

        Raises: OSError if the shard cannot be read; DataError if it cannot be fetched.
        """
        return self.part(number, self._spans[number])

    def part(self, number: int, span: Sequence[int] | NDArray[np.int64]) -> bytes:
        """Reads what lies at a place of the shard of an image.

        Raises: OSError, DataError as `content`.
        """
        file = self._file(number)
        offset, size = int(span[0]), int(span[1])
        content = _opened(file, self.copies).read(offset, size)
        if len(content) != size:
            raise OSError(errno.EIO, "the shard has become shorter", file.url)
        return content

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "place": self.place, "copies": self.copies}  # not the maps

    def _file(self, number: int) -> ShardFile:
        return self.files[int(np.searchsorted(self._ends, number, side="right"))]

    @cached_property
    def _spans(self) -> NDArray[np.int64]:
        spans: NDArray[np.int64] = np.load(self.place / "spans.npy", mmap_mode="r")
        return spans

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        ends: NDArray[np.int64] = np.load(self.place / "shards.npy")
        return ends


@dataclass(frozen=True)
class ShardMasks:
    """Masks that lie in shards beside their images.

    Args:
        shards: the images.
        digest: changes with the shards.
    """

    shards: Shards
    digest: str

    def where(self, number: int) -> str:
        """Names the image."""
        return f"the mask of {self.shards.where(number)}"

    def content(self, number: int) -> bytes | None:
        """Reads the bytes of a mask's file; None if there is none.

        Raises: OSError, DataError as for images.
        """
        span = self._spans[number]
        return None if span[1] < 0 else self.shards.part(number, span)

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "digest": self.digest}

    @cached_property
    def _spans(self) -> NDArray[np.int64]:
        spans: NDArray[np.int64] = np.load(self.shards.place / "masks.npy", mmap_mode="r")
        return spans


def write_shards(indices: Iterable[ShardIndex], place: Path) -> None:
    """Writes where images lie to a folder of the cache, shard by shard as they come.

    Args:
        indices: of each shard.
        place: the folder.
    """
    place.mkdir(parents=True, exist_ok=True)
    counts: list[int] = []
    with TemporaryDirectory(dir=place) as unfinished, contextlib.ExitStack() as stack:
        paths = {name: Path(unfinished, name) for name in ("names", "ends", "masks", "spans")}
        files = {name: stack.enter_context(path.open("wb")) for name, path in paths.items()}
        end = 0
        for index in indices:
            encoded = [name.encode() for name in index.names]
            ends = end + np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
            end = int(ends[-1]) if len(ends) else end
            counts.append(len(index))
            files["names"].write(b"".join(encoded))
            for name, array in (("ends", ends), ("masks", index.masks), ("spans", index.spans)):
                files[name].write(np.ascontiguousarray(array, np.int64).data)
        stack.close()
        write_atomic(place / "names.bin", partial(_move, paths["names"]))
        for name, shape in (("ends", ()), ("masks", (2,)), ("spans", (2,))):
            finish = partial(_write_int64, paths[name], (sum(counts), *shape))
            write_atomic(place / f"{name}.npy", finish)
    write_array(place / "shards.npy", np.cumsum(counts))


def _move(file: Path, to: Path) -> None:
    file.replace(to)


def _write_int64(content: Path, shape: tuple[int, ...], to: Path) -> None:
    """Writes an array as numpy does, from its bytes in a file."""
    header = {"descr": np.dtype(np.int64).str, "fortran_order": False, "shape": shape}
    with content.open("rb") as source, to.open("wb") as target:
        np.lib.format.write_array_header_1_0(target, header)
        shutil.copyfileobj(source, target)


def local_path(file: ShardFile, copies: Copies) -> Path:
    """Where a shard can be read at any place: where it lies, or where its copy does.

    Raises: DataError if it cannot be fetched.
    """
    if file.is_local and not is_packed(file.url):
        return Path(file.url)
    return copies.path(file, "tar", functools.partial(fetch, file))


class _Open:
    """An open file, closed when nobody reads it any more."""

    def __init__(self, path: Path) -> None:
        self.lock = threading.Lock()
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def read(self, offset: int, size: int) -> bytes:
        if hasattr(os, "pread"):  # which moves nothing that forked processes share
            return os.pread(self.number, size, offset)
        with self.lock:
            os.lseek(self.number, offset, os.SEEK_SET)
            return os.read(self.number, size)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@functools.lru_cache(maxsize=_OPEN)
def _opened(file: ShardFile, copies: Copies) -> _Open:
    for attempt in range(1, _TRIES + 1):
        path = local_path(file, copies)
        try:
            return _Open(path)
        except FileNotFoundError:
            # A copy may make room for another one before it is opened.
            if path == Path(file.url) or attempt == _TRIES:
                raise
    raise AssertionError
