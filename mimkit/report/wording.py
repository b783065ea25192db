"""Words that all sentences on a comparison share."""

from collections.abc import Sequence
from typing import Final

from mimkit import words
from mimkit.evaluate.statistics import no_interval
from mimkit.report.findings import Interval, Pair, Row

CALLED: Final = {
    "finetune": "fine-tuning",
    "attentive_probe": "attentive probe",
    "linear_probe": "linear probe",
    "knn": "k-NN",
    "knn_consistency": "k-NN",
}
STARTS: Final = {
    "scratch": "training from scratch",
    "random": "frozen random weights",
    "pixels": "raw pixels",
}


def is_layer(row: Row) -> bool:
    """True for what a probe found in one layer, whichever it be."""
    return isinstance(row.protocol.get("layer"), int)


def called(row: Row) -> str:
    """What a row measures, in words: evaluator, metric and label fraction."""
    evaluator = CALLED.get(row.evaluator, row.evaluator.replace("_", " "))
    name = f"{evaluator} {row.metric.rpartition('/')[2].replace('_', ' ')}"
    fraction = row.protocol.get("label_fraction")
    if not isinstance(fraction, int | float):
        return name
    return f"{name} at {words.share(fraction)} of the labels"


def baseline_of(gain: Pair) -> str:
    """What a gain is over, in words."""
    return STARTS[gain.second.removeprefix(f"{gain.first} ")]


def points(value: float, metric: str) -> str:
    """A difference with its sign and unit."""
    return words.signed(value, metric) + (" points" if words.is_share(metric) else "")


def sure(interval: Interval, metric: str) -> str:
    """Words for an interval."""
    if interval.low is None:
        return no_interval(interval.num_seeds)
    low, high = (words.signed(end, metric) for end in (interval.low, interval.high))
    return f"95{words.NARROW}% interval {low} to {high}, n = {interval.num_seeds} seeds"


def listed(names: Sequence[str]) -> str:
    """A list as one writes it: ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
