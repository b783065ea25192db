"""A queue: a few pieces of work at once, each a process that is started again where it was killed.

Nothing of it is in memory alone: who calls may be killed at any time, and the same call goes on.
"""

import errno
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rich.console import Console

from mimkit import words
from mimkit.data.workers import SHARE, cores
from mimkit.errors import DataError
from mimkit.files import write_text
from mimkit.launch.base import Ended, Launcher, Needs
from mimkit.launch.board import Board, Shown, makespan
from mimkit.launch.cause import disk_is_full, ended_by, last_words, tail
from mimkit.launch.devices import Gpus, find
from mimkit.launch.work import Work, job_file
from mimkit.train.signals import Interrupted, Request, listen
from mimkit.words import duration

_LOOK_EVERY_SECONDS: Final = 0.2
_RETRIES: Final = 2
"""How often a process that a signal ended is started again by one command."""


class Stopped(Interrupted):
    """It was asked to stop, and its processes have stopped."""

    def __init__(self, number: int, finished: int, total: int) -> None:
        super().__init__(number, f"with {finished} of {total} runs finished")


def run(
    works: Sequence[Work],
    done: Sequence[str],
    folder: Path,
    *,
    jobs: int,
    launcher: Launcher,
    device: str | None,
    console: Console,
) -> None:
    """Does all work, in its order.

    What fails leaves its reason and does not stop the rest. A process that a signal ended is
    started again, at most twice. One that an earlier call submitted, or that someone else has at
    work on the same thing, is waited for.

    Args:
        works: what to do.
        done: names of what is done already.
        folder: on the disk where all is written.
        jobs: how many at once.
        launcher: where they run.
        device: of every one; None lets them share the machine's GPUs, or its cores if it has none.
        console: where to talk.

    Raises: Stopped after a signal, DataError if the disk is full; in both cases all processes
        have been asked to write a checkpoint, and have ended.
    """
    if not works:
        return
    try:
        _Queue(
            works, done, folder, jobs=jobs, launcher=launcher, device=device, console=console
        ).run()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(folder, str(error)) from error
        raise


@dataclass
class _Held:
    """Work in hand.

    Args:
        work: which.
        job: its process, until that has ended.
        adopted: an earlier call submitted that.
        ended: how its last process did.
        retries: how often it was started again.
        started: when it was taken, or its last process was started.
        looked: when its process was looked at.
        log_start: where the output of that process begins.
    """

    work: Work
    job: str | None = None
    adopted: bool = False
    ended: Ended | None = None
    retries: int = 0
    started: float = 0.0
    looked: float = -float("inf")
    log_start: int = 0


