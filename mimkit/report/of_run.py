"""What the evaluations say: results.json as tables, and as one honest sentence."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mimkit import words
from mimkit.report import ending
from mimkit.report.findings import Direction, direction

Entry = Mapping[str, Any]
BASELINES = {
    "scratch": "from scratch",
    "random": "random weights",
    "pixels": "raw pixels",
}
"""What an evaluation is compared with, and how the report calls it."""


@dataclass(frozen=True)
class Spread:
    """One number over seeds."""

    mean: float
    std: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """Pre-trained minus baseline, paired by seed.

    Args:
        mean: of the paired differences.
        low: lower end of the interval; None with a single seed.
        high: upper end.
        level: of the interval.
        num_seeds: how many pairs.
        verdict: in words.
    """

    mean: float
    low: float | None
    high: float | None
    level: float
    num_seeds: int
    verdict: str

    @property
    def direction(self) -> Direction:
        """Where the interval lies; ``none`` if it holds zero, or if there is none."""
        return direction(self.low, self.high)


@dataclass(frozen=True)
class Row:
    """One protocol: what was measured from each initialisation.

    Args:
        fraction: the share of labels that was used, if the protocol says so.
        num_labels: how many those are.
        detail: what else tells this row from the others of its table.
        by_init: initialisation to its numbers.
        difference: pre-trained minus baseline, where both were measured.
    """

    fraction: float | None
    num_labels: int | None
    detail: str
    by_init: Mapping[str, Spread]
    difference: Difference | None


@dataclass(frozen=True)
class Table:
    """One metric of one evaluator under one protocol, which only the label fraction changes.

    Args:
        evaluator: its name.
        metric: what was measured.
        protocol: how, in words.
        apart: the part of it that tells this table from others of the same metric; may be empty.
        rows: by label fraction.
    """

    evaluator: str
    metric: str
    protocol: str
    apart: str
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """The evaluator, with what tells this table from its others."""
        return f"{self.evaluator}, {self.apart}" if self.apart else self.evaluator

    @property
    def baseline(self) -> str | None:
        """The initialisation that pre-training is compared with."""
        measured = {init for row in self.rows for init in row.by_init}
        return next((init for init in BASELINES if init in measured), None)

    @property
    def by_labels(self) -> bool:
        """True if its rows are label fractions, of which one at least leaves labels out."""
        fractions = [row.fraction for row in self.rows if row.fraction is not None]
        return len(fractions) == len(self.rows) and min(fractions) < 1


def tables(results: Mapping[str, Sequence[Entry]]) -> list[Table]:
    """Arranges summaries and differences, one table per evaluator, metric and protocol.

    The single layers of a probe are left out: see `mimkit.report.layers`.
    """
    summaries = [summary for summary in results["summaries"] if not is_layer(summary)]
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    apart: dict[tuple[str, str, str], str] = {}
    for summary in summaries:
        of_metric = [s["protocol"] for s in summaries if metric_of(s) == metric_of(summary)]
        protocol = {name: summary["protocol"].get(name) for name in splitting(of_metric)}
        key = (*metric_of(summary), key_of(protocol))
        groups.setdefault(key, []).append(summary)
        apart[key] = worded(protocol, protocol)
    differences = {(*metric_of(d), key_of(d["protocol"])): d for d in results["differences"]}
    return [_table(group, apart[key], differences) for key, group in groups.items()]


def is_layer(entry: Entry) -> bool:
    """True for the result of one layer of an encoder, whichever it be."""
    return isinstance(entry["protocol"].get("layer"), int)


def answer(found: Sequence[Table]) -> str | None:
    """Says in one sentence what pre-training bought; None where nothing was compared."""
    compared = [(t, row) for t in found for row in t.rows if row.difference is not None]
    if not compared:
        return None
    # Few labels are what pre-training is for, so the smallest fraction speaks for the run.
    by_labels = [(t, row) for t, row in compared if row.fraction is not None]
    first = by_labels[0][0] if by_labels else compared[0][0]
    row = min(
        (row for t, row in compared if t is first),
        key=lambda row: 1.0 if row.fraction is None else row.fraction,
    )
    difference = row.difference
    assert difference is not None
    verb = {"up": "raises", "down": "lowers", "none": "changes"}[difference.direction]
    name = first.metric.rpartition("/")[2].replace("_", " ")
    where = f" at {words.share(row.fraction)} of the labels" if row.fraction is not None else ""
    change = words.signed(difference.mean, first.metric)
    if difference.direction != "none":
        change = change[1:]
    unit = " points" if words.is_share(first.metric) else ""
    sentence = f"Pre-training {verb} {first.evaluator} {name}{where} by {change}{unit}"
    if difference.low is None:
        return f"{sentence} ({difference.verdict})."
    return f"{sentence} ({interval(difference, first)}): {difference.verdict}."


def tally(found: Sequence[Table]) -> str | None:
    """Counts the verdicts of all evaluations, so that no single row is picked out."""
    differences = [row.difference for table in found for row in table.rows if row.difference]
    directions = [one.direction for one in differences if one.low is not None]
    if len(differences) < 2:
        return None
    single = len(differences) - len(directions)
    return (
        f"Over all {len(differences)} comparisons with a baseline: better in "
        f"{directions.count('up')}, worse in {directions.count('down')}, not distinguishable in "
        f"{directions.count('none')}" + (f", without an interval {single}." if single else ".")
    )


def ending_lines(found: Sequence[Table]) -> list[ending.Line]:
    """Accuracies for the end on the terminal, one line for each evaluation and label fraction."""
    lines = []
    for table in found:
        if not words.is_share(table.metric) or words.is_guess(table.metric):
            continue
        metric = table.metric.rpartition("/")[2].replace("_", " ")
        for row in table.rows:
            where = "" if row.fraction is None else f" at {words.share(row.fraction)} of the labels"
            gain = row.difference
            lines.append(
                ending.Line(
                    f"{table.name.replace('_', ' ')} {metric}{where}",
                    {k: words.number(one.mean, table.metric) for k, one in row.by_init.items()},
                    ending.difference(gain.mean, gain.low, gain.high, table.metric) if gain else "",
                )
            )
    return lines


def interval(difference: Difference, table: Table) -> str:
    """Words for how sure a difference is; it must have an interval."""
    low, high = (words.signed(end, table.metric) for end in (difference.low, difference.high))
    level = f"{100 * difference.level:.0f}{words.NARROW}%"
    return f"{level} interval {low} to {high}, n = {difference.num_seeds} seeds"


def _table(
    summaries: Sequence[Entry], apart: str, differences: Mapping[tuple[str, str, str], Entry]
) -> Table:
    evaluator, metric = metric_of(summaries[0])
    protocols = {key_of(summary["protocol"]): summary["protocol"] for summary in summaries}
    names = dict.fromkeys(name for protocol in protocols.values() for name in protocol)
    names.pop("label_fraction", None)
    if all("label_fraction" in protocol for protocol in protocols.values()):
        names.pop("num_labels", None)  # shown beside the fraction
    varying = [name for name in names if _num_values(protocols.values(), name) > 1]
    rows = []
    for key, protocol in protocols.items():
        difference = differences.get((evaluator, metric, key))
        rows.append(
            Row(
                fraction=protocol.get("label_fraction"),
                num_labels=protocol.get("num_labels"),
                detail=worded(protocol, varying),
                by_init={
                    s["init"]: spread_of(s) for s in summaries if key_of(s["protocol"]) == key
                },
                difference=None if difference is None else _difference(difference),
            )
        )
    rows.sort(key=lambda row: 0.0 if row.fraction is None else row.fraction)
    constant = [name for name in names if name not in varying]
    protocol_text = worded(summaries[0]["protocol"], constant)
    return Table(evaluator, metric, protocol_text, apart, tuple(rows))


def metric_of(entry: Entry) -> tuple[str, str]:
    """What was measured, by which evaluator."""
    return entry["evaluator"], entry["metric"]


def splitting(protocols: Sequence[Entry]) -> list[str]:
    """Names the settings that differ at an equal label fraction: those make different tables.

    What differs only together with the fraction (a number of steps) stays in one table.
    """
    by_fraction: dict[float | None, list[Entry]] = {}
    for protocol in protocols:
        by_fraction.setdefault(protocol.get("label_fraction"), []).append(protocol)
    names = dict.fromkeys(name for protocol in protocols for name in protocol)
    return [
        name
        for name in names
        if any(_num_values(alike, name) > 1 for alike in by_fraction.values())
    ]


def _num_values(protocols: Iterable[Entry], name: str) -> int:
    return len({repr(protocol.get(name)) for protocol in protocols})


def key_of(protocol: Entry) -> str:
    """A text that is the same for equal protocols."""
    return json.dumps(protocol, sort_keys=True)


def worded(protocol: Entry, names: Iterable[str]) -> str:
    """Words for some settings of a protocol; those that are none are left out."""
    return ", ".join(
        f"{name.replace('_', ' ')} {_plain(protocol[name])}"
        for name in names
        if protocol.get(name) is not None
    )


def _plain(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def spread_of(summary: Entry) -> Spread:
    """The numbers of one initialisation."""
    return Spread(summary["mean"], _finite(summary["std"]), tuple(summary["values"]))


def _difference(entry: Entry) -> Difference:
    low, high = _finite(entry["low"]), _finite(entry["high"])
    return Difference(
        mean=entry["mean"],
        low=low if high is not None else None,
        high=high if low is not None else None,
        level=entry["level"],
        num_seeds=len(entry["seeds"]),
        verdict=entry["verdict"],
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
