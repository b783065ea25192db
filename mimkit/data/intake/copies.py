"""Copies of shards on this machine's disk, no more of them than there is room for.

Shards that lie elsewhere, or must be unpacked to be read at any place, are copied when an image of
them is first asked for. All processes share the copies; those used longest ago make room.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock

from mimkit.data.intake.answering import answering
from mimkit.data.intake.urls import ShardFile, again, download
from mimkit.errors import DataError
from mimkit.files import make_folder, write_atomic, writing

LIMIT: Final = "MIMKIT_CACHE_GB"
"""Environment variable: how much disk copies of shards may take, in units of 10^9 bytes."""
_LOCKS: Final = 256
_CHUNK: Final = 2**16


@dataclass(frozen=True)
class Copies:
    """The copies in a folder of the cache.

    Args:
        folder: where they lie.
    """

    folder: Path

    def path(self, file: ShardFile, kind: str, write: Callable[[Path], None]) -> Path:
        """Returns where the copy of a file lies, making it first where there is none.

        It may be removed at any time, to make room for another; who has opened it keeps it.

        Args:
            file: of which.
            kind: what of it, which is the ending of the copy's name.
            write: writes the copy to a path.

        Raises: DataError if it cannot be fetched or written.
        """
        words = f"{file.url}\0{file.size}\0{file.stamp}\0{kind}"
        name = hashlib.sha256(words.encode()).hexdigest()[:32]
        place = self.folder / f"{name}.{kind}"
        if _used(place):
            return place
        make_folder(self.folder)
        # A few locks for all files: one for each would stay behind for ever.
        with FileLock(self.folder / f".{int(name[:8], 16) % _LOCKS}.lock"):
            if not _used(place):  # by another process, while this one waited
                self._make_room(max(file.size, 0))
                write_atomic(place, write)
                self._make_room(0, place)
        return place

    def _make_room(self, size: int, just_made: Path | None = None) -> None:
        """Removes what was used longest ago, until so many bytes more are within the limit."""
        with writing(self.folder):
            held: list[tuple[int, int, str]] = []
            for entry in os.scandir(self.folder):
                with contextlib.suppress(FileNotFoundError):  # removed by another process
                    status = entry.stat()
                    if not entry.name.startswith("."):
                        held.append((status.st_mtime_ns, status.st_size, entry.path))
            total = sum(size for _, size, _ in held)
            limit = limit_bytes(self.folder, total)
            for _, own, path in sorted(held):
                if total + size <= limit:
                    break
                # On Windows what is open cannot be removed.
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    if path != str(just_made):
                        os.remove(path)
                        total -= own


def limit_bytes(folder: Path, used: int) -> int:
    """How many bytes copies may take: ``$MIMKIT_CACHE_GB``, or half of what the disk could give.

    Args:
        folder: where they lie.
        used: how many bytes they take now.

    Raises: DataError if the variable is no number above 0.
    """
    said = os.environ.get(LIMIT)
    if not said:
        return (shutil.disk_usage(folder).free + used) // 2
    try:
        limit = int(float(said) * 10**9)
    except (ValueError, OverflowError):
        limit = 0
    if limit <= 0:
        raise DataError(f"{LIMIT}: must be a number above 0, in GB of disk, but is '{said}'.")
    return limit


def fetch(file: ShardFile, to: Path) -> None:
    """Copies a shard, unpacked if its name says that it is packed with gzip.

    Raises: DataError if it cannot be fetched, after some tries, or written.
    """
    if file.is_local:
        _unpack(Path(file.url), to)
        return
    came = to.with_name(f"{to.name}.gz") if is_packed(file.url) else to
    with answering(file.url):
        again(lambda: download(file, came))
    if came != to:
        try:
            _unpack(came, to)
        finally:
            came.unlink()


def _unpack(packed: Path, to: Path) -> None:
    # What is cut or damaged is kept as far as it goes: the shard's index tells where it ends.
    incomplete = contextlib.suppress(EOFError, zlib.error, gzip.BadGzipFile)
    with gzip.open(packed) as source, to.open("wb") as target, incomplete:
        shutil.copyfileobj(source, target, _CHUNK)


def _used(place: Path) -> bool:
    """Whether a copy is there; notes that it is used."""
    try:
        os.utime(place)
    except FileNotFoundError:
        return False
    except PermissionError:  # somebody else's, in a cache that is shared
        return True
    return True


def is_packed(name: str) -> bool:
    """Whether a shard must be unpacked before it can be read at any place.

    >>> is_packed("a.tar.gz"), is_packed("a.tar")
    (True, False)
    """
    return name.lower().endswith("gz")
