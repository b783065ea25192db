"""Packing a data set into tar shards, as it lies: no image is decoded, every byte is kept.

Shards are written one after the other and noted in a journal, so that packing goes on after a
kill; each is read again before it counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from mimkit import locks, ownership
from mimkit.console import headed, make_console
from mimkit.data.cache import folder as cache_folder
from mimkit.data.intake.locate import Wanted, locate, registered
from mimkit.data.intake.shard_listing import CLASSES, MASK_CLASSES
from mimkit.data.intake.table import Listing, Table
from mimkit.data.intake.tar_writer import TarWriter, key_of, kind_of, verify
from mimkit.data.looking.pace import Pace
from mimkit.data.registered import Split
from mimkit.errors import DataError
from mimkit.files import sha256, write_atomic, write_text, writing

JOURNAL: Final = "shards.jsonl"
SUMS: Final = "SHA256SUMS"
_AT_ONCE: Final = 8
_AHEAD: Final = 64


@dataclass(frozen=True)
class Written:
    """A shard that was written and read again.

    Args:
        file: its name.
        split: whose images it holds.
        first: the first row of the split.
        stop: the row after its last.
        bytes: its size.
        sha256: of the shard.
        unread: images that could not be read, and why; they are left out.
    """

    file: str
    split: Split
    first: int
    stop: int
    bytes: int
    sha256: str
    unread: dict[str, str] = field(default_factory=dict)


def pack(
    name: str,
    out: Path,
    *,
    path: str | None = None,
    labels: str | None = None,
    shard_bytes: int = 128 * 10**6,
) -> list[Written]:
    """Writes both splits of a data set to tar shards, or goes on with that.

    Args:
        name: of the data set, as ``data.name`` has it.
        out: the folder of shards.
        path: where to look for the data first.
        labels: a table of files and labels.
        shard_bytes: a shard ends with the image that makes it as large.

    Returns: all shards, of earlier calls too.
    Raises: DataError if the data cannot be found or read, or the folder holds something else.
    """
    dataset = registered(name)
    if dataset is not None and dataset.drawing is not None:
        raise DataError(f"pack: '{name}' is drawn, so there are no files of it to pack.")
    wanted = Wanted("FOLDER", name, path, dataset, cache=cache_folder(), labels=labels)
    listings = locate(wanted)
    ownership.claim(out, "shards")
    with writing(out):
        lock = locks.take(out / ownership.LOCK)
    if lock is None:
        raise DataError(
            f"{out}: another mimkit pack is at work in this folder, process "
            f"{locks.owner(out / ownership.LOCK)}. Wait until it ends, or name another with --out."
        )
    with lock:
        tables = {split: listing.read(cache_folder()) for split, listing in listings.items()}
        return _Packing(out, listings, tables, shard_bytes).run()


class _Packing:
    def __init__(
        self,
        out: Path,
        listings: Mapping[Split, Listing],
        tables: Mapping[Split, Table],
        shard_bytes: int,
    ) -> None:
        self.out, self.listings, self.tables = out, listings, tables
        self.shard_bytes = shard_bytes
        source: dict[str, Any] = {split: listing.stamp for split, listing in listings.items()}
        self.written = _begun(out, {**source, "shard_bytes": shard_bytes})

    def run(self) -> list[Written]:
        _write_names(
            self.out / CLASSES, next((t.classes for t in self.tables.values() if t.classes), ())
        )
        masks = next((listing.mask_names for listing in self.listings.values()), None)
        _write_names(self.out / MASK_CLASSES, masks or ())
        total = sum(map(len, self.tables.values()))
        # A shard that is gone or has another size is written once more, with the same rows.
        lost = [each for each in self.written if _size(self.out / each.file) != each.bytes]
        done = sum(each.stop - each.first for each in self.written if each not in lost)
        with Pace(f"packing {total:,} images", total, done, make_console(stderr=True)) as pace:
            for each in lost:
                again = self._shard(each.split, each.file, each.first, each.stop, pace)
                self.written[self.written.index(each)] = again
                self._note(again)
            for split, table in self.tables.items():
                mine = [each for each in self.written if each.split == split]
                row, number = (mine[-1].stop if mine else 0), len(mine)
                while row < len(table):
                    shard = self._shard(split, f"{split}-{number:06d}.tar", row, None, pace)
                    self._note(shard)
                    self.written.append(shard)
                    row, number = shard.stop, number + 1
        sums = sorted(f"{each.sha256}  {each.file}\n" for each in self.written)
        write_text(self.out / SUMS, "".join(sorted(sums, key=lambda line: line.split()[1])))
        self._tell()
        return self.written

    def _shard(self, split: Split, name: str, first: int, stop: int | None, pace: Pace) -> Written:
        """Writes the rows from ``first`` on, to ``stop`` or until the shard is large enough."""
        table = self.tables[split]
        unread: dict[str, str] = {}
        path = self.out / name
        made: list[Any] = [first, ""]

        def write(temporary: Path) -> None:
            digests = []
            with TarWriter(temporary) as tar:
                for row, content in _contents(table, first, stop or len(table)):
                    made[0] = row + 1
                    if isinstance(content, OSError):
                        unread[table.where(row)] = content.strerror or str(content)
                    else:
                        tar.add(self._files(table, row, content))
                        digests.append(hashlib.sha256(content).digest())
                    pace.advance(1)
                    if stop is None and tar.size >= self.shard_bytes:
                        break
            verify(temporary, path, digests)
            made[1] = sha256(temporary)

        write_atomic(path, write)
        last, digest = made
        return Written(name, split, first, int(last), _size(path), str(digest), unread)

    def _files(self, table: Table, row: int, content: bytes) -> Iterator[tuple[str, bytes]]:
        where = table.where(row)
        key = key_of(row, where)
        yield f"{key}.{kind_of(where, content)}", content
        if table.labels is not None and table.labels[row] >= 0:
            yield f"{key}.cls", str(table.labels[row]).encode()
        if table.masks is not None:
            mask = table.masks.content(int(table.rows[row]))
            if mask is not None:
                kind = kind_of(table.masks.where(int(table.rows[row])), mask)
                yield f"{key}.mask.{kind}", mask

    def _note(self, shard: Written) -> None:
        journal = self.out / JOURNAL
        with writing(journal), journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(shard)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _tell(self) -> None:
        console = make_console()
        counts = dict.fromkeys(self.tables, 0)
        for each in self.written:
            counts[each.split] += each.stop - each.first - len(each.unread)
        images = " and ".join(f"{count:,} {split}" for split, count in counts.items())
        size = sum(each.bytes for each in self.written) / 10**6
        said = f"{images} images in {len(self.written):,} shards, {size:,.1f} MB, in {self.out}"
        unread = [item for each in self.written for item in each.unread.items()]
        if unread:
            many = (
                "image cannot be read and is"
                if len(unread) == 1
                else "images cannot be read and are"
            )
            said += f"\n{len(unread):,} {many} left out; the first: {' '.join(unread[0])}"
        console.print(
            headed("packed", f"{said}\nTo use them: data.name = '{self.out}'"), soft_wrap=True
        )


def _begun(out: Path, source: dict[str, Any]) -> list[Written]:
    """Reads the journal of an earlier call, or begins one.

    Raises: DataError if other data were packed, or with shards of another size.
    """
    journal = out / JOURNAL
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else []
    entries = [entry for line in lines if (entry := _entry(line)) is not None]
    if not entries:
        write_text(journal, json.dumps(source) + "\n")
        return []
    if entries[0] != source:
        what = "its images or labels have changed"
        if {**entries[0], "shard_bytes": 0} == {**source, "shard_bytes": 0}:
            what = f"its shards are of {entries[0]['shard_bytes'] // 10**6:,} MB"
        raise DataError(
            f"{out}: must hold shards of the same data, but {what}. Name another folder with --out."
        )
    if not lines[-1] or _entry(lines[-1]) is None:  # a line that was cut
        write_text(journal, "".join(json.dumps(entry) + "\n" for entry in entries))
    found = {entry["file"]: Written(**entry) for entry in entries[1:]}  # the later one counts
    return list(found.values())


def _entry(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _contents(table: Table, first: int, stop: int) -> Iterator[tuple[int, bytes | OSError]]:
    """Reads images some ahead, since many small files wait for the disk most of the time."""

    def read(row: int) -> bytes | OSError:
        try:
            return table.content(row)
        except OSError as error:
            return error

    waiting: deque[tuple[int, Future[bytes | OSError]]] = deque()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for row in range(first, stop):
            waiting.append((row, pool.submit(read, row)))
            if len(waiting) > _AHEAD:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()


def _write_names(path: Path, names: tuple[str, ...]) -> None:
    if odd := [name for name in names if name.splitlines() != [name]]:
        raise DataError(
            f"{path}: must have the name of a class in each line, but a class is called "
            f"{odd[0]!r}. Rename it."
        )
    if names:
        write_text(path, "".join(f"{name}\n" for name in names))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
