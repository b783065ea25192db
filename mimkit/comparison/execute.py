"""Running the cells of a comparison: a few at once, each an ordinary run in its own process."""

import errno
import os
import sys
import time
import tomllib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from mimkit import locks, ownership, words
from mimkit.comparison.board import Board, Shown, makespan
from mimkit.comparison.cause import disk_is_full, ended_by, last_words, tail
from mimkit.comparison.devices import Gpus, Need, find
from mimkit.comparison.folder import (
    cell_command,
    failure_file,
    is_finished,
    log_file,
    recipe_path,
    run_folder,
)
from mimkit.comparison.launchers import Job, Launcher
from mimkit.comparison.records import Plan
from mimkit.comparison.watch import watched
from mimkit.data.workers import SHARE, cores
from mimkit.errors import DataError
from mimkit.files import write_text, writing
from mimkit.ownership import LOCK
from mimkit.report.findings import Cell
from mimkit.train.distributed import torchrun
from mimkit.train.signals import Interrupted, Request, listen
from mimkit.words import duration

_LOOK_EVERY_SECONDS: Final = 0.2
_RETRIES: Final = 2
"""How often a run that a signal ended is started again by one command."""


class Stopped(Interrupted):
    """The comparison was asked to stop, and its runs have stopped."""

    def __init__(self, number: int, finished: int, total: int) -> None:
        super().__init__(number, f"with {finished} of {total} runs finished")


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


def execute(
    plan: Plan,
    folder: Path,
    *,
    jobs: int,
    launcher: Launcher,
    device: str | None,
    console: Console,
) -> None:
    """Runs every cell that is not finished, in the order of the plan.

    One that fails leaves its reason in `failure_file` and does not stop the others; the next call
    tries it again. One that a signal ended is started again, at most twice. One that a process of
    an earlier call is still at work on is waited for.

    Args:
        plan: what to run; the recipes lie in the folder.
        folder: of the comparison, claimed.
        jobs: how many runs at once.
        launcher: where they run.
        device: of every run; None lets them share the machine's GPUs, or its cores if it has none.
        console: where to talk.

    Raises: Stopped after a signal, DataError if the disk is full; in both cases all runs have
        been asked to write a checkpoint, and have ended.
    """
    queue = _Queue(plan, folder, jobs=jobs, launcher=launcher, device=device, console=console)
    if not queue.waiting:
        return
    try:
        queue.run()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(folder, str(error)) from error
        raise


@dataclass
class _Work:
    """A cell in hand.

    Args:
        cell: which.
        need: of GPUs, where there are any.
        fresh: nothing of it was done before.
        seconds: that it should take.
        job: its process, while that runs.
        code: how its process ended.
        retries: how often it was started again.
        started: when it was taken, or its last process was started.
        log_start: where the output of that process begins.
        told: whether it was said that it waits for memory.
    """

    cell: Cell
    need: Need
    fresh: bool
    seconds: float
    job: Job | None = None
    code: int | None = None
    retries: int = 0
    started: float = 0.0
    log_start: int = 0
    told: bool = False


