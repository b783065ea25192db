"""Measuring the methods of a plan: each in a process of its own, as its runs will be."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol, TypeVar
from unittest.mock import patch

import torch
from rich.console import Console

from mimkit.console import headed, make_console
from mimkit.data.workers import cores
from mimkit.errors import MimkitError, RecipeError, in_one_line
from mimkit.files import write_text
from mimkit.recipe.schema import Recipe, resolved
from mimkit.study import measuring
from mimkit.study.records import Trial
from mimkit.study.server import START, serve
from mimkit.train.signals import Interrupted, listen

_LOOK_EVERY_SECONDS: Final = 0.2

One = TypeVar("One")
Other = TypeVar("Other")


def threads(jobs: int) -> int:
    """CPU threads of one run among ``jobs``."""
    return max(1, cores() // jobs)


class Gauge(Protocol):
    """Measures recipes."""

    def measure(self, recipe: Recipe, label: str) -> tuple[Trial, dict[str, Any]]:
        """Gives what a method costs, and the other figures of `mimkit.study.measuring`.

        Raises: RecipeError if it cannot be run; Interrupted after a signal.
        """

    def map(self, do: Callable[[One], Other], methods: Iterable[One]) -> list[Other]:
        """Does the same for every method, at once where that is right."""


class Thorough:
    """Prepares the targets, and keeps what it measured in the folder of the comparison.

    Args:
        folder: of the comparison.
        device: where to compute, or None.
        jobs: runs at once.
        console: is told of what is measured and prepared.
    """

    def __init__(self, folder: Path, device: str | None, jobs: int, console: Console) -> None:
        self.folder = folder
        self.device = device
        self.jobs = jobs
        self.console = console

    def measure(self, recipe: Recipe, label: str) -> tuple[Trial, dict[str, Any]]:
        """Measures a recipe, or finds that it was."""
        text = resolved(recipe)
        trials = self.folder / "trials"
        held, file = trials / f"{label}.toml", trials / f"{label}.json"
        if file.is_file() and held.is_file() and held.read_text(encoding="utf-8") == text:
            return measuring.read_trial(file)
        file.unlink(missing_ok=True)
        write_text(held, text)
        self.console.print(headed("trial", label))
        command = [sys.executable, "-m", "mimkit.study.measuring", str(held), str(file)]
        code, message = _call(
            command + ([self.device] if self.device else []),
            {"OMP_NUM_THREADS": str(threads(self.jobs)), **os.environ},
            label,
        )
        if code or not file.is_file():
            if code != 2:  # not in words for people: keep the last line of the traceback
                message = f"its trial failed: {message.splitlines()[-1] if message else 'killed'}"
            raise RecipeError(f"compare, method '{label}': {message}")
        return measuring.read_trial(file)

    def map(self, do: Callable[[One], Other], methods: Iterable[One]) -> list[Other]:
        """One after the other: of several that need the same tokenizer the first makes it."""
        return [do(method) for method in methods]


class Pooled:
    """Measures in processes that are kept ready, several at once.

    Args:
        pool: of processes, that measure.
    """

    def __init__(self, pool: Executor) -> None:
        self.pool = pool

    def ask(self, label: str, do: Callable[..., One], *arguments: Any) -> One:
        """Calls a function in another process.

        Raises: RecipeError that names the method, whatever it raises.
        """
        try:
            return self.pool.submit(do, *arguments).result()
        except MimkitError as error:
            raise RecipeError(f"compare, method '{label}': {error}") from error
        except BrokenProcessPool as error:
            raise RecipeError(f"compare, method '{label}': its trial was killed.") from error
        except Exception as error:  # of a plugin
            raise RecipeError(
                f"compare, method '{label}': its trial failed: {in_one_line(error)}"
            ) from error

    def map(self, do: Callable[[One], Other], methods: Iterable[One]) -> list[Other]:
        """All at once; of processes there are as many as of runs."""
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as waiting:
            return list(waiting.map(do, methods))


class Rehearsed(Pooled):
    """Measures without preparing anything and without leaving anything, several at once.

    Args:
        pool: of processes, that measure.
        device: where to compute, or None.
        jobs: runs at once.
    """

    def __init__(self, pool: Executor, device: str | None, jobs: int) -> None:
        super().__init__(pool)
        self.device = device
        self.jobs = jobs

    def measure(self, recipe: Recipe, label: str) -> tuple[Trial, dict[str, Any]]:
        """Measures a recipe in another process."""
        found = self.ask(label, _rehearse, recipe, self.device, threads(self.jobs))
        return Trial(**found.pop("trial")), found


@contextmanager
def rehearsing(device: str | None, jobs: int) -> Iterator[Rehearsed]:
    """Keeps processes ready that measure, until leaving."""
    with measurers(_at_once(device, jobs)) as pool:
        yield Rehearsed(pool, device, jobs)


@contextmanager
def measurers(number: int) -> Iterator[Executor]:
    """Keeps so many processes ready that have imported everything, until leaving."""
    serve()
    context = multiprocessing.get_context(START)
    # Else they would import, and so run, the script from which all this was called.
    nobody = patch.dict(sys.modules, {"__main__": ModuleType("__main__")})
    with nobody, ProcessPoolExecutor(number, context, max_tasks_per_child=1) as pool:
        yield pool


def _at_once(device: str | None, jobs: int) -> int:
    """Runs share the cores of a CPU, but no GPU: there each is measured alone."""
    on_gpu = torch.cuda.is_available() if device is None else device.startswith("cuda")
    return 1 if on_gpu else jobs


def _rehearse(recipe: Recipe, device: str | None, num_threads: int) -> dict[str, Any]:
    torch.set_num_threads(num_threads)
    return measuring.measure(recipe, device, make_console(quiet=True), rehearsed=True)


def _call(command: list[str], environment: dict[str, str], label: str) -> tuple[int, str]:
    """Runs a trial. It may train a tokenizer for hours, so a signal is passed on: it keeps that.

    Returns: the exit code, and what it wrote to the standard error.
    Raises: Interrupted after a signal, when the trial has ended.
    """
    asked = False
    with (
        listen() as request,
        # A session of its own: Ctrl-C comes to it from here alone, once.
        subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process,
    ):
        while True:
            with suppress(subprocess.TimeoutExpired):
                _, said = process.communicate(timeout=_LOOK_EVERY_SECONDS)
                break
            if request.number is not None and not asked:
                process.send_signal(request.number)
                asked = True
    if request.number is not None:
        raise Interrupted(request.number, f"while the trial of {label} was at work")
    return process.returncode, said.strip()
