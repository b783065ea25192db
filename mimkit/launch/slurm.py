"""Jobs in the queue of a Slurm cluster."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from mimkit.errors import RecipeError
from mimkit.launch.base import Ended, Launcher, Task

if TYPE_CHECKING:
    import submitit

_ASK_EVERY_SECONDS: Final = 10.0
_MINUTES: Final = 240
_REQUEUES: Final = 1000
_ENDED: Final = frozenset(
    (
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
        "gone",
    )
)
"""States of squeue in which a job will not go on; "gone": it is not listed any more."""


class SlurmLauncher(Launcher):
    """Puts processes into the queue of a Slurm cluster, by submitit (the extra ``slurm``).

    A job is killed when its time is over; before that its process is asked for a checkpoint, and
    the job goes back into the queue. A job is named by its number in the queue.

    Args:
        folder: for submitit's files; one that all machines of the cluster see.
        options: of sbatch by submitit's names, such as ``{"partition": "gpu", "time": "240",
            "gpus_per_node": "1", "cpus_per_task": "8", "mem": "32GB"}``; time, in minutes, is 240
            if not given.
        cluster: "slurm", or "local", submitit's imitation of a cluster on this machine.

    Raises: RecipeError if submitit or Slurm is missing, or an option is unknown.
    """

    def __init__(self, folder: Path, options: Mapping[str, str], cluster: str = "slurm") -> None:
        try:
            import submitit  # noqa: PLC0415 -- an extra
        except ImportError as error:
            raise RecipeError(
                "--launcher slurm: needs submitit, which is not installed. "
                "Install it with: pip install 'mimkit[slurm]'"
            ) from error
        try:
            self.executor = submitit.AutoExecutor(
                folder, cluster=cluster, slurm_max_num_timeout=_REQUEUES
            )
            self.executor.update_parameters(
                name="mimkit",
                timeout_min=_MINUTES,
                **{f"slurm_{key}": _number(value) for key, value in options.items()},
            )
        except (RuntimeError, NameError, AssertionError, TypeError, ValueError) as error:
            raise RecipeError(f"--launcher slurm: {error}") from error
        self.job_class = submitit.SlurmJob if cluster == "slurm" else submitit.LocalJob
        self.folder = folder
        self.jobs: dict[str, submitit.Job[int]] = {}
        self.known_since: dict[str, float] = {}
        self.queue = Queue()

    def submit(self, task: Task) -> str:
        """See `Launcher.submit`."""
        task.log.parent.mkdir(parents=True, exist_ok=True)
        job = self.executor.submit(Follower(task))
        self._keep(job)
        return job.job_id

    def poll(self, job: str) -> Ended | None:
        """See `Launcher.poll`.

        The file of its result is looked for. A job that was cancelled in the queue, or lost with
        its machine, writes none; that it has ended is told by the queue, asked twice.
        """
        if not job.isdecimal():
            return Ended.unseen()
        known = self._job(job)
        with contextlib.suppress(OSError):
            os.listdir(self.folder)  # so that a network's file system looks anew
        if not known.paths.result_pickle.exists():
            return self.queue.ended(job, self.known_since[job])
        if known.exception() is None:
            return Ended(known.result())
        return Ended(-signal.SIGKILL, f"job {job} of the cluster failed")

    def cancel(self, job: str) -> None:
        """See `Launcher.cancel`."""
        self._job(job).cancel(check=False)

    def _job(self, job: str) -> "submitit.Job[int]":
        if job not in self.jobs:  # of an earlier caller
            self._keep(self.job_class(self.folder, job))
        return self.jobs[job]

    def _keep(self, job: "submitit.Job[int]") -> None:
        self.jobs[job.job_id] = job
        self.known_since[job.job_id] = time.monotonic()


class Queue:
    """What Slurm says of this user's jobs, asked now and then for all of them together.

    It asks ``squeue``: clusters without accounting have no ``sacct``, which submitit asks.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[float, dict[str, str]]] = []  # when asked, and states of jobs
        self.asked = -float("inf")

    def ended(self, job: str, known_since: float) -> Ended | None:
        """Says of a job without a result how it ended; None if it waits, runs, or nothing tells.

        The file of a result may come later than the end, so two answers in a row must tell it.
        """
        if time.monotonic() - self.asked >= _ASK_EVERY_SECONDS:
            self._ask()
        states = [found.get(job, "gone") for at, found in self.answers if at >= known_since]
        if len(states) < 2 or not _ENDED.issuperset(states):
            return None
        # What the cluster ends, by its limits or with a machine, is like a process that was killed.
        return Ended(-signal.SIGKILL, f"job {job} of the cluster ended as {states[-1]}")

    def _ask(self) -> None:
        self.asked = time.monotonic()
        answer = subprocess.run(
            ["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%A %T"],
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode:
            self.answers = []
            return
        states = dict(line.split()[:2] for line in answer.stdout.splitlines() if line.strip())
        self.answers = [*self.answers[-1:], (self.asked, states)]


class Follower:
    """What a job of the cluster does: runs a command and passes signals on to it."""

    def __init__(self, task: Task) -> None:
        self.task = replace(task, log=task.log.resolve())
        self.process_id: int | None = None

    def __call__(self) -> int:
        """Runs the command; returns its exit code."""
        with self.task.log.open("ab") as file:
            process = subprocess.Popen(
                self.task.command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.task.environment},
                start_new_session=True,
            )
        self.process_id = process.pid
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        code = process.wait()
        self.process_id = None
        return code

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """Is called by submitit when the time of the job is nearly over."""
        from submitit.helpers import DelayedSubmission  # noqa: PLC0415 -- an extra

        self._pass_on(signal.SIGTERM, None)
        if self.process_id is not None:
            # Not process.wait(): this runs in a signal's handler, amid the wait of __call__.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.process_id, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Follower(self.task))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self.process_id is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process_id, signal.SIGTERM)


def _number(value: str) -> Any:
    return int(value) if value.isdigit() else value
