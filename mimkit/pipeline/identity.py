"""Whether data are still those that a run, or a comparison, was begun with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mimkit.data.cache import split_folder
from mimkit.data.changes import changes
from mimkit.data.sources import Source
from mimkit.errors import DataError
from mimkit.files import write_json
from mimkit.report.folder import RunFolder

FILE: Final = "data.json"
"""Of a run folder and a comparison's: for each split its fingerprint, how many images it has, and
where the cache keeps their names. Data that were moved have the same fingerprint."""


def splits(
    train: Source, test: Source, labelled: tuple[Source, Source] | None
) -> dict[str, Source]:
    """Names the splits of a run."""
    more = {"labelled train": labelled[0], "labelled test": labelled[1]} if labelled else {}
    return {"train": train, "test": test, **more}


def keep_data(folder: RunFolder, sources: Mapping[str, Source]) -> None:
    """Writes down which data a run folder belongs to; refuses others than it was begun with.

    A folder in which nothing was trained or judged yet belongs to none.

    Raises: DataError if images were added, taken away or changed since.
    """
    file = folder.path / FILE
    begun = (
        folder.results.is_file()
        or (folder.path / "encoder.json").is_file()
        or any(folder.checkpoints.glob("step_*.json"))
    )
    held = _read(file) or _of_ledger(folder.read_ledger())
    if begun and held:
        refuse_others(
            held,
            sources,
            f"{folder.path}: the data must be those that this run was begun with",
            "Nothing was changed here. Put the data back as they were to go on; or give the new "
            "data a run of their own with --out; or start anew with --fresh, which removes this "
            "run.",
        )
    if not begun or not file.is_file():
        write_data(file, sources)


def write_data(
    file: Path, sources: Mapping[str, Source], earlier: Mapping[str, Any] | None = None
) -> None:
    """Writes down which data these are, beside what is known of others."""
    known = {
        name: {"fingerprint": each.fingerprint, "images": len(each), "key": each.key}
        for name, each in sources.items()
    }
    write_json(file, {**(earlier or {}), **known})


def keep_data_of_all(
    file: Path, sources: Mapping[str, Source], *, begun: bool, folder: Path
) -> None:
    """Does for a comparison what `keep_data` does for a run.

    Args:
        file: where it is written down.
        sources: the splits by name.
        begun: whether the comparison has a plan.
        folder: of the comparison.

    Raises: DataError if images were added, taken away or changed since.
    """
    held = _read(file)
    if begun and held:
        refuse_others(
            held,
            sources,
            f"{folder}: the data must be those that this comparison was begun with",
            "Nothing was changed here. Put the data back as they were to go on, or compare on the "
            "new data in another folder with --out.",
        )
    write_data(file, sources, held)


def refuse_others(
    held: Mapping[str, Mapping[str, Any]], sources: Mapping[str, Source], what: str, advice: str
) -> None:
    """Compares data with what was written down of them.

    Raises: DataError that names what was added, is gone or was changed.
    """
    differ = [
        _difference(name, held[name], source)
        for name, source in sources.items()
        if name in held and not _same(held[name], source)
    ]
    if differ:
        raise DataError(f"{what}, but: {'; '.join(differ)}. {advice}")


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
