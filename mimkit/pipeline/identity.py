"""Whether data are still those that a run, or a comparison, was begun with.

``data.json`` holds for each split its fingerprint, how many images it has, and where the cache
keeps their names. Data that were moved have the same fingerprint.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimkit.data.cache import split_folder
from mimkit.data.looking.changes import changes
from mimkit.data.source import Source
from mimkit.errors import DataError
from mimkit.files import write_json
from mimkit.folder import RunFolder


def splits(
    train: Source, test: Source, labelled: tuple[Source, Source] | None
) -> dict[str, Source]:
    """Names the splits of a run."""
    more = {"labelled train": labelled[0], "labelled test": labelled[1]} if labelled else {}
    return {"train": train, "test": test, **more}


def refuse_other_data(folder: RunFolder, sources: Mapping[str, Source]) -> None:
    """Refuses data that are not those that a run was begun with.

    A folder in which nothing was trained or judged yet belongs to none.

    Raises: DataError that names what was added, is gone or was changed.
    """
    differ = other_than_begun(folder, sources)
    if differ and folder.holds_work:
        raise DataError(
            f"{folder.path}: the data must be those that this run was begun with, but {differ}. "
            "Nothing was changed here. Put the data back as they were to go on; or give the new "
            "data a run of their own with --out; or start anew with --fresh, which removes this "
            "run."
        )


def other_than_begun(folder: RunFolder, sources: Mapping[str, Source]) -> str:
    """Says how data differ from those that a run was begun with, or nothing."""
    return other_data(folder.data, sources, _of_ledger(folder.read_ledger()))


def write_data(file: Path, sources: Mapping[str, Source]) -> None:
    """Writes down which data these are, unless it was written before."""
    held = _read(file)
    if held.keys() == sources.keys() and all(_same(held[name], sources[name]) for name in held):
        return  # not to lose which state of the cache it was: these data may only have moved
    write_json(
        file,
        {
            name: {"fingerprint": each.fingerprint, "images": len(each), "key": each.key}
            for name, each in sources.items()
        },
    )


def other_data(
    file: Path, sources: Mapping[str, Source], older: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """Says how data differ from what was written down of them, or nothing.

    Args:
        file: where it was written down.
        sources: the splits by name.
        older: what else is known, if nothing was.
    """
    held = _read(file) or older or {}
    return "; ".join(
        _difference(name, held[name], source)
        for name, source in sources.items()
        if name in held and not _same(held[name], source)
    )


def _same(held: Mapping[str, Any], source: Source) -> bool:
    if held.get("fingerprint") is None:  # an old ledger tells the test split by its number alone
        return held.get("images") == len(source)
    return bool(held["fingerprint"] == source.fingerprint)


def _difference(name: str, held: Mapping[str, Any], source: Source) -> str:
    before, key = held.get("images"), held.get("key")
    count = f"{name} had {before:,} images and has {len(source):,}"
    if not key or not source.key:
        return count
    found = changes(split_folder(str(key)), split_folder(source.key))
    return count if found is None else f"{count}: {found.describe()}"


def _read(file: Path) -> dict[str, dict[str, Any]]:
    if not file.is_file():
        return {}
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): dict(values) for name, values in held.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file}: must be what mimkit wrote, but cannot be read ({error}). Remove it if you "
            "know that the data are the same, then repeat the command."
        ) from error


def _of_ledger(ledger: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the ledger of a run tells that is older than this file."""
    found: dict[str, dict[str, Any]] = {}
    for table, prefix in (("dataset", ""), ("labelled", "labelled ")):
        data = ledger.get(table)
        if isinstance(data, dict) and {"fingerprint", "train_images", "test_images"} <= set(data):
            train = {"fingerprint": data["fingerprint"], "images": data["train_images"]}
            found[f"{prefix}train"] = train
            found[f"{prefix}test"] = {"images": data["test_images"]}
    return found
