"""Which folders are mimkit's: those that it marked when it made them, and nothing else.

Nothing is written into, and nothing removed from, a folder that is somebody else's. In its own
folders mimkit removes only what it wrote there, by name.
"""

import json
import shutil
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import importlib_metadata

from mimkit.errors import DataError
from mimkit.files import make_folder, reading, write_json, writing

Kind = Literal["run", "comparison", "shards"]

MARKER: Final = ".mimkit"
LOCK: Final = ".lock"
_COMMANDS: Final[dict[Kind, str]] = {
    "run": "mimkit run",
    "comparison": "mimkit compare",
    "shards": "mimkit pack",
}
_SHOWN: Final = 5


def kind_of(folder: Path) -> Kind | None:
    """Returns what mimkit made a folder for; None if it did not make it.

    The folders of versions that did not mark them are known by what only they hold: a recipe that
    mimkit wrote out, beside a checkpoint or the results of a training; or the plan of a comparison.

    Raises: DataError if the folder cannot be read.
    """
    with reading(folder):
        if marked := _read(folder / MARKER):
            return next((kind for kind in _COMMANDS if kind == marked.get("kind")), None)
        if is_written_out(folder / "recipe.toml") and (
            any("sha256" in _read(path) for path in (folder / "checkpoints").glob("step_*.json"))
            or ("mimkit" in _read(folder / "ledger.json") and (folder / "encoder.json").is_file())
        ):
            return "run"
        return "comparison" if {"mimkit", "methods"} <= _read(folder / "plan.json").keys() else None


def is_written_out(recipe: Path) -> bool:
    """Whether mimkit wrote a recipe out in full, so that nobody's own work is in it."""
    try:
        origin = tomllib.loads(recipe.read_text(encoding="utf-8")).get("origin")
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False
    return isinstance(origin, dict) and "mimkit" in origin


def refuse_foreign(folder: Path, kind: Kind) -> None:
    """Refuses a folder that mimkit must not write into.

    Raises: DataError if it is a file, holds something and was not made by mimkit, or was made for
        something else.
    """
    with reading(folder):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise DataError(f"{folder}: must be a folder, but is a file. Name another with --out.")
        # A kill may have come before the marker had its name.
        half_made = {path.name for path in folder.glob(f".{MARKER}.*.tmp")}
        held = sorted({path.name for path in folder.iterdir()} - half_made - {LOCK})
    if not held:
        return
    found = kind_of(folder)
    if found == kind:
        return
    if found is not None:
        raise DataError(
            f"{folder}: must be a folder of {_COMMANDS[kind]}, but was made by {_COMMANDS[found]}. "
            "Nothing was changed in it. Name another with --out."
        )
    raise DataError(
        f"{folder}: must be empty or made by {_COMMANDS[kind]}, but holds {shown(held)}. Nothing "
        "was changed in it. Name another folder with --out."
    )


def claim(folder: Path, kind: Kind) -> None:
    """Makes a folder and marks it as mimkit's.

    Raises: DataError as `refuse_foreign`, or if it cannot be written.
    """
    refuse_foreign(folder, kind)
    make_folder(folder)
    if not (folder / MARKER).is_file():
        write_json(folder / MARKER, {"kind": kind, "mimkit": importlib_metadata.version("mimkit")})


def remove(folder: Path, patterns: Iterable[str]) -> list[str]:
    """Removes what matches; returns what is left, but for lock and marker, by name.

    Args:
        folder: one of mimkit's own.
        patterns: of files and folders in it, such as ``"pictures/*.png"``. The folders that they
            name go too once they are empty.
    """
    patterns = list(patterns)
    above = {folder / Path(pattern).parent for pattern in patterns} - {folder}
    left = []
    with writing(folder):
        for path in [path for pattern in patterns for path in folder.glob(pattern)]:
            _remove(path)
        for path in folder.iterdir():
            if path in above and path.is_dir():
                if inner := sorted(path.iterdir()):
                    left += [f"{path.name}/{each.name}" for each in inner]
                elif not path.is_symlink():
                    path.rmdir()
            elif path.name not in (LOCK, MARKER):
                left.append(path.name)
    return sorted(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def shown(names: Sequence[str]) -> str:
    """Names the first few, and says how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _read(file: Path) -> dict[str, Any]:
    """Reads a JSON object; what is none counts as empty."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
