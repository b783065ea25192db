"""What a launcher is: it starts processes somewhere, and a later process finds them again.

A package adds one by an entry point of the group ``mimkit.launchers``, a subclass of `Launcher`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, cast

from mimkit.errors import RecipeError
from mimkit.recipe import registry


@dataclass(frozen=True)
class Needs:
    """What a process needs.

    >>> Needs(gpus=2)
    Needs(gpus=2, gpu_bytes=0, shares=1)

    Args:
        gpus: how many, where it is to run on some.
        gpu_bytes: of memory on each of them; 0 if nothing tells.
        shares: into how many equal parts its work can be cut. The same command may be started
            several times at once, with the variables that torchrun sets, if their number divides
            this.
    """

    gpus: int = 1
    gpu_bytes: int = 0
    shares: int = 1


@dataclass(frozen=True)
class Task:
    """A process to start.

    >>> Task(["true"], Path("a.log")).needs.gpus
    1

    Args:
        command: program and arguments.
        log: file to which its output is appended; its folder may have to be made.
        needs: what it needs. A launcher with a scheduler behind it hands this on.
        environment: variables beside those of this process.
    """

    command: Sequence[str]
    log: Path
    needs: Needs = Needs()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    >>> Ended(0)
    Ended(code=0, reason='')

    Args:
        code: its exit code; ``-number`` if a signal ended it.
        reason: what the launcher knows of it and the log does not tell, in words; else "".
    """

    code: int
    reason: str = ""

    @classmethod
    def unseen(cls) -> "Ended":
        """Stands for an end that nobody saw; like every killed process it is tried again.

        >>> Ended.unseen().code
        -9
        """
        return cls(-9, "it ended while nobody looked")


class Launcher(ABC):
    """Starts processes, tells when they have ended, and asks them to end.

    A job is known by a text that another process understands too: who called may be killed, and
    the jobs are found again by its successor.

    >>> import subprocess
    >>> class Blocking(Launcher):
    ...     def __init__(self, folder, options):
    ...         self.codes = {}
    ...     def submit(self, task):
    ...         self.codes[str(task.log)] = subprocess.call(task.command)
    ...         return str(task.log)
    ...     def poll(self, job):
    ...         return Ended(self.codes[job]) if job in self.codes else Ended.unseen()
    ...     def cancel(self, job):
    ...         pass
    >>> launcher = Blocking(Path("."), {})
    >>> launcher.poll(launcher.submit(Task(["true"], Path("a.log"))))
    Ended(code=0, reason='')

    Args:
        folder: for the launcher's own files.
        options: what the command line says to it, ``KEY=VALUE``; whatever it does not know, it
            refuses with a `mimkit.RecipeError`.
    """

    shares_machine: ClassVar[bool] = False
    """Whether jobs run on this machine, whose GPUs and cores the caller then divides among them."""
    look_every_seconds: ClassVar[float] = 2.0
    """How long the caller waits between two looks at a job."""

    @abstractmethod
    def __init__(self, folder: Path, options: Mapping[str, str]) -> None:
        """See the class."""

    @abstractmethod
    def submit(self, task: Task) -> str:
        """Starts a process, or puts it into a queue; returns the name of the job."""

    @abstractmethod
    def poll(self, job: str) -> Ended | None:
        """Says how a job ended; None while it waits or runs.

        Args:
            job: may have been submitted by a process that is no more; `Ended.unseen` is then
                an answer, as it is for a job of which nothing is known.
        """

    @abstractmethod
    def cancel(self, job: str) -> None:
        """Asks a job to leave, by SIGTERM, so that it can write a checkpoint; does not wait."""


def make(name: str, folder: Path, options: Sequence[str]) -> Launcher:
    """Makes the launcher that the command line names.

    Args:
        name: as it is registered, such as "local" or "slurm".
        folder: for its files.
        options: ``KEY=VALUE``.

    Raises: RecipeError if an option is not of that form or unknown, PluginError if there is no
        such launcher.
    """
    pairs = [option.partition("=") for option in options]
    if wrong := [key for key, equals, value in pairs if not (key and equals and value)]:
        raise RecipeError(f"--launcher-set {wrong[0]}: must be KEY=VALUE, such as partition=gpu.")
    kind = cast(type[Launcher], registry.load(registry.find("launchers", name)))
    return kind(folder, {key: value for key, _, value in pairs})
