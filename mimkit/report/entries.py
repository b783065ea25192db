"""The lines of the table of results, and the charts that are drawn from them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mimkit.report import charts
from mimkit.report.findings import Cost, Interval, Verdicts
from mimkit.report.looks import Chart, Look
from mimkit.report.rows import OF_METHOD
from mimkit.report.wording import is_layer, name_of, splitting, varies, worded

_NOT_APART: Final = ("label_fraction", "num_labels", *OF_METHOD)
"""Settings that stand in a column of their own, or follow from a method's encoder."""


@dataclass(frozen=True)
class Entry:
    """One line of the table of results.

    Args:
        found: the numbers and what they say.
        apart: the settings that keep it from standing in one chart with others of its evaluator
            and metric; may be empty.
        detail: all settings in which it differs from them.
    """

    found: Verdicts
    apart: str
    detail: str

    @property
    def name(self) -> str:
        """What was measured."""
        return name_of(self.found.row.evaluator, self.found.row.metric)

    @property
    def fraction(self) -> float | None:
        """The share of labels that was used, if the protocol says so."""
        fraction = self.found.row.protocol.get("label_fraction")
        return fraction if isinstance(fraction, int | float) else None


def entries(verdicts: Iterable[Verdicts]) -> list[Entry]:
    """The rows that compare methods: no single layers, and no method's own task."""
    kept = [found for found in verdicts if not is_layer(found.row) and not found.row.own_task]
    return [
        Entry(found, *(worded(found.row.protocol, names) for names in _telling(found, kept)))
        for found in kept
        if any(mean.num_seeds for mean in found.means.values())
    ]


def _telling(found: Verdicts, others: Iterable[Verdicts]) -> tuple[list[str], list[str]]:
    """Settings that keep a row out of a chart of others of its name, and all that differ."""
    measured = found.row.evaluator, found.row.metric
    alike = [
        other.row.protocol
        for other in others
        if (other.row.evaluator, other.row.metric) == measured
    ]
    apart = [name for name in splitting(alike) if name not in _NOT_APART]
    differing = [
        name for name in found.row.protocol if name not in _NOT_APART and varies(alike, name)
    ]
    return apart, differing


def _groups(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Entries that only the label fraction tells apart, smallest first."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.name, entry.apart), []).append(entry)
    for group in groups.values():
        group.sort(key=lambda entry: 0.0 if entry.fraction is None else entry.fraction)
    return list(groups.values())


def label_charts(entries: Iterable[Entry], styles: Mapping[str, Look]) -> list[Chart]:
    """Each evaluation that was made with several label fractions."""
    return [
        charts.label_chart([entry.found for entry in group], styles, group[0].apart)
        for group in _groups(entries)
        if len(group) > 1 and all(entry.fraction is not None for entry in group)
    ]


def cost_charts(
    entries: Iterable[Entry], costs: Mapping[str, Cost], styles: Mapping[str, Look]
) -> list[Chart]:
    """Each evaluation at its smallest label fraction, against seconds and against FLOPs."""
    chosen: dict[str, Entry] = {}
    for group in _groups(entries):
        entry = group[0]
        held = chosen.get(entry.name)
        if entry.found.gains and (held is None or len(entry.found.gains) > len(held.found.gains)):
            chosen[entry.name] = entry
    measured = {label: cost for label, cost in costs.items() if cost.measured}
    spent = (
        ({label: cost.seconds for label, cost in measured.items()}, "s"),
        ({label: cost.flops for label, cost in measured.items()}, "FLOP"),
    )
    return [
        charts.cost_chart(entry.found, cost, unit, styles)
        for entry in chosen.values()
        for cost, unit in spent
    ]


def protocols(entries: Iterable[Entry]) -> list[tuple[str, str, str]]:
    """Evaluator, what it measures, and the settings that all of its rows share, in words."""
    by_name: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in entries:
        row = entry.found.row
        by_name.setdefault((row.evaluator, entry.name), []).append(row.protocol)
    return [
        (
            evaluator,
            name,
            worded(
                protocols[0],
                [key for key in protocols[0] if len({repr(p.get(key)) for p in protocols}) == 1],
            ),
        )
        for (evaluator, name), protocols in by_name.items()
    ]


def scale(entry: Entry, shown: Iterable[Entry], kind: str) -> list[Interval]:
    """The differences that share a scale with those of an entry: of its evaluation and settings.

    Args:
        entry: which.
        shown: all entries.
        kind: "pairs" or "gains".
    """
    return [
        pair.difference
        for other in shown
        if (other.name, other.apart) == (entry.name, entry.apart)
        for pair in getattr(other.found, kind)
    ]
