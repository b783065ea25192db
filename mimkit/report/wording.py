"""Words that all sentences on a comparison share."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

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
"""What pre-training is compared with, the first that was measured, and what a sentence calls it."""
_WRITTEN: Final = {
    "rankme": "RankMe",
    "lidar": "LiDAR",
    "miou": "mIoU",
    "iou": "IoU",
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
}
BASELINES: Final = {"scratch": "from scratch", "random": "random weights", "pixels": "raw pixels"}
"""The same in tables and charts."""


def is_layer(row: Row) -> bool:
    """True for what a probe found in one layer, whichever it be."""
    return isinstance(row.protocol.get("layer"), int)


def called(row: Row) -> str:
    """What a row measures, in words: evaluator, metric and label fraction."""
    evaluator = CALLED.get(row.evaluator, row.evaluator.replace("_", " "))
    name = f"{evaluator} {written(row.metric.rpartition('/')[2])}"
    fraction = row.protocol.get("label_fraction")
    if not isinstance(fraction, int | float):
        return name
    return f"{name} at {words.share(fraction)} of the labels"


def name_of(evaluator: str, metric: str) -> str:
    """What was measured, as a heading."""
    name = CALLED.get(evaluator, evaluator.replace("_", " "))
    if not name.startswith("k-"):
        name = f"{name[:1].upper()}{name[1:]}"
    return f"{name} {written(metric)}"


def written(metric: str) -> str:
    """A metric as people write it."""
    parts = metric.replace("/", "_").split("_")
    return " ".join(_WRITTEN.get(part, part) for part in parts)


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


def splitting(protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names the settings that differ at an equal label fraction: those make different tables.

    What differs only together with the fraction (a number of steps) stays in one table.
    """
    by_fraction: dict[float | None, list[Mapping[str, Any]]] = {}
    for protocol in protocols:
        by_fraction.setdefault(protocol.get("label_fraction"), []).append(protocol)
    names = dict.fromkeys(name for protocol in protocols for name in protocol)
    return [name for name in names if any(varies(alike, name) for alike in by_fraction.values())]


def varies(protocols: Iterable[Mapping[str, Any]], name: str) -> bool:
    """Whether a setting is not the same in all of them."""
    return len({repr(protocol.get(name)) for protocol in protocols}) > 1


def key_of(protocol: Mapping[str, Any]) -> str:
    """A text that is the same for equal protocols."""
    return json.dumps(protocol, sort_keys=True)


def worded(protocol: Mapping[str, Any], names: Iterable[str]) -> str:
    """Words for some settings of a protocol; those that are none are left out."""
    return ", ".join(
        f"{name.replace('_', ' ')} {_plain(protocol[name])}"
        for name in names
        if protocol.get(name) is not None
    )


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
