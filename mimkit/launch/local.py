"""Processes of this machine."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from mimkit import locks
from mimkit.errors import RecipeError
from mimkit.launch.base import Ended, Launcher, Task


class LocalLauncher(Launcher):
    """Starts processes on this machine; a job is named by its log.

    Each has a session of its own: Ctrl-C at the terminal reaches the parent alone, and a process
    outlives a killed parent. Its output holds a lock on the log, which lasts as long as it or one
    of its own children lives; so a later parent finds it, and waits until nothing is left of what
    a signal ended. Windows has no such locks: there nothing of an earlier parent is found.
    """

    shares_machine = True
    look_every_seconds = 0.2

    def __init__(
        self, folder: Path | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        for key, value in (options or {}).items():
            raise RecipeError(f"--launcher-set {key}={value}: needs --launcher slurm or ray.")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def submit(self, task: Task) -> str:
        """See `Launcher.submit`."""
        task.log.parent.mkdir(parents=True, exist_ok=True)
        with task.log.open("ab") as file:
            locks.share(file)
            process = subprocess.Popen(
                task.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **task.environment},
                start_new_session=True,
            )
        job = str(task.log.resolve())
        self.processes[job] = process
        return job

    def poll(self, job: str) -> Ended | None:
        """See `Launcher.poll`."""
        process = self.processes.get(job)
        if process is None:
            return None if _is_held(job) else Ended.unseen()
        code = process.poll()
        return None if code is None or (code < 0 and _is_held(job)) else Ended(code)

    def cancel(self, job: str) -> None:
        """See `Launcher.cancel`. Of an earlier parent's process nothing tells which it is."""
        if job in self.processes:
            self.processes[job].terminate()


def _is_held(log: str) -> bool:
    if not Path(log).is_file():
        return False
    with Path(log).open("rb") as file:
        return not locks.share(file)
