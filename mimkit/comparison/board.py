"""What a person sees while the cells of a comparison run."""

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mimkit.train.trial import duration

_REFRESH_SECONDS: Final = 0.5


@dataclass(frozen=True)
class Running:
    """A cell that runs.

    Args:
        name: of the cell.
        seconds: since it was started.
        doing: last line of its log.
    """

    name: str
    seconds: float
    doing: str


class Board:
    """Shows how many cells are finished, run and have failed, and how long the rest will take.

    On a terminal that is a few lines at the bottom; elsewhere only what `say` prints.

    Args:
        total: number of cells.
        console: where to show it.
    """

    def __init__(self, total: int, console: Console) -> None:
        self.total = total
        self.console = console
        self.live = Live(console=console, auto_refresh=False, transient=True)
        self.started = self.shown = time.monotonic()

    def __enter__(self) -> Self:
        """Starts the clock."""
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Takes the lines at the bottom away."""
        self.live.stop()

    @property
    def due(self) -> bool:
        """Whether it is time for `show`."""
        return self.live.is_started and time.monotonic() - self.shown >= _REFRESH_SECONDS

    def show(
        self, running: Sequence[Running], *, finished: int, failed: int, left: float | None
    ) -> None:
        """Draws the lines at the bottom.

        Args:
            running: now.
            finished: how many cells are.
            failed: how many cells have.
            left: seconds until all is done; None if nothing tells.
        """
        self.shown = time.monotonic()
        head = f"{finished} of {self.total} runs finished"
        head += f", {failed} failed" if failed else ""
        head += f"  {duration(self.shown - self.started)}"
        head += f", about {duration(left)} left" if left is not None else ""
        page, rows = Table.grid(expand=True), Table.grid(padding=(0, 2))
        rows.add_column(no_wrap=True)
        rows.add_column(no_wrap=True, justify="right")
        rows.add_column(no_wrap=True, overflow="ellipsis", style="dim")
        for cell in running:
            rows.add_row(Text(cell.name), duration(cell.seconds), Text(cell.doing))
        page.add_row(Text(head))
        page.add_row(ProgressBar(total=self.total, completed=finished + failed))
        page.add_row(rows)
        self.live.update(page, refresh=True)

    def say(self, text: str, *, style: str | None = None) -> None:
        """Prints a line above."""
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def makespan(running: Sequence[float], waiting: Sequence[float], jobs: int) -> float:
    """How long a queue takes when each place takes the next piece of work as soon as it is free.

    Args:
        running: what is left of the work in hand.
        waiting: the work that waits, in its order.
        jobs: number of places.
    """
    ends = [*running, *[0.0] * (jobs - len(running))]
    heapq.heapify(ends)
    for length in waiting:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)
