"""What the tar shards of a split hold: each is gone through once, and what was found is kept."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from mimkit.console import make_console
from mimkit.data.intake.columns import Asked
from mimkit.data.intake.copies import Copies
from mimkit.data.intake.shards import local_path
from mimkit.data.intake.tars import ShardIndex, index_tar, load_index, save_index
from mimkit.data.intake.urls import ShardFile
from mimkit.files import write_json

_FORMAT: Final = 2
"""Rises when what is kept changes, so that old files are no longer found."""
_AT_ONCE: Final = 8
_MANY: Final = 32
"""From so many shards on, a look at them is told."""


@dataclass(frozen=True)
class Summary:
    """What the shards of a split hold, in short.

    Args:
        counts: images of each shard.
        labels: how many images have a label in each field that may hold some.
        masks: how many have a mask.
        known: every field there is, and keys of JSON.
        problems: why a shard ends before it should, by its number.
    """

    counts: tuple[int, ...]
    labels: Mapping[str, int]
    masks: int
    known: tuple[str, ...]
    problems: Mapping[int, str]


@dataclass(frozen=True)
class Found:
    """The shards of one split.

    Args:
        files: in order.
        asked: which fields are asked for.
    """

    files: tuple[ShardFile, ...]
    asked: Asked

    @property
    def digest(self) -> str:
        """Changes with the shards, and with what is asked of them."""
        words: list[Any] = [_FORMAT, self.asked.image, self.asked.label, self.asked.mask]
        words += [astuple(file) for file in self.files]
        return hashlib.sha256(repr(words).encode()).hexdigest()[:32]

    def summary(self, cache: Path) -> Summary:
        """Tells what the shards hold; each is gone through once, also if this is killed.

        Raises: DataError if a shard cannot be fetched, or the cache cannot be written.
        """
        place = cache / "shards" / "sets" / f"{self.digest}.json"
        try:
            kept = json.loads(place.read_text(encoding="utf-8"))
            problems = {int(number): why for number, why in kept["problems"].items()}
            return Summary(
                tuple(kept["counts"]), kept["labels"], kept["masks"], tuple(kept["known"]), problems
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # not there yet, or damaged
        if len(self.files) >= _MANY:
            make_console(stderr=True).print(
                f"looking for images in {len(self.files):,} shards (once)"
            )
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = _summed(pool.map(partial(self.index, cache), self.files))
        write_json(place, asdict(found))
        return found

    def index(self, cache: Path, file: ShardFile) -> ShardIndex:
        """Tells what one shard holds."""
        digest = replace(self, files=(file,)).digest
        place = cache / "shards" / "index" / f"{digest}.npz"
        if (found := load_index(place)) is not None:
            return found
        try:
            with local_path(file, copies_in(cache)).open("rb") as opened:
                found = index_tar(opened, self.asked)
        except OSError as error:
            nothing = np.empty((0, 2), dtype=np.int64)
            why = f"cannot be read: {error.strerror}"
            return ShardIndex((), nothing, nothing, {}, (), why)  # which may go by, so is not kept
        save_index(place, found)
        return found

    def indices(self, cache: Path) -> Iterable[ShardIndex]:
        """Tells what each shard holds, one after the other."""
        return map(partial(self.index, cache), self.files)


def copies_in(cache: Path) -> Copies:
    """The copies of shards in a cache."""
    return Copies(cache / "shards" / "copies")


def _summed(indices: Iterable[ShardIndex]) -> Summary:
    counts: list[int] = []
    labels = Counter[str]()
    masks = 0
    known: dict[str, None] = {}
    problems: dict[int, str] = {}
    for number, index in enumerate(indices):
        counts.append(len(index))
        masks += int((index.masks[:, 1] >= 0).sum())
        known.update(dict.fromkeys(index.known))
        for name, values in index.labels.items():
            labels[name] += sum(value not in (None, "", "-1") for value in values)
        if index.problem:
            problems[number] = index.problem
    return Summary(tuple(counts), dict(labels), masks, tuple(known), problems)
