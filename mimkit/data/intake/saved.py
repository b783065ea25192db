"""Folders written by `datasets`' ``save_to_disk``: Arrow files, mapped as they lie."""

import json
from pathlib import Path
from typing import Any

from mimkit.data.intake.rows import Store
from mimkit.errors import DataError


def saved_splits(folder: Path) -> dict[str, Store] | None:
    """The splits of a saved data set; None if the folder is none.

    Raises: DataError if a file of it is damaged or missing.
    """
    if (folder / "dataset_dict.json").is_file():
        names = _read(folder / "dataset_dict.json").get("splits", [])
        return {str(name): _store(folder / str(name)) for name in names}
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return {"data": _store(folder)}
    return None


def _store(folder: Path) -> Store:
    written = _read(folder / "state.json").get("_data_files", [])
    files = tuple(folder / str(each["filename"]) for each in written)
    missing = [path for path in files if not path.is_file()]
    if missing or not files:
        what = f"'{missing[0].name}' is missing" if missing else "state.json names none"
        raise DataError(
            f"{folder}: must hold the Arrow files that save_to_disk wrote, but {what}. Was it "
            "copied whole?"
        )
    return Store(files, arrow=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: must be what save_to_disk wrote, but: {error}.") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: must be what save_to_disk wrote, but is no JSON object.")
    return found
