"""What a queue is given: things to finish, and where they keep what the next caller must know."""

from abc import ABC, abstractmethod
from pathlib import Path

from mimkit.launch.base import Task
from mimkit.launch.board import Shown


class Work(ABC):
    """One thing to finish, in as many processes as it takes, one after the other.

    Args:
        name: for people.
        task: the process that begins it or goes on with it.
        failure: file for the reason why it failed; the process may write it itself.
        seconds: that it should take; 0 if nothing tells.
        fresh: nothing of it was done before.
    """

    def __init__(
        self, name: str, task: Task, failure: Path, *, seconds: float, fresh: bool
    ) -> None:
        self.name = name
        self.task = task
        self.failure = failure
        self.seconds = seconds
        self.fresh = fresh

    @abstractmethod
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""

    @abstractmethod
    def is_claimed(self) -> bool:
        """Whether some process is at work on it, whoever started that."""

    @abstractmethod
    def shown(self, log_start: int, left: float | None) -> Shown:
        """Makes its row on the board while its process is at work.

        Args:
            log_start: where the output of this process begins in the log.
            left: seconds until it ends, if anything tells.
        """


def job_file(log: Path) -> Path:
    """Where the name of the job lies that writes a log, until its end has been seen."""
    return log.with_suffix(".job")
