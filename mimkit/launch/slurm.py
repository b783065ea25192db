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
        self.asked: dict[str, float] = {}  # of those that were cancelled: when the queue was asked

    def submit(self, task: Task) -> str:
        """See `Launcher.submit`."""
        task.log.parent.mkdir(parents=True, exist_ok=True)
        job = self.executor.submit(Follower(task))
        self.jobs[job.job_id] = job
        return job.job_id

    def poll(self, job: str) -> Ended | None:
        """See `Launcher.poll`.

        The file of its result is looked for. Of a job that was cancelled the queue is asked too,
        because one that never started writes no result; otherwise submitit asks now and then.
        """
        if not job.isdecimal():
            return Ended.unseen()
        known = self._job(job)
        ask = job in self.asked and time.monotonic() - self.asked[job] >= _ASK_EVERY_SECONDS
        if ask:
            self.asked[job] = time.monotonic()
        if not known.done(force_check=ask):
            return None
        if known.paths.result_pickle.exists() and known.exception() is None:
            return Ended(known.result())
        # What the cluster ends, by its limits or with a machine, is like a process that was killed.
        return Ended(-signal.SIGKILL, f"job {job} of the cluster ended as {known.state}")

    def cancel(self, job: str) -> None:
        """See `Launcher.cancel`."""
        self.asked[job] = -float("inf")
        self._job(job).cancel(check=False)

    def _job(self, job: str) -> "submitit.Job[int]":
        if job not in self.jobs:  # of an earlier caller
            self.jobs[job] = self.job_class(self.folder, job)
        return self.jobs[job]


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
