"""What each layer of an encoder holds: the results of a probe, gathered into curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mimkit import words
from mimkit.report.of_run import (
    BASELINES,
    Entry,
    Spread,
    is_layer,
    key_of,
    metric_of,
    spread_of,
    worded,
)

ORDER = ("pretrained", *BASELINES)


@dataclass(frozen=True)
class Line:
    """One way of pooling, from one initialisation.

    Args:
        pool: the way, as the protocol names it; may be empty.
        init: the initialisation.
        by_layer: layer, counted from 1, to its numbers.
        chosen: the layer that was best on development images, once for each seed.
    """

    pool: str
    init: str
    by_layer: Mapping[int, Spread]
    chosen: tuple[int, ...]

    @property
    def label(self) -> str:
        """What a reader calls it."""
        start = BASELINES.get(self.init, "pre-trained")
        return f"{start}, {self.pool.replace('_', ' + ')}" if self.pool else start


@dataclass(frozen=True)
class Curves:
    """One metric over the layers, under one protocol but for layer and pool.

    Args:
        evaluator: its name.
        metric: what was measured.
        fraction: the share of labels that was used, if the protocol says so.
        protocol: what else, in words.
        lines: by pool, pre-trained first.
    """

    evaluator: str
    metric: str
    fraction: float | None
    protocol: str
    lines: tuple[Line, ...]

    @property
    def name(self) -> str:
        """The evaluator, with the share of labels unless it is all of them."""
        if self.fraction is None or self.fraction == 1:
            return self.evaluator
        return f"{self.evaluator}, {words.share(self.fraction)} of the labels"

    @property
    def layers(self) -> list[int]:
        """All layers that were measured."""
        return sorted({layer for line in self.lines for layer in line.by_layer})

    @property
    def num_seeds(self) -> int:
        """How many seeds its numbers are means over."""
        return max(len(s.values) for line in self.lines for s in line.by_layer.values())

    @property
    def pools(self) -> list[str]:
        """All ways of pooling."""
        return list(dict.fromkeys(line.pool for line in self.lines))


def curves(results: Mapping[str, Sequence[Entry]]) -> list[Curves]:
    """Gathers the results that name a layer, one record for each protocol but for the layer."""
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for summary in filter(is_layer, results["summaries"]):
        groups.setdefault(_group(summary), []).append(summary)
    chosen: dict[tuple[str, ...], list[int]] = {}
    for result in results["results"]:
        layer = result.get("chosen", {}).get("layer")
        if layer is not None:
            key = (*_group(result), _pool(result), result["init"])
            chosen.setdefault(key, []).append(layer)
    return [_curves(group, chosen) for group in groups.values()]


def _curves(summaries: Sequence[Entry], chosen: Mapping[tuple[str, ...], list[int]]) -> Curves:
    first = summaries[0]
    by_line: dict[tuple[str, str], dict[int, Spread]] = {}
    for summary in summaries:
        line = by_line.setdefault((_pool(summary), summary["init"]), {})
        line[summary["protocol"]["layer"]] = spread_of(summary)
    lines = [
        Line(pool, init, by_layer, tuple(chosen.get((*_group(first), pool, init), ())))
        for (pool, init), by_layer in by_line.items()
    ]
    pools = list(dict.fromkeys(line.pool for line in lines))
    lines.sort(key=lambda line: (pools.index(line.pool), ORDER.index(line.init)))
    protocol = _rest(first)
    fraction = protocol.pop("label_fraction", None)
    return Curves(*metric_of(first), fraction, worded(protocol, protocol), tuple(lines))


def _group(entry: Entry) -> tuple[str, str, str]:
    return *metric_of(entry), key_of(_rest(entry))


def _rest(entry: Entry) -> dict[str, Any]:
    return {k: v for k, v in entry["protocol"].items() if k not in ("layer", "pool")}


def _pool(entry: Entry) -> str:
    return entry["protocol"].get("pool") or ""
