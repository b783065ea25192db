"""Running the cells of a comparison: each an ordinary run in its own process."""

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mimkit import locks
from mimkit.evaluate.at_once import process_bytes
from mimkit.launch.base import Launcher, Needs, Task
from mimkit.launch.board import Shown
from mimkit.launch.queue import run
from mimkit.launch.work import Work
from mimkit.ownership import LOCK
from mimkit.report.findings import Cell
from mimkit.study.folder import (
    cell_command,
    failure_file,
    is_finished,
    log_file,
    recipe_path,
    run_folder,
)
from mimkit.study.records import Method, Plan
from mimkit.study.watch import watched


def execute(
    plan: Plan,
    folder: Path,
    *,
    jobs: int,
    launcher: Launcher,
    device: str | None,
    track: Sequence[str] = (),
    console: Console,
) -> None:
    """Runs every cell that is not finished, in the order of the plan (`mimkit.launch.queue.run`).

    One that fails leaves its reason in `failure_file`; the next call tries it again.

    Args:
        plan: what to run; the recipes lie in the folder.
        folder: of the comparison, claimed.
        jobs: how many runs at once.
        launcher: where they run.
        device: of every run; None lets them share the machine's GPUs, or its cores if it has none.
        track: trackers that each run tells of itself.
        console: where to talk.

    Raises: Stopped after a signal, DataError if the disk is full; in both cases all runs have
        been asked to write a checkpoint, and have ended.
    """
    methods = {method.label: method for method in plan.methods}
    finished = {cell for cell in plan.cells if is_finished(cell, folder)}
    run(
        [
            _CellWork(cell, methods[cell.method], folder, device, track)
            for cell in plan.cells
            if cell not in finished
        ],
        [str(cell) for cell in plan.cells if cell in finished],
        folder,
        jobs=jobs,
        launcher=launcher,
        device=device,
        console=console,
    )


class _CellWork(Work):
    """A cell that is not finished."""

    def __init__(
        self, cell: Cell, method: Method, folder: Path, device: str | None, track: Sequence[str]
    ) -> None:
        self.cell = cell
        self.folder = folder
        self.run_folder = run_folder(cell, folder)
        self.total_steps = method.total_steps
        failure = failure_file(cell, folder)
        train = tomllib.loads(recipe_path(folder, method.label).read_text("utf-8"))["train"]
        accumulate = train.get("accumulate", "auto")
        pieces: int = 1 if accumulate == "auto" else accumulate
        _, *arguments = cell_command(cell, folder, device)
        if track:  # no part of what a run is
            arguments += ["--track", ",".join(track)]
        task = Task(
            [sys.executable, "-m", "mimkit", *arguments],  # which starts further processes itself
            log_file(cell, folder),
            Needs(
                train.get("processes", 1),
                process_bytes(method.trial.peak_memory_bytes),
                method.batch_size // pieces,
            ),
            {"MIMKIT_ERROR_FILE": str(failure.resolve())},
        )
        super().__init__(
            str(cell),
            task,
            failure,
            seconds=method.seconds + method.evaluate_seconds,
            fresh=not self.run_folder.exists(),
        )

    def is_finished(self) -> bool:
        return is_finished(self.cell, self.folder)

    def is_claimed(self) -> bool:
        return locks.is_taken(self.run_folder / LOCK)

    def shown(self, log_start: int, left: float | None) -> Shown:
        return watched(
            self.name, self.run_folder, self.task.log, log_start, total=self.total_steps, left=left
        )
