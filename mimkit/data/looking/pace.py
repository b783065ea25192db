"""Telling how far a long look at many images is, how fast it goes and when it ends."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from rich import progress as bars
from rich.console import Console

_PATIENT_SECONDS: Final = 300
"""A look that takes longer is worth the hint that it can be left out."""


class Pace:
    """A bar on a terminal, elsewhere a plain line now and then.

    Args:
        task: what is done, for people.
        total: how many images.
        done: how many of them an earlier call has done.
        console: where to talk.
        hint: said once, if it takes minutes.
        every_seconds: least time between two plain lines.
        clock: gives seconds.
    """

    def __init__(
        self,
        task: str,
        total: int,
        done: int,
        console: Console,
        *,
        hint: str = "",
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.task, self.total, self.console, self.hint = task, total, console, hint
        self.before = self.done = done
        self.every_seconds, self.clock = every_seconds, clock
        self.bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TaskProgressColumn(),
            bars.TextColumn("{task.fields[rate]}"),
            bars.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )

    def __enter__(self) -> Self:
        """Starts the clock."""
        self.started = self.last = self.clock()
        self.bar.start()
        self.row = self.bar.add_task(self.task, total=self.total, completed=self.done, rate="")
        if not self.console.is_terminal:
            going_on = f", going on after {self.before:,}" if self.before else ""
            self._say(f"{self.task}{going_on}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Takes the bar away."""
        self.bar.stop()

    def advance(self, count: int) -> None:
        """Notes that ``count`` more images are done."""
        self.done += count
        now = self.clock()
        rate = (self.done - self.before) / max(now - self.started, 1e-9)
        left = (self.total - self.done) / rate
        self.bar.update(self.row, completed=self.done, rate=f"{rate:,.0f} images/s")
        if now - self.last < self.every_seconds or self.done >= self.total:
            return
        self.last = now
        if not self.console.is_terminal:
            share = 100 * self.done / self.total
            remaining = f"{left / 60:,.0f} min" if left >= 90 else f"{left:.0f} s"
            self._say(f"  {share:.0f} %, {rate:,.0f} images/s, about {remaining} left")
        if self.hint and left > _PATIENT_SECONDS:
            self._say(f"  {self.hint}")
            self.hint = ""

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
