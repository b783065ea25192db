"""A study as Markdown, CSV and JSON."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import mimkit
from mimkit import words
from mimkit.files import write_json as write_json_file
from mimkit.files import write_text
from mimkit.report import tuned
from mimkit.report.findings import Interval, Pair, Row, Study, Tuning, Verdicts
from mimkit.report.wording import STARTS, called, is_layer, worded

MARKS: Final = {"up": " ▲", "down": " ▼", "none": ""}
"""Beside a difference whose interval lies above zero, or below it."""
EXPLAINED: Final = (
    "Means over seeds with 95 % intervals for other seeds and other test images. Differences are "
    "paired by seed and image; ▲ above zero, ▼ below. A ranking (≈: cannot be told apart) needs "
    "differences that remain after Holm's correction for all pairs."
)
COLUMNS: Final = (
    "method",
    "seed",
    "evaluator",
    "metric",
    "init",
    "value",
    "n",
    "label_fraction",
    "protocol",
)


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Args:
        title: what was measured.
        cells: by method, in the order of the study.
        ranking: what the line says of the order of methods; "" where that is not asked.
        heads: it opens an evaluation; the lines after it are its baselines.
    """

    title: str
    cells: tuple[str, ...]
    ranking: str = ""
    heads: bool = True


def markdown(study: Study) -> str:
    """Writes the results down as Markdown: answer, table, what is missing, command."""
    labels = study.labels
    rows = [["", *labels, "ranking"]]
    rows += [
        [f"**{line.title}**" if line.heads else line.title, *line.cells, line.ranking]
        for line in lines(study)
    ]
    alignment = ["---", *("---:" for _ in labels), "---"]
    undone = [
        f"{one.cell}: {one.reason or 'has not finished'}"
        for one in study.outcomes
        if one.state != "finished"
    ]
    refused = [text for text in study.refused if text not in undone]
    parts = [
        f"# {study.title} on {study.dataset}",
        study.answer,
        _markdown_table(rows, alignment),
        EXPLAINED,
        *(_tuned(study.tuning) if study.tuning else ()),
        "\n".join(f"- {_one_line(text)}" for text in (*undone, *refused)),
        f"{len(study.seeds)} seeds; {study.budget} for each method and seed; "
        f"mimkit {study.mimkit}. To repeat it:",
        f"    {study.command}",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _tuned(tuning: Tuning) -> tuple[str, str]:
    heads = ["method", *tuned.columns(tuning)]
    rows = [heads, *([line.method, *line.cells] for line in tuned.lines(tuning))]
    alignment = ["---", *("---:" for _ in heads[1:])]
    return _markdown_table(rows, alignment), " ".join(tuned.explained(tuning))


def _markdown_table(rows: Sequence[Sequence[str]], alignment: Sequence[str]) -> str:
    head, *others = rows
    return "\n".join(
        f"| {' | '.join(map(_markdown_cell, row))} |" for row in (head, alignment, *others)
    )


def write_csv(study: Study, path: Path) -> None:
    """Writes every single number down, one a line; one that is not finite is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for outcome in study.outcomes:
        for result in outcome.results:
            protocol = result["protocol"]
            writer.writerow(
                [
                    outcome.cell.method,
                    outcome.cell.seed,
                    result["evaluator"],
                    result["metric"],
                    result["init"],
                    result["value"] if math.isfinite(result["value"]) else "",
                    result["num_images"],
                    protocol.get("label_fraction", ""),
                    json.dumps(protocol, sort_keys=True),
                ]
            )
    write_text(path, text.getvalue())


def write_json(study: Study, plan: Mapping[str, Any], path: Path) -> None:
    """Writes down all that the statistics are made from, and what they say.

    Numbers that are not finite become null. What depends on the moment is left out: the same runs
    give the same file.

    Args:
        study: what was found.
        plan: what was planned, as a tree.
        path: where to.
    """
    tree = {
        "mimkit": mimkit.__version__,
        "answer": study.answer,
        "plan": plan,
        "statistics": {
            "interval": "95 %, over seeds (Student) and test images (normal), Cochran and Cox",
            "test": "whether that interval leaves zero out, two-sided, paired by seed and image",
            "correction": "Holm, over all pairs of methods in a row",
        },
        "cells": [
            {
                **asdict(outcome.cell),
                "state": outcome.state,
                "reason": outcome.reason,
                "command": outcome.command,
                "results": [dict(result) for result in outcome.results],
            }
            for outcome in study.outcomes
        ],
        "rows": [_tree(found) for found in study.verdicts],
        "refused": study.refused,
        **({"tuning": asdict(study.tuning)} if study.tuning else {}),
    }
    write_json_file(path, tree)


def shared_rows(study: Study) -> list[tuple[str, Verdicts]]:
    """The rows that compare methods, each with its title; of a probe's layers the chosen one."""
    return [one for one in _titled(study) if not one[1].row.own_task]


def own_rows(study: Study) -> list[tuple[str, Verdicts]]:
    """Losses and accuracies of each method's own task, each with its title."""
    return [one for one in _titled(study) if one[1].row.own_task and is_telling(one[1].row.metric)]


def _titled(study: Study) -> list[tuple[str, Verdicts]]:
    shown = [found for found in study.verdicts if not is_layer(found.row)]
    rows = [found.row for found in shown]
    return [(_title(found.row, rows), found) for found in shown]


def lines(study: Study) -> list[Line]:
    """Arranges the table: evaluations that compare the methods, then each one's own task.

    Of a probe of all layers there is the chosen one; of the pre-training task there are losses and
    accuracies.
    """
    return [
        line
        for title, found in (*shared_rows(study), *own_rows(study))
        for line in _lines(found, title, study.labels, len(study.seeds))
    ]


def _lines(found: Verdicts, title: str, labels: Sequence[str], num_seeds: int) -> Iterator[Line]:
    metric = found.row.metric

    def of(start: str) -> tuple[str, ...]:
        means = (found.means.get((label, start)) for label in labels)
        return tuple(_mean(mean, metric, num_seeds) for mean in means)

    yield Line(title, of("pretrained"), _ranking(found))
    gains = {gain.first: gain for gain in found.gains}
    compared = {gain.second.removeprefix(f"{gain.first} ") for gain in found.gains}
    for start, name in STARTS.items():
        if any((label, start) in found.means for label in labels):
            yield Line(name, of(start), heads=False)
        if start in compared:
            cells = tuple(_gain(gains.get(label), start, metric) for label in labels)
            yield Line("difference from it", cells, heads=False)


def _title(row: Row, rows: Iterable[Row]) -> str:
    """Names a row, with the settings that tell it from others of the same name."""
    if row.own_task:
        return f"its own task: {row.metric}"
    alike = [other.protocol for other in rows if called(other) == called(row)]
    names = [
        name
        for name in row.protocol
        if any(other.get(name) != row.protocol[name] for other in alike)
    ]
    return ", ".join(filter(None, (called(row), worded(row.protocol, names))))


def is_telling(metric: str) -> bool:
    """True for losses and accuracies, not for what stands beside them."""
    return not words.is_guess(metric) and (metric.startswith("loss/") or words.is_share(metric))


def _mean(found: Interval | None, metric: str, num_seeds: int) -> str:
    if found is None or not found.num_seeds:
        return words.MISSING
    ends = "" if found.low is None else f" [{_end(found.low, metric)}, {_end(found.high, metric)}]"
    few = f" (n = {found.num_seeds})" if found.num_seeds < num_seeds else ""
    return f"{words.number(found.mean, metric)}{ends}{few}"


def _end(value: float | None, metric: str) -> str:
    return words.number(value, metric).removesuffix(f"{words.NARROW}%")


def _gain(found: Pair | None, start: str, metric: str) -> str:
    if found is None or not found.second.endswith(f" {start}"):
        return words.MISSING
    difference = found.difference
    mean, low, high = (
        words.signed(value, metric) for value in (difference.mean, difference.low, difference.high)
    )
    if difference.low is None:
        return mean
    return f"{mean}{MARKS[difference.direction]} [{low}, {high}]"


def _ranking(found: Verdicts) -> str:
    if not found.pairs:
        return ""
    if found.ranking is None:
        num_seeds = min(pair.difference.num_seeds for pair in found.pairs)
        return f"none at n = {num_seeds}"
    return " > ".join(" ≈ ".join(group) for group in found.ranking)


def _markdown_cell(text: str) -> str:
    return text.replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _tree(found: Verdicts) -> dict[str, Any]:
    row = asdict(replace(found.row, measured={}))
    del row["measured"]  # the scores stand in the cells
    del row["ranked"]  # follows from the evaluator
    return {
        **row,
        "means": [
            {"method": label, "start": start, **asdict(mean)}
            for (label, start), mean in found.means.items()
        ],
        "pairs": [asdict(pair) for pair in found.pairs],
        "gains": [asdict(gain) for gain in found.gains],
        "ranking": found.ranking,
    }
