"""From single numbers to rows: what belongs together, by method, start and seed."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mimkit.evaluate.base import Evaluator, Plain
from mimkit.evaluate.statistics import of_entry
from mimkit.evaluate.uncertainty import Measured, mean_of
from mimkit.recipe import registry
from mimkit.report.findings import Row

OF_METHOD: Final = ("num_layers", "width")
"""Settings of a protocol that follow from a method's encoder: they keep no numbers apart."""


@dataclass(frozen=True)
class Number:
    """One measured number.

    Args:
        label: of the method.
        seed: by which it is paired with others.
        protocol: how it was measured.
        result: as ``results.json`` has it.
    """

    label: str
    seed: int
    protocol: Mapping[str, Plain]
    result: Mapping[str, Any]


def rows(labels: Sequence[str], numbers: Iterable[Number]) -> list[Row]:
    """Arranges all numbers: evaluators as they come, then metrics, label fractions, layers."""
    groups: dict[tuple[str, str, str], _Group] = {}
    for number in numbers:
        shared = {k: v for k, v in number.protocol.items() if k not in OF_METHOD}
        key = (
            number.result["evaluator"],
            number.result["metric"],
            json.dumps(shared, sort_keys=True),
        )
        groups.setdefault(key, _Group()).add(number)
    classes = {evaluator: _classes(evaluator) for evaluator, _, _ in groups}
    found = [
        group.row(evaluator, metric, labels, classes[evaluator])
        for (evaluator, metric, _), group in groups.items()
    ]
    measured = list(dict.fromkeys((row.evaluator, row.metric) for row in found))

    def order(row: Row) -> tuple[int, float, int]:
        fraction, layer = (row.protocol.get(name) for name in ("label_fraction", "layer"))
        return (
            measured.index((row.evaluator, row.metric)),
            fraction if isinstance(fraction, int | float) else 0.0,
            layer if isinstance(layer, int) else 0,
        )

    return sorted(found, key=order)


@dataclass
class _Group:
    """Numbers that belong to one row, as they come."""

    protocols: list[Mapping[str, Plain]] = field(default_factory=list)
    found: dict[str, dict[str, dict[int, list[Measured]]]] = field(default_factory=dict)

    def add(self, number: Number) -> None:
        self.protocols.append(number.protocol)
        starts = self.found.setdefault(number.label, {})
        of_seed = starts.setdefault(number.result["init"], {}).setdefault(number.seed, [])
        of_seed.append(of_entry(number.result))

    def row(
        self, evaluator: str, metric: str, labels: Iterable[str], classes: Sequence[type[Evaluator]]
    ) -> Row:
        first, *others = self.protocols
        own_task = any(cls.needs_targets for cls in classes)
        measured = {
            label: {
                # What a run measured more than once is one number: seeds are what varies.
                start: {seed: mean_of(found) for seed, found in by_seed.items()}
                for start, by_seed in self.found[label].items()
            }
            for label in labels
            if label in self.found
        }
        return Row(
            evaluator=evaluator,
            metric=metric,
            protocol={
                name: value
                for name, value in first.items()
                if all(name in other and other[name] == value for other in others)
            },
            values={
                label: {
                    start: {seed: one.value for seed, one in by_seed.items()}
                    for start, by_seed in starts.items()
                }
                for label, starts in measured.items()
            },
            own_task=own_task,
            ranked=all(cls.ranks for cls in classes),
            # An image of a pre-training task is many positions: shares say nothing of its error.
            measured={} if own_task else measured,
        )


def _classes(evaluator: str) -> list[type[Evaluator]]:
    """What is registered under a name: it knows what its numbers mean."""
    classes = [registry.load(e) for e in registry.entries("evaluators") if e.name == evaluator]
    return [cls for cls in classes if isinstance(cls, type) and issubclass(cls, Evaluator)]
