"""Parquet files as they lie on the Hugging Face Hub or elsewhere: which belong together."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mimkit.errors import DataError

_SHARD: Final = re.compile(r"(?P<split>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})")


def grouped(files: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """Groups files by what they are called, as ``train-00000-of-00002`` or ``train/0000``."""
    found: dict[str, tuple[Path, ...]] = {}
    for path in files:
        shard = _SHARD.match(path.stem)
        name = shard["split"] if shard else path.stem
        name = path.parent.name if name.isdigit() else name
        found[name] = (*found.get(name, ()), path)
    return found


def check_whole(files: Sequence[Path]) -> None:
    """Refuses files that are a part of what they should be, or of more than one thing.

    Raises: DataError if files of a numbered series are missing, or a split lies in two folders.
    """
    folders = sorted({path.parent for path in files})
    if len(folders) > 1:
        raise DataError(
            f"{folders[0].parent}: the parquet files of one split must lie in one folder, but they "
            f"lie in {', '.join(folder.name for folder in folders)}. Give one of these instead."
        )
    series: dict[tuple[str, int], set[int]] = {}
    for path in files:
        if shard := _SHARD.match(path.stem):
            numbers = series.setdefault((shard["split"], int(shard["count"])), set())
            numbers.add(int(shard["number"]))
    for (split, count), numbers in series.items():
        missing = [number for number in range(count) if number not in numbers]
        if missing:
            raise DataError(
                f"{folders[0]}: '{split}' must be {count} parquet files, but {len(missing)} are "
                f"missing, number {missing[0]:05d} first. Was the download interrupted?"
            )
