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

from mimkit.words import about, duration

_REFRESH_SECONDS: Final = 0.5
_HEADS: Final = ("run", "state", "step", "loss", "left")
_LEAST_ROOM: Final = 12
"""Columns below which the last words of a run are left out."""
_AROUND: Final = 5
"""Lines of the page beside its rows: count, bar, heads, what is left out, and the cursor's."""


@dataclass(frozen=True)
class Shown:
    """A run as a row of the table.

    Args:
        name: of the cell.
        state: "trains", "judges", "waits", ..., in a word.
        step: that its log has reached, of how many; "" before the first.
        loss: there; "".
        left: seconds until it ends; None if nothing tells.
        doing: last line of its output.
    """

    name: str
    state: str
    step: str = ""
    loss: str = ""
    left: float | None = None
    doing: str = ""


class Board:
    """Shows every run, how many are finished and have failed, and how long the rest will take.

    On a terminal that is one table at the bottom, drawn anew; elsewhere only what `say` prints.

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
        self, runs: Sequence[Shown], *, finished: int, failed: int, left: float | None
    ) -> None:
        """Draws the table at the bottom; rows that the terminal has no room for are counted.

        Args:
            runs: those at work first.
            finished: how many cells are.
            failed: how many cells have.
            left: seconds until all is done; None if nothing tells.
        """
        self.shown = time.monotonic()
        head = f"{finished} of {self.total} runs finished"
        head += f", {failed} failed" if failed else ""
        head += f"  {duration(self.shown - self.started)}"
        head += f", {about(left)} left" if left is not None else ""
        page = Table.grid(expand=True)
        page.add_row(Text(head))
        page.add_row(ProgressBar(total=self.total, completed=finished + failed))
        room = max(1, self.console.size.height - _AROUND)
        page.add_row(_table(runs[:room], self.console.width))
        if len(runs) > room:
            page.add_row(Text(f"and {len(runs) - room} more", style="dim"))
        self.live.update(page, refresh=True)

    def say(self, text: str, *, style: str | None = None) -> None:
        """Prints a line above."""
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _table(runs: Sequence[Shown], width: int) -> Table:
    """Lays the rows out; what a run last said gets the room that is left, if that is enough."""
    cells = [
        (run.name, run.state, run.step, run.loss, "" if run.left is None else duration(run.left))
        for run in runs
    ]
    taken = sum(max(map(len, column)) + 2 for column in zip(_HEADS, *cells, strict=True))
    rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in _HEADS:
        rows.add_column(head, no_wrap=True, justify="left" if head in _HEADS[:2] else "right")
    room = width - taken
    if room >= _LEAST_ROOM:
        rows.add_column("", no_wrap=True, overflow="ellipsis", style="dim", max_width=room)
    for run, row in zip(runs, cells, strict=True):
        rows.add_row(*map(Text, row + (run.doing,) * (room >= _LEAST_ROOM)))
    return rows


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
