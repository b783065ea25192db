"""The block with which a run and a comparison end: answer, small table, what to do next."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mimkit import words
from mimkit.console import headed
from mimkit.report import tuned
from mimkit.report.findings import Interval, Study, Tuning, Verdicts
from mimkit.report.tables import own_rows, shared_rows

STARTS: Final = {
    "pretrained": "pre-trained",
    "scratch": "scratch",
    "random": "random",
    "pixels": "pixels",
}
"""What an encoder was before it was judged, and the column that its numbers stand in."""


@dataclass(frozen=True)
class Line:
    """One evaluation, of one method where there are several.

    Args:
        title: what was measured; "" where it is that of the line above.
        by_start: a key of `STARTS` to the number, in words.
        difference: pre-trained minus baseline with its interval, in words.
        method: whose numbers these are; "" in a run.
    """

    title: str
    by_start: Mapping[str, str]
    difference: str = ""
    method: str = ""


@dataclass(frozen=True)
class Next:
    """Something to do next.

    Args:
        what: it would settle.
        command: that does it; "" where there is none.
        seconds: that it should take; None where nothing tells.
    """

    what: str
    command: str = ""
    seconds: float | None = None


def show(console: Console, study: Study, report: Path, steps: Sequence[Next]) -> None:
    """Prints the block.

    Args:
        console: where.
        study: what was found.
        report: the file.
        steps: what would settle what is open.
    """
    tell(console, study)
    console.print(headed("report", report), soft_wrap=True)
    for step in steps:
        took = "" if step.seconds is None else f", {words.about(step.seconds)}"
        console.print(headed("next", f"{step.what}{took}{':' * bool(step.command)}"))
        if step.command:
            console.print(f"  {step.command}", soft_wrap=True)


def tell(console: Console, study: Study) -> None:
    """Prints answer and table."""
    console.print()
    if study.answer:
        console.print(study.answer)
    if found := lines(study):
        console.print(_table(found))
    if study.tuning is not None:
        console.print()
        console.print(_trials(study.tuning))
        for sentence in tuned.explained(study.tuning):
            console.print(sentence)


def lines(study: Study) -> list[Line]:
    """One line for each evaluation and method; of a run also how well it does its own task."""
    rows = shared_rows(study)
    if study.is_run:
        own = [found for _, found in own_rows(study) if words.is_share(found.row.metric)]
        rows += [(f"its own task: {_plainly(found.row.metric)}", found) for found in own]
    return [line for title, found in rows for line in _lines(title, found, study.labels)]


def _plainly(metric: str) -> str:
    """Names a metric of a term: ``metric/patches/accuracy`` is the accuracy of patches."""
    *_, term, name = ("", *metric.removeprefix("metric/").split("/"))
    return f"{name.replace('_', ' ')} of {term}" if term else name.replace("_", " ")


def _lines(title: str, found: Verdicts, labels: Sequence[str]) -> Iterator[Line]:
    metric = found.row.metric
    gains = {gain.first: gain.difference for gain in found.gains}
    for label in labels:
        by_start = {
            start: words.number(found.means[label, start].mean, metric)
            for start in STARTS
            if (label, start) in found.means
        }
        if by_start:
            gain = difference(gains[label], metric) if label in gains else ""
            yield Line(title, by_start, gain, label if len(labels) > 1 else "")
            title = ""


def difference(found: Interval, metric: str) -> str:
    """A difference and its interval, as short as it goes."""
    if found.low is None:
        return words.signed(found.mean, metric)
    ends = ", ".join(words.signed(end, metric) for end in (found.low, found.high))
    return f"{words.signed(found.mean, metric)} [{ends}]"


def _trials(tuning: Tuning) -> Table:
    found = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    found.add_column("")
    for name in tuned.columns(tuning):
        found.add_column(name, justify="right")
    told = ""
    for line in tuned.lines(tuning):
        name = "" if line.method == told else line.method
        found.add_row(*map(Text, (name, *line.cells)))
        told = line.method
    return found


def _table(lines: Sequence[Line]) -> Table:
    found = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    found.add_column("")
    methods = any(line.method for line in lines)
    if methods:
        found.add_column("")
    starts = [start for start in STARTS if any(start in line.by_start for line in lines)]
    for start in starts:
        found.add_column(STARTS[start], justify="right")
    differences = any(line.difference for line in lines)
    if differences:
        found.add_column("difference", justify="right")
    for line in lines:
        cells = [line.title, *[line.method] * methods]
        cells += [line.by_start.get(start, "") for start in starts]
        found.add_row(*map(Text, cells + [line.difference] * differences))
    return found