class _Queue:
    """All cells that are not finished; see `execute`."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        *,
        jobs: int,
        launcher: Launcher,
        device: str | None,
        console: Console,
    ) -> None:
        assert jobs >= 1
        self.folder = folder
        self.launcher = launcher
        self.device = device
        self.total = len(plan.cells)
        # By the plan, not by what is left of it: the number of threads decides the last bits.
        self.jobs = min(jobs, self.total)
        self.gpus = find(device, self.jobs) if launcher.shares_machine else Gpus()
        expected = {m.label: m.seconds + m.evaluate_seconds for m in plan.methods}
        needs = {m.label: Need.of(m.trial, _processes(m.label, folder)) for m in plan.methods}
        self.waiting = deque(
            _Work(
                cell,
                needs[cell.method],
                fresh=not run_folder(cell, folder).exists(),
                seconds=expected[cell.method],
            )
            for cell in plan.cells
            if not is_finished(cell, folder)
        )
        waiting = {work.cell for work in self.waiting}
        self.finished_cells = [str(cell) for cell in plan.cells if cell not in waiting]
        self.steps = {method.label: method.total_steps for method in plan.methods}
        self.failed: list[str] = []
        self.places: list[_Work | None] = [None] * self.jobs
        self.measured: list[tuple[float, float]] = []  # (seconds taken, seconds expected)
        self.board = Board(self.total, console)

    @property
    def finished(self) -> int:
        return len(self.finished_cells)

    @property
    def in_hand(self) -> list[_Work]:
        return [work for work in self.places if work is not None]

    def run(self) -> None:
        with listen() as request, self.board:
            try:
                while self.waiting or self.in_hand:
                    self._raise_if_asked(request)
                    for place, work in enumerate(self.places):
                        if work is not None and self._is_done(place, work):
                            self.places[place] = None
                    self._fill()
                    self._show()
                    time.sleep(_LOOK_EVERY_SECONDS)
                self._raise_if_asked(request)
            finally:
                self._stop()

    def _raise_if_asked(self, request: Request) -> None:
        if request.number is not None:
            raise Stopped(request.number, self.finished, self.total)

    def _fill(self) -> None:
        """Lets the next runs take the places that are free, and on whose GPUs they have room."""
        for place, taken in enumerate(self.places):
            if taken is None and self.waiting:
                others = [(at, work.need) for at, work in enumerate(self.places) if work]
                if self.gpus.have_room(place, self.waiting[0].need, others):
                    self._take(place, self.waiting.popleft())
        if None in self.places and self.waiting and not self.waiting[0].told:
            work = self.waiting[0]
            work.told = True
            self.board.say(
                f"{work.cell}: waits for {words.memory(work.need.bytes_each)} of a GPU's memory, "
                "which the runs at work do not leave"
            )

    def _take(self, place: int, work: _Work) -> None:
        self.places[place] = work
        work.started = time.monotonic()
        if self._is_occupied(work.cell):
            self.board.say(f"{work.cell}: another process is at work on this run; waiting for it")
        else:
            self._start(place, work)

    def _start(self, place: int, work: _Work) -> None:
        log = log_file(work.cell, self.folder)
        failure = failure_file(work.cell, self.folder)
        failure.parent.mkdir(exist_ok=True)
        failure.unlink(missing_ok=True)
        work.log_start = log.stat().st_size if log.is_file() else 0
        work.started = time.monotonic()
        processes = work.need.processes
        _, *arguments = cell_command(work.cell, self.folder, self.device)
        plain = [sys.executable, "-m", "mimkit", *arguments]
        work.job = self.launcher.start(
            torchrun(processes, arguments) if processes > 1 else plain,
            log=log,
            environment={
                "MIMKIT_ERROR_FILE": str(failure.resolve()),
                **self._share(place, processes),
            },
        )

    def _share(self, place: int, processes: int) -> dict[str, str]:
        """The part of this machine that is for one run: GPUs of its own, and some of the cores."""
        if not self.launcher.shares_machine:
            return {}
        share = {SHARE: str(max(1, cores() // self.jobs))}
        if self.gpus.names:
            return {**share, **self.gpus.environment(place, processes)}
        if "OMP_NUM_THREADS" in os.environ:
            return share
        return {**share, "OMP_NUM_THREADS": str(max(1, cores() // (self.jobs * processes)))}

    def _is_done(self, place: int, work: _Work) -> bool:
        """Looks after one cell; starts it, or starts it again, where that is due."""
        if work.job is not None:
            work.code = work.job.poll()
            if work.code is None:
                return False
            work.job = None
            if work.code >= 0 and _is_claimed(run_folder(work.cell, self.folder)):
                work.code = None  # another process was first, so this one was refused
        if is_finished(work.cell, self.folder):
            self._note_finished(work)
            return True
        if self._is_occupied(work.cell):  # also by what is left of a killed process
            return False
        if work.code is None:
            self._start(place, work)
            return False
        return self._has_failed(place, work, work.code)

    def _is_occupied(self, cell: Cell) -> bool:
        return self.launcher.busy(log_file(cell, self.folder)) or _is_claimed(
            run_folder(cell, self.folder)
        )

    def _note_finished(self, work: _Work) -> None:
        self.finished_cells.append(str(work.cell))
        failure_file(work.cell, self.folder).unlink(missing_ok=True)
        took = time.monotonic() - work.started
        if work.fresh and work.code is not None and not work.retries and work.seconds:
            self.measured.append((took, work.seconds))
        left = self._seconds_left()
        self.board.say(
            f"{work.cell}: finished ({self.finished} of {self.total}"
            + (f", {duration(took)}" if work.code is not None else "")
            + (f"; about {duration(left)} left" if left else "")
            + ")"
        )

    def _has_failed(self, place: int, work: _Work, code: int) -> bool:
        """Deals with a process that ended before its run did; returns whether that is final."""
        log = log_file(work.cell, self.folder)
        said = tail(log, work.log_start)
        ended = ended_by(code, said)
        if ended is not None and work.retries < _RETRIES:
            work.retries += 1
            self.board.say(
                f"{work.cell}: killed by {ended.name}; it goes on from its last checkpoint"
            )
            self._start(place, work)
            return False
        failure = failure_file(work.cell, self.folder)
        if failure.is_file():
            reason = failure.read_text("utf-8")
        else:
            reason = f"{last_words(said)} (exit code {code}; all it said: {log})"
        if ended is not None:
            memory = ", as it happens when memory runs out," if ended.name == "SIGKILL" else ""
            reason = f"killed by {ended.name}{memory} {_RETRIES + 1} times; last words: {reason}"
        elif disk_is_full(reason, self.folder):
            failure.unlink(missing_ok=True)
            raise _full(self.folder, f"{work.cell}: {reason}")
        write_text(failure, reason)
        self.failed.append(str(work.cell))
        self.board.say(f"{work.cell}: failed. {reason}", style="red")
        return True

    def _seconds_left(self) -> float | None:
        """Until all is done: as the plan expects, by the measure of what was run so far."""
        works = [*self.in_hand, *self.waiting]
        if not all(work.seconds for work in works):
            return None
        running = [self._left(work) or 0.0 for work in self.in_hand]
        factor = self._factor()
        return makespan(running, [factor * w.seconds for w in self.waiting], self.jobs)

    def _factor(self) -> float:
        """What a run has taken over what the plan expects."""
        taken = sum(seconds for seconds, _ in self.measured)
        return taken / sum(seconds for _, seconds in self.measured) if taken else 1.0

    def _show(self) -> None:
        if not self.board.due:
            return
        self.board.show(
            [
                *(self._shown(work) for work in self.in_hand),
                *(Shown(cell, "failed") for cell in self.failed),
                *(Shown(str(w.cell), "waits") for w in self.waiting),
                *(Shown(cell, "finished") for cell in self.finished_cells),
            ],
            finished=self.finished,
            failed=len(self.failed),
            left=self._seconds_left(),
        )

    def _shown(self, work: _Work) -> Shown:
        name = str(work.cell)
        if work.job is None:
            return Shown(name, "waits", doing="another process is at work on it")
        return watched(
            name,
            run_folder(work.cell, self.folder),
            log_file(work.cell, self.folder),
            work.log_start,
            total=self.steps[work.cell.method],
            left=self._left(work),
        )

    def _left(self, work: _Work) -> float | None:
        if not work.seconds:
            return None
        return max(0.0, self._factor() * work.seconds - (time.monotonic() - work.started))

    def _stop(self) -> None:
        """Asks every process to write a checkpoint and leave, and waits until they have."""
        jobs = [work.job for work in self.in_hand if work.job is not None]
        jobs = [job for job in jobs if job.poll() is None]
        if not jobs:
            return
        self.board.say(f"stopping: {len(jobs)} run(s) finish a step and write a checkpoint")
        for job in jobs:
            job.stop()
        while any(job.poll() is None for job in jobs):
            time.sleep(_LOOK_EVERY_SECONDS)


def _processes(method: str, folder: Path) -> int:
    """How many processes the recipe of a method asks for."""
    recipe = tomllib.loads(recipe_path(folder, method).read_text("utf-8"))
    processes: int = recipe["train"].get("processes", 1)
    return processes


def _is_claimed(path: Path) -> bool:
    """Whether a process writes into a run folder."""
    return locks.is_taken(path / LOCK)


def _full(folder: Path, what: str) -> DataError:
    return DataError(
        f"{folder}: the disk is full ({what}). Finished runs and the checkpoints of the others are "
        "intact. Free some space, then repeat the same command to go on."
    )
