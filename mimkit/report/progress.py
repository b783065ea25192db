"""What a person sees while a run trains: a bar, or a plain line now and then."""

import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from rich import progress as bars
from rich.console import Console, RenderableType
from rich.text import Text

from mimkit import words

MAX_METRICS = 3
"""How many metrics fit beside rate and loss on a terminal of 80 columns."""


class _Bar(bars.Progress):
    """A bar with the run's numbers on a line of their own, so that 80 columns hold both."""

    numbers = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.numbers, no_wrap=True, overflow="ellipsis")


class Display:
    """Shows how far a run is, how fast, and when it ends.

    On a terminal that is one bar at the bottom; elsewhere (a log file, a job) a plain line.

    Args:
        total_steps: where it ends.
        start: where it begins; more than 0 for a run that goes on.
        console: where to show it; lines printed there meanwhile appear above the bar.
        every_seconds: least time between two plain lines.
    """

    def __init__(
        self, total_steps: int, start: int, console: Console, *, every_seconds: float = 10.0
    ) -> None:
        self.console = console
        self.every_seconds = every_seconds
        self.bar = _Bar(
            bars.TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
            bars.BarColumn(bar_width=None),
            bars.TaskProgressColumn(),
            bars.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            expand=True,
            # Updates come at the logging interval, which on a CPU may be minutes.
            speed_estimate_period=1800,
        )
        self.task = self.bar.add_task("pre-train", total=total_steps, completed=start)
        self.total_steps = total_steps
        self.start = start
        self.started = time.monotonic()
        self.last_line = -float("inf")

    def __enter__(self) -> Self:
        """Starts the clock and shows the bar."""
        self.started = time.monotonic()
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves the bar as it last was."""
        self.bar.stop()

    def update(
        self, step: int, images_per_second: float, loss: float, metrics: Mapping[str, float]
    ) -> None:
        """Shows that ``step`` steps are done.

        Args:
            step: finished steps.
            images_per_second: current rate.
            loss: current training loss.
            metrics: ``<term>/<name>`` to value; the first three are shown; what guessing reaches
                never, see `mimkit.words.GUESSES`.
        """
        numbers = [
            f"{images_per_second:,.{0 if images_per_second >= 10 else 1}f} images/s",
            f"loss {loss:.3f}",
        ]
        numbers += _worded(metrics)
        self.bar.numbers = "  ".join(numbers)
        self.bar.update(self.task, completed=step)
        now = time.monotonic()
        due = now - self.last_line >= self.every_seconds or step >= self.total_steps
        if self.bar.disable and due:
            self.last_line = now
            seconds_per_step = (now - self.started) / max(1, step - self.start)
            left = seconds_per_step * (self.total_steps - step)
            share = 100 * step / self.total_steps
            numbers.append(
                f"{words.duration(round(left))} left" if step < self.total_steps else "done"
            )
            self.message(
                f"step {step:,}/{self.total_steps:,} ({share:.0f} %)  " + "  ".join(numbers)
            )

    def message(self, text: str) -> None:
        """Prints a line above the bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _worded(metrics: Mapping[str, float]) -> list[str]:
    shown = [name for name in metrics if not words.is_guess(name)][:MAX_METRICS]
    last_parts = [name.rpartition("/")[2] for name in shown]
    texts = []
    for name, short in zip(shown, last_parts, strict=True):
        label = short if last_parts.count(short) == 1 else name
        value = metrics[name]
        texts.append(
            f"{label} " + (f"{100 * value:.1f} %" if "accuracy" in short else f"{value:.3g}")
        )
    return texts
