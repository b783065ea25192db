"""What tar shards are called: which belong together, and which are missing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

from mimkit.data.intake.table import Skipped
from mimkit.data.intake.tars import TAR_KINDS
from mimkit.data.intake.urls import ShardFile
from mimkit.data.intake.words import word_in, word_of

_NUMBERED: Final = re.compile(r"(?P<series>.*?)[-_.]?(?P<number>\d+)(?:-of-(?P<count>\d+))?")


def grouped_shards(files: Sequence[ShardFile], origin: str) -> dict[str, tuple[ShardFile, ...]]:
    """Groups shards by what they are called without their number.

    The name of a folder between them and the origin counts where it is a word for a split.
    """
    groups: dict[str, tuple[ShardFile, ...]] = {}
    for file in files:
        path = PurePosixPath(file.url.removeprefix(origin))
        series = _series(path.name)[0]
        above = next((part for part in reversed(path.parts[:-1]) if word_of(part)), None)
        name = series if word_in(series) or above is None else above
        name = name or PurePosixPath(file.url).parent.name
        groups[name] = (*groups.get(name, ()), file)
    return groups


def gaps(files: Sequence[ShardFile]) -> list[Skipped]:
    """Names shards that are missing in the middle of a numbered series, or at its told end."""
    numbers: dict[tuple[str, str, str, str], set[int]] = {}
    widths: dict[tuple[str, str, str, str], set[int]] = {}
    for file in files:
        above, _, name = file.url.rpartition("/")
        series, number, count = _series(name)
        if number:
            # What surrounds the number, so that the name of a missing shard can be told.
            head, _, tail = name[len(series) :].partition(number)
            key = (above, series + head, tail, count)
            numbers.setdefault(key, set()).add(int(number))
            widths.setdefault(key, set()).add(len(number) if number.startswith("0") else 1)
    found = []
    for key, present in numbers.items():
        above, head, tail, count = key
        every = range(int(count)) if count else range(min(present), max(present) + 1)
        missing = [number for number in every if number not in present]
        if len(missing) > len(present) and not count:
            continue  # these numbers count nothing: years, for example
        width = max(widths[key])
        found += [
            Skipped(f"{above}/{head}{number:0{width}}{tail}", "is missing") for number in missing
        ]
    return found


def _series(name: str) -> tuple[str, str, str]:
    """What a shard is called without its number, the number, and how many there should be.

    >>> _series("train-00001-of-00012.tar"), _series("val.tar.gz")
    (('train', '00001', '00012'), ('val', '', ''))
    """
    kind = next(
        kind for kind in sorted(TAR_KINDS, key=len, reverse=True) if name.lower().endswith(kind)
    )
    stem = name[: -len(kind)]
    found = _NUMBERED.fullmatch(stem)
    return (found["series"], found["number"], found["count"] or "") if found else (stem, "", "")
