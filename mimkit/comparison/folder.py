"""Where everything lies in the folder of a comparison, and the commands that make it."""

from pathlib import Path

from mimkit.folder import RunFolder, is_whole
from mimkit.report.findings import Cell


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