class _Queue:
    """See `run`."""

    def __init__(
        self,
        works: Sequence[Work],
        done: Sequence[str],
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
        self.total = len(works) + len(done)
        # By all there is, not by what is left: the number of threads decides the last bits.
        self.jobs = min(jobs, self.total)
        self.gpus = find(device, self.jobs) if launcher.shares_machine else Gpus()
        self.waiting = deque(works)
        self.finished = list(done)
        self.failed: list[str] = []
        self.places: list[_Held | None] = [None] * self.jobs
        self.measured: list[tuple[float, float]] = []  # (seconds taken, seconds expected)
        self.told: set[str] = set()  # of which it was said that they wait for memory
        self.board = Board(self.total, console)

    @property
    def in_hand(self) -> list[_Held]:
        return [held for held in self.places if held is not None]

    def run(self) -> None:
        with listen() as request, self.board:
            try:
                while self.waiting or self.in_hand:
                    self._raise_if_asked(request)
                    for place, held in enumerate(self.places):
                        if held is not None and self._is_done(place, held):
                            self.places[place] = None
                    self._fill()
                    self._show()
                    time.sleep(_LOOK_EVERY_SECONDS)
                self._raise_if_asked(request)
            finally:
                self._stop()

    def _raise_if_asked(self, request: Request) -> None:
        if request.number is not None:
            raise Stopped(request.number, len(self.finished), self.total)

    def _fill(self) -> None:
        """Lets the next take the places that are free, and on whose GPUs they have room."""
        for place, taken in enumerate(self.places):
            if taken is None and self.waiting and self._have_room(place, self.waiting[0]):
                self._take(place, self.waiting.popleft())
        if None in self.places and self.waiting and self.waiting[0].name not in self.told:
            work = self.waiting[0]
            self.told.add(work.name)
            self.board.say(
                f"{work.name}: waits for {words.memory(work.task.needs.gpu_bytes)} of a GPU's "
                "memory, which the runs at work do not leave"
            )

    def _have_room(self, place: int, work: Work) -> bool:
        others = [(at, held.work.task.needs) for at, held in enumerate(self.places) if held]
        return self.gpus.have_room(place, work.task.needs, others)

    def _take(self, place: int, work: Work) -> None:
        file = job_file(work.task.log)
        # Of a process that was there before, only what it says from now on counts.
        held = _Held(work, started=time.monotonic(), log_start=_size(work.task.log))
        self.places[place] = held
        if file.is_file():
            job = file.read_text(encoding="utf-8")
            if self.launcher.poll(job) is None:
                held.job, held.adopted = job, True
            else:
                file.unlink()
        if held.adopted or work.is_claimed():
            self.board.say(f"{work.name}: another process is at work on this run; waiting for it")
        else:
            self._start(place, held)

    def _start(self, place: int, held: _Held) -> None:
        task, failure = held.work.task, held.work.failure
        failure.parent.mkdir(exist_ok=True)
        failure.unlink(missing_ok=True)
        held.log_start = _size(task.log)
        held.started = time.monotonic()
        environment = {**task.environment, **self._share(place, task.needs)}
        held.job = self.launcher.submit(replace(task, environment=environment))
        held.adopted = False
        job_file(task.log).write_text(held.job, encoding="utf-8")

    def _share(self, place: int, needs: Needs) -> dict[str, str]:
        """The part of this machine that is for one process: GPUs of its own, some of the cores."""
        if not self.launcher.shares_machine:
            return {}
        share = {SHARE: str(max(1, cores() // self.jobs))}
        if self.gpus.names:
            return {**share, **self.gpus.environment(place, needs.gpus)}
        if "OMP_NUM_THREADS" in os.environ:
            return share
        return {**share, "OMP_NUM_THREADS": str(max(1, cores() // (self.jobs * needs.gpus)))}

    def _is_done(self, place: int, held: _Held) -> bool:
        """Looks after one piece of work; starts it, or starts it again, where that is due."""
        if held.job is not None:
            if time.monotonic() - held.looked < self.launcher.look_every_seconds:
                return False
            held.looked = time.monotonic()
            held.ended = self.launcher.poll(held.job)
            if held.ended is None:
                return False
            self._forget(held)
            if held.ended.code >= 0 and held.work.is_claimed():
                held.ended = None  # another process was first, so this one was refused
        if held.work.is_finished():
            self._note_finished(held)
            return True
        if held.work.is_claimed():  # also by what is left of a killed process
            return False
        if held.ended is None:
            self._start(place, held)
            return False
        return self._has_failed(place, held, held.ended)

    def _forget(self, held: _Held) -> None:
        job_file(held.work.task.log).unlink(missing_ok=True)
        held.job = None

    def _note_finished(self, held: _Held) -> None:
        work, own = held.work, held.ended is not None and not held.adopted
        self.finished.append(work.name)
        work.failure.unlink(missing_ok=True)
        took = time.monotonic() - held.started
        if own and work.fresh and not held.retries and work.seconds:
            self.measured.append((took, work.seconds))
        left = self._seconds_left()
        self.board.say(
            f"{work.name}: finished ({len(self.finished)} of {self.total}"
            + (f", {duration(took)}" if own else "")
            + (f"; {words.about(left)} left" if left else "")
            + ")"
        )

    def _has_failed(self, place: int, held: _Held, ended: Ended) -> bool:
        """Deals with a process that ended before its work did; returns whether that is final."""
        work, log = held.work, held.work.task.log
        said = f"{tail(log, held.log_start)}\n{ended.reason}"
        signal = ended_by(ended.code, said)
        if signal is not None and held.retries < _RETRIES:
            held.retries += 1
            what = ended.reason or f"killed by {signal.name}"
            self.board.say(f"{work.name}: {what}; it goes on from its last checkpoint")
            self._start(place, held)
            return False
        if work.failure.is_file():
            reason = work.failure.read_text("utf-8")
        else:
            reason = f"{last_words(said)} (exit code {ended.code}; all it said: {log})"
        if signal is not None:
            memory = ", as it happens when memory runs out," if signal.name == "SIGKILL" else ""
            reason = f"killed by {signal.name}{memory} {_RETRIES + 1} times; last words: {reason}"
        elif disk_is_full(reason, self.folder):
            work.failure.unlink(missing_ok=True)
            raise _full(self.folder, f"{work.name}: {reason}")
        write_text(work.failure, reason)
        self.failed.append(work.name)
        self.board.say(f"{work.name}: failed. {reason}", style="red")
        return True

    def _seconds_left(self) -> float | None:
        """Until all is done: as was expected, by the measure of what was done so far."""
        if not all(work.seconds for work in (*(h.work for h in self.in_hand), *self.waiting)):
            return None
        running = [self._left(held) or 0.0 for held in self.in_hand]
        factor = self._factor()
        return makespan(running, [factor * w.seconds for w in self.waiting], self.jobs)

    def _factor(self) -> float:
        """What work has taken over what was expected of it."""
        taken = sum(seconds for seconds, _ in self.measured)
        return taken / sum(seconds for _, seconds in self.measured) if taken else 1.0

    def _left(self, held: _Held) -> float | None:
        if not held.work.seconds:
            return None
        return max(0.0, self._factor() * held.work.seconds - (time.monotonic() - held.started))

    def _show(self) -> None:
        if not self.board.due:
            return
        self.board.show(
            [
                *(self._shown(held) for held in self.in_hand),
                *(Shown(name, "failed") for name in self.failed),
                *(Shown(work.name, "waits") for work in self.waiting),
                *(Shown(name, "finished") for name in self.finished),
            ],
            finished=len(self.finished),
            failed=len(self.failed),
            left=self._seconds_left(),
        )

    def _shown(self, held: _Held) -> Shown:
        if held.job is None or held.adopted:
            return Shown(held.work.name, "waits", doing="another process is at work on it")
        return held.work.shown(held.log_start, self._left(held))

    def _stop(self) -> None:
        """Asks every process to write a checkpoint and leave, and waits until they have.

        An adopted one is asked as well, but not waited for: not every launcher can reach it.
        """
        asked = [held for held in self.in_hand if held.job and not self._has_ended(held)]
        own = [held for held in asked if not held.adopted]
        if own:
            self.board.say(f"stopping: {len(own)} run(s) finish a step and write a checkpoint")
        for held in asked:
            if held.job is not None:
                self.launcher.cancel(held.job)
        while own:
            time.sleep(self.launcher.look_every_seconds)
            own = [held for held in own if not self._has_ended(held)]

    def _has_ended(self, held: _Held) -> bool:
        if held.job is not None and self.launcher.poll(held.job) is not None:
            self._forget(held)
        return held.job is None


def _size(log: Path) -> int:
    return log.stat().st_size if log.is_file() else 0


def _full(folder: Path, what: str) -> DataError:
    return DataError(
        f"{folder}: the disk is full ({what}). Finished runs and the checkpoints of the others are "
        "intact. Free some space, then repeat the same command to go on."
    )
