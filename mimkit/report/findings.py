"""What the evaluations say: results.json as tables, and as one honest sentence."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mimkit.report import words

Entry = Mapping[str, Any]
BASELINES = {
    "scratch": "from scratch",
    "random": "random weights",
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
    def direction(self) -> Literal["up", "down", "none"]:
        """Where the interval lies; ``none`` if it holds zero, or if there is none."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "none"
        return "up" if self.low > 0 else "down"


@dataclass(frozen=True)
class Row:
    """One protocol: what was measured from each initialisation.

    Args:
        label: what tells this row from the others of its table.
        fraction: the share of labels that was used, if that is what varies.
        by_init: initialisation to its numbers.
        difference: pre-trained minus baseline, where both were measured.
    """

    label: str
    fraction: float | None
    by_init: Mapping[str, Spread]
    difference: Difference | None


@dataclass(frozen=True)
class Table:
    """One metric of one evaluator."""

    evaluator: str
    metric: str
    protocol: str
    rows: tuple[Row, ...]

    @property
    def baseline(self) -> str | None:
        """The initialisation that pre-training is compared with."""
        measured = {init for row in self.rows for init in row.by_init}
        return next((init for init in BASELINES if init in measured), None)

    @property
    def compared(self) -> bool:
        """True if a row was compared with the baseline."""
        return any(row.difference is not None for row in self.rows)

    @property
    def by_labels(self) -> bool:
        """True if its rows are label fractions."""
        return all(row.fraction is not None for row in self.rows)


def tables(results: Mapping[str, Sequence[Entry]]) -> list[Table]:
    """Arranges summaries and differences, one table per evaluator and metric."""
    found: dict[tuple[str, str], list[Entry]] = {}
    for summary in results["summaries"]:
        found.setdefault((summary["evaluator"], summary["metric"]), []).append(summary)
    return [
        _table(
            evaluator,
            metric,
            summaries,
            [d for d in results["differences"] if (d["evaluator"], d["metric"]) == key],
        )
        for key, summaries in found.items()
        for evaluator, metric in [key]
    ]


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
    unit = " points" if words.is_share(first.metric) else ""
    return (
        f"Pre-training {verb} {first.evaluator} {name}{where} by "
        f"{words.signed(difference.mean, first.metric)}{unit} ({interval(difference, first)})"
        f": {difference.verdict}."
    )


def tally(found: Sequence[Table]) -> str | None:
    """Counts the verdicts over the label fractions, so that no single row is picked out."""
    directions = [
        row.difference.direction
        for table in found
        if table.by_labels and words.is_share(table.metric)
        for row in table.rows
        if row.difference is not None
    ]
    if len(directions) < 2:
        return None
    return (
        f"Over all {len(directions)} comparisons at label fractions: better in "
        f"{directions.count('up')}, worse in {directions.count('down')}, not distinguishable in "
        f"{directions.count('none')}."
    )


def interval(difference: Difference, table: Table) -> str:
    """Words for how sure a difference is."""
    seeds = f"n = {difference.num_seeds} seed{'s' if difference.num_seeds != 1 else ''}"
    if difference.low is None:
        return f"{seeds}, so no interval"
    low, high = (words.signed(end, table.metric) for end in (difference.low, difference.high))
    return f"{100 * difference.level:.0f}{words.NARROW}% interval {low} to {high}, {seeds}"


def _table(
    evaluator: str, metric: str, summaries: Sequence[Entry], differences: Sequence[Entry]
) -> Table:
    protocols: dict[str, Mapping[str, object]] = {}
    for summary in summaries:
        protocols.setdefault(_key(summary["protocol"]), summary["protocol"])
    names = list(dict.fromkeys(name for protocol in protocols.values() for name in protocol))
    varying = [
        name
        for name in names
        if len({repr(protocol.get(name)) for protocol in protocols.values()}) > 1
        or name == "label_fraction"
    ]
    compared = {_key(difference["protocol"]): difference for difference in differences}
    rows = [
        Row(
            label=_label(protocol, varying),
            fraction=_fraction(protocol),
            by_init={s["init"]: _spread(s) for s in summaries if _key(s["protocol"]) == key},
            difference=_difference(compared[key]) if key in compared else None,
        )
        for key, protocol in protocols.items()
    ]
    rows.sort(key=lambda row: -1.0 if row.fraction is None else row.fraction)
    constant = [name for name in names if name not in varying]
    return Table(
        evaluator=evaluator,
        metric=metric,
        protocol=_label(next(iter(protocols.values())), constant),
        rows=tuple(rows),
    )


def _key(protocol: Entry) -> str:
    return json.dumps(protocol, sort_keys=True)


def _fraction(protocol: Mapping[str, object]) -> float | None:
    fraction = protocol.get("label_fraction")
    return float(fraction) if isinstance(fraction, int | float) else None


def _label(protocol: Mapping[str, object], names: Sequence[str]) -> str:
    parts = []
    for name in names:
        value = protocol.get(name)
        if name == "label_fraction" and isinstance(value, int | float):
            parts.append(words.share(value))
        elif value is not None:
            parts.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(parts)


def _spread(summary: Entry) -> Spread:
    return Spread(summary["mean"], _finite(summary["std"]), tuple(summary["values"]))


def _difference(entry: Entry) -> Difference:
    low, high = _finite(entry["low"]), _finite(entry["high"])
    seeds = entry["seeds"]
    return Difference(
        mean=entry["mean"],
        low=low if high is not None else None,
        high=high if low is not None else None,
        level=entry["level"],
        num_seeds=seeds if isinstance(seeds, int) else len(seeds),
        verdict=entry["verdict"],
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
