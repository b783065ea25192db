"""The finding of a comparison in one sentence, no surer than the numbers are."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Final

from mimkit.evaluate.statistics import no_interval
from mimkit.report.elsewhere import elsewhere
from mimkit.report.findings import Cell, Interval, Pair, Row, Verdicts
from mimkit.report.verdicts import differs
from mimkit.report.wording import baseline_of, called, is_layer, listed, points, sure

MAIN: Final = ("finetune", "attentive_probe", "linear_probe", "knn")
"""Evaluators that speak for a comparison: the first of these that was measured."""
_FEW: Final = 3
_SHOWS: Final = 2.8
"""Standard errors that a difference must have to be seen at 5 % with 80 % chance."""


def main_row(verdicts: Sequence[Verdicts]) -> Verdicts | None:
    """Chooses the row that speaks for a comparison, before anyone looks at its numbers.

    Of the rows with most methods: fine-tuning at the smallest label fraction; else the attentive
    probe, the linear probe of the chosen layer, k-NN; else whatever is no pre-training task and of
    which more is better. None if there is nothing.
    """
    speaking = [
        found for found in verdicts if found.row.ranked and _is_shared(found.row) and _ours(found)
    ]

    def order(found: Verdicts) -> tuple[int, int, float]:
        name = found.row.evaluator
        fraction = found.row.protocol.get("label_fraction")
        return (
            -len(_ours(found)),
            MAIN.index(name) if name in MAIN else len(MAIN),
            fraction if isinstance(fraction, int | float) else 1.0,
        )

    return min(speaking, key=order, default=None)


def answer(verdicts: Sequence[Verdicts], budget: str, cells: Sequence[Cell]) -> str:
    """Says what was found in one sentence, with how sure it is; in another what is missing.

    It speaks of `main_row`, and then counts what all other evaluations say (`elsewhere`). A method
    is called the best only where the ranking has it alone in first place.

    Args:
        verdicts: all that was measured.
        budget: of every run, in words; may be empty.
        cells: the runs that should have a number.
    """
    found = main_row(verdicts)
    if found is None:
        if not verdicts:
            return "No run has finished yet, so that nothing can be said."
        if any(_is_shared(one.row) for one in verdicts):
            return "Nothing compares the methods: of no number that was measured is more better."
        return "Nothing compares the methods: each was judged by its own pre-training task alone."
    labels = _ours(found)
    finding = _order(found, labels)
    top = found.ranking[0] if found.ranking else labels
    gains = [gain for gain in found.gains if gain.first in top]
    said = (
        finding,
        _baseline(gains, found.row.metric),
        *elsewhere(found, _others(found, verdicts)),
    )
    clauses = [clause for clause in said if clause]
    lead = f"At {budget}, in" if budget else "In"
    sentence = f"{lead} {called(found.row)}, {'; '.join(clauses)}."
    if not clauses:
        sentence = "The one method was compared with no baseline, so that nothing can be said."
    return " ".join(filter(None, (sentence, *_missing(cells, found, verdicts))))


def tally(verdicts: Sequence[Verdicts]) -> str | None:
    """Counts all gains over baselines, so that no single row is picked out."""
    gains = [
        gain.difference for found in verdicts if not is_layer(found.row) for gain in found.gains
    ]
    if len(gains) < 2:
        return None
    directions = [gain.direction for gain in gains if gain.low is not None]
    single = len(gains) - len(directions)
    return (
        f"Over all {len(gains)} comparisons with a baseline: better in "
        f"{directions.count('up')}, worse in {directions.count('down')}, not distinguishable in "
        f"{directions.count('none')}" + (f", without an interval {single}." if single else ".")
    )


def _others(main: Verdicts, verdicts: Sequence[Verdicts]) -> list[Verdicts]:
    """The rows that compare methods beside the one that speaks."""
    return [
        found
        for found in verdicts
        if found is not main and found.row.ranked and _is_shared(found.row)
    ]


def _is_shared(row: Row) -> bool:
    """Whether all methods are measured alike by it, and it is no single layer."""
    return not row.own_task and not is_layer(row)


def _ours(found: Verdicts) -> list[str]:
    """Methods with a pre-trained number, the highest mean first."""
    means = {
        label: mean.mean
        for (label, start), mean in found.means.items()
        if start == "pretrained" and mean.num_seeds
    }
    return sorted(means, key=lambda label: -means[label])


def _order(found: Verdicts, labels: Sequence[str]) -> str:
    """Says which methods differ; "" of a single one."""
    if len(labels) < 2:
        return ""
    if found.ranking is None:
        return _undecided(found, labels)
    top, after = found.ranking[:2]
    if len(top) == 1:
        pair = _pair(found, top[0], after[0])
        return f"{top[0]} is the best, ahead of {after[0]} by {_gap(pair, top[0], found)}"
    rest = [label for group in found.ranking[1:] for label in group]
    return (
        f"{listed(top)} are better than {listed(rest)}, but cannot be told apart: "
        f"{_between(found, top[0], top[1])}"
    )


def _undecided(found: Verdicts, labels: Sequence[str]) -> str:
    told = [pair for pair in found.pairs if differs(pair)]
    unsure = [two for two in combinations(labels, 2) if not differs(_pair(found, *two))]
    gap = _between(found, *unsure[0]) if unsure else ""
    if not told:
        return f"{listed(labels)} cannot be told apart: {gap}"
    said = []
    for pair in told:
        better, worse = pair.first, pair.second
        if pair.difference.mean < 0:
            better, worse = worse, better
        size = f" by {_gap(pair, better, found)}" if len(told) < _FEW else ""
        said.append(f"{better} is better than {worse}{size}")
    return ", but ".join(filter(None, (f"{listed(labels)} cannot be ranked: {listed(said)}", gap)))


def _between(found: Verdicts, first: str, second: str) -> str:
    """Says how far two methods that cannot be told apart are from each other."""
    pair = _pair(found, first, second)
    if pair is None:
        return f"{first} and {second} have no seed in common"
    if pair.difference.mean == 0:
        how_sure = sure(pair.difference, found.row.metric)
        return f"no difference between {first} and {second} was seen ({how_sure})"
    ahead, behind = (first, second) if _towards(pair, first).mean > 0 else (second, first)
    text = f"{ahead} is ahead of {behind} by {_gap(pair, ahead, found)}"
    if pair.difference.low is None:
        return text
    if pair.seeds_needed is None:
        what = "1,000 seeds"
        if _too_few_images(pair.difference):
            what = "any number of seeds on so few test images"
        return f"{text}, and even {what} would not show a difference of this size"
    if pair.seeds_needed <= pair.difference.num_seeds:
        return f"{text}, too little where {len(found.pairs)} pairs are compared"
    return (
        f"{text}, and to show a difference of this size about {pair.seeds_needed} seeds are needed"
    )


def _too_few_images(interval: Interval) -> bool:
    """Whether the test images alone leave a difference of this size open in one case of five."""
    return abs(interval.mean) < _SHOWS * (interval.image_error or 0.0)


def _baseline(gains: Sequence[Pair], metric: str) -> str:
    """Says whether pre-training was of use; "" where no baseline was measured."""
    if not gains:
        return ""
    name = baseline_of(gains[0])
    if len(gains) == 1:
        return _single_gain(gains[0], name, metric)
    sizes = ", ".join(f"{g.first} {points(g.difference.mean, metric)}" for g in gains)
    if any(gain.difference.low is None for gain in gains):
        why = no_interval(min(gain.difference.num_seeds for gain in gains))
        return f"against {name} they differ by {sizes} ({why})"
    num_seeds = min(gain.difference.num_seeds for gain in gains)
    alike = {
        "none": f"none of them can be told from {name} ({sizes}; n = {num_seeds} seeds, all "
        "intervals hold zero)",
        "up": f"all of them are better than {name} ({sizes}; all intervals lie above zero)",
        "down": f"{name} is better than all of them ({sizes}; all intervals lie below zero)",
    }
    first, *others = {gain.difference.direction for gain in gains}
    if not others:
        return alike[first]
    said = {"up": "better", "down": "worse", "none": "not distinguishable"}
    verdicts = [
        f"{gain.first} is {said[gain.difference.direction]} "
        f"({points(gain.difference.mean, metric)}, {sure(gain.difference, metric)})"
        for gain in gains
    ]
    return f"compared with {name}, {listed(verdicts)}"


def _single_gain(gain: Pair, name: str, metric: str) -> str:
    size = f"{points(gain.difference.mean, metric)}, {sure(gain.difference, metric)}"
    if gain.difference.low is None:
        return f"{gain.first} differs from {name} by {size}"
    if gain.difference.direction == "up":
        return f"{gain.first} is better than {name} ({size})"
    if gain.difference.direction == "down":
        return f"{name} is better than {gain.first} ({size})"
    return f"{gain.first} cannot be told from {name} ({size})"


def _pair(found: Verdicts, first: str, second: str) -> Pair | None:
    return next((p for p in found.pairs if {p.first, p.second} == {first, second}), None)


def _towards(pair: Pair, first: str) -> Interval:
    """The difference with ``first`` as what the other is subtracted from."""
    found = pair.difference
    if pair.first == first:
        return found
    low, high = (None if end is None else -end for end in (found.high, found.low))
    return replace(found, mean=-found.mean, low=low, high=high)


def _gap(pair: Pair | None, first: str, found: Verdicts) -> str:
    assert pair is not None, "what differs has a pair"
    interval, metric = _towards(pair, first), found.row.metric
    return f"{points(interval.mean, metric).lstrip('+')} ({sure(interval, metric)})"


def _missing(wanted: Sequence[Cell], main: Verdicts, verdicts: Sequence[Verdicts]) -> Iterator[str]:
    """Names the runs that have no number in the main row."""
    rows = [found.row for found in verdicts]
    absent = [cell for cell in wanted if not _measured(cell, [main.row])]
    for cells, why in (
        ([cell for cell in absent if not _measured(cell, rows)], "failed or not finished"),
        ([cell for cell in absent if _measured(cell, rows)], "measured in another way"),
    ):
        if len(cells) > _FEW:
            yield f"Not in it: {len(cells)} of {len(wanted)} runs ({why})."
        elif cells:
            yield f"Not in it: {'; '.join(map(str, cells))} ({why})."


def _measured(cell: Cell, rows: Sequence[Row]) -> bool:
    return any(cell.seed in row.values.get(cell.method, {}).get("pretrained", {}) for row in rows)
