"""Where the processes of a comparison run: on this machine, or in the queue of a cluster."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Protocol

from mimkit import locks, ownership
from mimkit.data.workers import cores
from mimkit.errors import RecipeError

if TYPE_CHECKING:
    import submitit

_LOOK_EVERY_SECONDS: Final = 2.0
_ASK_EVERY_SECONDS: Final = 10.0
_MINUTES: Final = 240
_REQUEUES: Final = 1000


class Job(Protocol):
    """One started process."""

    def poll(self) -> int | None:
        """Returns its exit code, ``-number`` if a signal ended it, None while it runs."""

    def stop(self) -> None:
        """Asks it to write a checkpoint and leave, and does not wait for that."""


class Launcher(Protocol):
    """Starts processes.

    Args:
        shares_machine: whether they run on this machine, whose GPUs and cores must be divided.
    """

    shares_machine: bool

    def start(self, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> Job:
        """Starts a process.

        Args:
            command: program and arguments.
            log: file to which its output is appended.
            environment: variables beside those of this process.
        """

    def busy(self, log: Path) -> bool:
        """Whether a process that was started earlier still writes this log, or waits to."""


class LocalLauncher:
    """Starts processes on this machine.

    Each has a session of its own: Ctrl-C at the terminal reaches the parent alone, and a process
    outlives a killed parent. Its output holds a lock on the log, which lasts as long as it or one
    of its own children lives; so a later parent finds it. (On Windows, which has no such locks, it
    finds the run's own.)
    """

    shares_machine = True

    def start(self, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> Job:
        """See `Launcher.start`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            locks.share(file)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        return _LocalJob(process)

    def busy(self, log: Path) -> bool:
        """See `Launcher.busy`."""
        if not log.exists():
            return False
        with log.open("rb") as file:
            return not locks.share(file)


class _LocalJob:
    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        self.process.terminate()


class SlurmLauncher:
    """Puts processes into the queue of a Slurm cluster, by submitit (the extra ``slurm``).

    A job is killed when its time is over; before that the run is asked for a checkpoint, and the
    job goes back into the queue. The id of a job lies beside its log, so that a later parent does
    not queue it twice. The folder of the comparison must be one that all machines of the cluster
    see.

    Args:
        folder: for submitit's files.
        options: of sbatch by submitit's names, such as ``{"partition": "gpu", "time": "240",
            "gpus_per_node": "1", "cpus_per_task": "8", "mem": "32GB"}``; time, in minutes, is 240
            if not given.
        cluster: "slurm", or "local", submitit's imitation of a cluster on this machine.

    Raises: RecipeError if submitit or Slurm is missing, or an option is unknown.
    """

    shares_machine = False

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

    def start(self, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> Job:
        """See `Launcher.start`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        job = self.executor.submit(_Task(command, log, environment))
        _id_file(log).write_text(job.job_id, encoding="utf-8")
        return _SlurmJob(job, log)

    def busy(self, log: Path) -> bool:
        """See `Launcher.busy`."""
        if not _id_file(log).is_file():
            return False
        job_id = _id_file(log).read_text(encoding="utf-8")
        return not self.job_class(self.folder, job_id).done()


class _SlurmJob:
    """A job in the queue.

    Its result file is looked for every other second. Once the job is to stop, the queue is asked
    as well, because a job that never started writes no result; otherwise submitit asks now and
    then.
    """

    def __init__(self, job: "submitit.Job[int]", log: Path) -> None:
        self.job = job
        self.log = log
        self.looked = self.asked = -float("inf")
        self.stopping = False

    def poll(self) -> int | None:
        now = time.monotonic()
        if now - self.looked < _LOOK_EVERY_SECONDS:
            return None
        self.looked = now
        ask = self.stopping and now - self.asked >= _ASK_EVERY_SECONDS
        if ask:
            self.asked = now
        if not self.job.done(force_check=ask):
            return None
        _id_file(self.log).unlink(missing_ok=True)
        if self.job.paths.result_pickle.exists() and self.job.exception() is None:
            return self.job.result()
        # What the cluster ends, by its limits or with a machine, is tried again like a killed run.
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"job {self.job.job_id} of the cluster ended as {self.job.state}\n")
        return -signal.SIGKILL

    def stop(self) -> None:
        self.stopping = True
        self.job.cancel(check=False)


class _Task:
    """What a job of the cluster does: runs a command and passes signals on to it."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.command = list(command)
        self.log = log.resolve()
        self.environment = dict(environment)
        self.process_id: int | None = None

    def __call__(self) -> int:
        """Runs the command; returns its exit code."""
        with self.log.open("ab") as file:
            process = subprocess.Popen(
                self.command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
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
        return DelayedSubmission(_Task(self.command, self.log, self.environment))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self.process_id is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process_id, signal.SIGTERM)


def _id_file(log: Path) -> Path:
    return log.with_suffix(".job")


def _number(value: str) -> Any:
    return int(value) if value.isdigit() else value


def make_launcher(name: str, folder: Path, options: Sequence[str]) -> Launcher:
    """Makes the launcher that the command line names.

    Args:
        name: "local" or "slurm".
        folder: of the comparison.
        options: ``KEY=VALUE`` for Slurm.

    Raises: RecipeError if an option is not of that form, or is given without Slurm; DataError if
        the folder is not a comparison's.
    """
    pairs = [option.partition("=") for option in options]
    if wrong := [key for key, equals, value in pairs if not (key and equals and value)]:
        raise RecipeError(f"--slurm {wrong[0]}: must be KEY=VALUE, such as partition=gpu.")
    if name == "slurm":
        ownership.claim(folder, "comparison")  # submitit makes its own folder in it at once
        return SlurmLauncher(folder / "slurm", {key: value for key, _, value in pairs})
    if pairs:
        raise RecipeError(f"--slurm {options[0]}: needs --launcher slurm.")
    return LocalLauncher()


def default_jobs(device: str | None) -> int:
    """Runs at once if the user does not say: one a GPU, or on the CPU one a core, up to eight."""
    import torch  # noqa: PLC0415 -- a job of a cluster loads this file and needs no torch

    if device in (None, "cuda") and torch.cuda.is_available():
        return torch.cuda.device_count()
    return 1 if device and device.startswith("cuda") else min(8, cores())
