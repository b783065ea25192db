"""A training beside the run's own, such as a tokenizer's, that goes on where it was killed."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import torch
from filelock import FileLock, Timeout
from torch import nn

from mimkit.files import sweep
from mimkit.train import checkpoint
from mimkit.train.signals import Interrupted, listen

_LOOK_EVERY_SECONDS: Final = 0.2


class Resumable:
    """A training with checkpoints in a folder of its own, for `Target.prepare`.

    Killed at any moment, the same training in the same folder goes on from its last checkpoint; if
    what a step draws follows from a seed and the step's number alone, it ends with the same
    weights, on one CPU bit for bit. After SIGTERM or SIGINT it finishes the step, writes a
    checkpoint and leaves, as a run does. Processes that ask for one folder at once take turns.

    Inside ``with``, first look whether what is to be made is there already, since another process
    may have made it while this one waited; last write it. Then the folder is removed.

    >>> def fit(folder, say):
    ...     network = torch.nn.Linear(2, 1)
    ...     optimizer = torch.optim.SGD(network.parameters(), 0.1)
    ...     with Resumable(folder, "mine", say, every_steps=10) as training:
    ...         for step in training.steps(0, 25, network, optimizer):
    ...             draws = torch.Generator().manual_seed(step)
    ...             loss = network(torch.randn(4, 2, generator=draws)).square().mean()
    ...             optimizer.zero_grad()
    ...             loss.backward()
    ...             optimizer.step()
    ...         return training.step
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     fit(Path(folder) / "mine-0a1b", print)
    25

    Args:
        folder: for this training and nothing else, named after all that it depends on.
        name: of what is trained, for messages.
        say: receives a line of text for people.
        every_steps: so often a checkpoint is written.

    Attributes:
        step: how many steps it has behind it.
    """

    def __init__(
        self, folder: Path, name: str, say: Callable[[str], None], *, every_steps: int = 100
    ) -> None:
        self.folder = folder
        self.name = name
        self.say = say
        self.every_steps = every_steps
        self.step = 0

    def __enter__(self) -> Self:
        """Waits until no other process is at it, then looks how far it is.

        Raises: Interrupted if a signal came meanwhile; DataError if the folder cannot be used.
        """
        with ExitStack() as stack:
            self._request = stack.enter_context(listen())
            stack.enter_context(self._claimed())
            sweep(self.folder)
            self._found, damaged = checkpoint.find(self.folder)
            if damaged:
                names = " and ".join(map(str, damaged))
                where = "from the start" if self._found is None else "from the one before"
                self.say(f"{self.name}: {names}: this checkpoint is damaged; going on {where}")
            self._before = 0.0
            if self._found is not None:
                self.step = self._found.step
                self._before = float(self._found.state["seconds"])  # type: ignore[arg-type]
                self.say(f"{self.name}: going on at step {self.step:,}")
            self._started = time.perf_counter()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Removes the checkpoints if all went well, else keeps them for the next time.

        Raises: Interrupted if a signal came after the last step.
        """
        with self._stack:
            if error is None:
                for path in self.folder.glob("step_*"):
                    path.unlink()
                with suppress(OSError):  # it may never have come about
                    self.folder.rmdir()
        if error is None and self._request.number is not None:
            raise Interrupted(self._request.number, f"when {self.name} was complete")

    @property
    def seconds(self) -> float:
        """Time spent in it, of all processes one after the other; not the waiting for others.

        What was done after the last checkpoint of a killed process is not known.
        """
        return self._before + time.perf_counter() - self._started

    def steps(
        self, start: int, stop: int, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Iterator[int]:
        """Gives the numbers of the steps that are still to be done, of ``start`` to ``stop - 1``.

        A training in several phases calls it for each of them, one after the other; what lies
        between two phases is done again if `step` is not beyond it.

        Args:
            start: the first step.
            stop: one more than the last.
            module: what a checkpoint holds is loaded into it.
            optimizer: of ``module``'s parameters, and likewise.

        Raises: Interrupted after a signal, with a checkpoint written; DataError if a checkpoint
            does not fit, or cannot be written.
        """
        if self._found is not None and start < self._found.step <= stop:
            advice = f"Remove {self.folder}, then repeat the same command"
            checkpoint.restore(self._found, module, optimizer, advice)
        for step in range(max(start, self.step), stop):
            yield step
            self.step = step + 1
            asked = self._request.number
            if asked is not None or self.step == stop or self.step % self.every_steps == 0:
                state = {"seconds": self.seconds}
                checkpoint.save(self.folder, self.step, module, optimizer, state)
            if asked is not None:
                raise Interrupted(asked, f"after step {self.step} of {self.name}")

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """Keeps other processes out, after waiting for the one that is at it."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder and never removed: who waits for a removed file would wait alone.
        lock = FileLock(self.folder.with_name(f".{self.folder.name}.lock"))
        told = False
        while True:
            try:
                lock.acquire(timeout=_LOOK_EVERY_SECONDS if told else 0)
                break
            except Timeout:
                if not told:
                    self.say(f"{self.name}: another process is training it; waiting for that")
                told = True
            if self._request.number is not None:
                raise Interrupted(self._request.number, f"while waiting for {self.name}")
        try:
            yield
        finally:
            lock.release()
