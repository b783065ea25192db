"""Where everything lies in the folder of a comparison, and the commands that make it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mimkit import locks, ownership
from mimkit.errors import DataError
from mimkit.files import writing
from mimkit.folder import RunFolder, is_whole
from mimkit.ownership import LOCK
from mimkit.report.findings import Cell


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Keeps the folder of a comparison for this process, as long as it lives.

    Raises: DataError if it is not a comparison's, cannot be written, or another process has it.
    """
    ownership.claim(folder, "comparison")
    with writing(folder / LOCK):
        file = locks.take(folder / LOCK)
    if file is None:
        raise DataError(
            f"{folder}: another mimkit compare is at work in this folder, process "
            f"{locks.owner(folder / LOCK)}. Wait until it ends, or choose another folder with "
            "--out."
        )
    with file:
        yield


def default_folder(references: Sequence[str], dataset: str | None) -> Path:
    """Where a comparison lies if the user does not say."""
    names = [Path(name).stem for name in (*references, *([dataset] if dataset else []))]
    return Path("comparisons") / "-".join(names)


def recipe_path(folder: Path, label: str) -> Path:
    """Where the whole recipe of a method lies."""
    return folder / "recipes" / f"{label}.toml"


def run_folder(cell: Cell, folder: Path) -> Path:
    """Where the run of a cell lies."""
    return folder / "runs" / cell.method / str(cell.seed)


def log_file(cell: Cell, folder: Path) -> Path:
    """Where the output of a cell's processes lies, one after the other."""
    return folder / "logs" / f"{cell.method}-{cell.seed}.log"


def failure_file(cell: Cell, folder: Path) -> Path:
    """Where it lies why a cell has failed; there is none if it has not."""
    return folder / "failed" / f"{cell.method}-{cell.seed}.txt"


def cell_command(cell: Cell, folder: Path, device: str | None = None) -> list[str]:
    """The command line that makes the run of a cell, or goes on with it."""
    recipe, runs = recipe_path(folder, cell.method), folder / "runs"
    command = ["mimkit", "run", str(recipe), "--seed", str(cell.seed), "--out", str(runs)]
    return command if device is None else [*command, "--device", device]


def is_finished(cell: Cell, folder: Path) -> bool:
    """Whether the run of a cell has been trained and evaluated."""
    return is_whole(RunFolder(run_folder(cell, folder)).read_ledger())
