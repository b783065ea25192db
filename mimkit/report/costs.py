"""What each method was given and what it took, and how unequal that is."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mimkit import words
from mimkit.report.findings import Arm, Cost, Outcome

ALIKE: Final = 1.01
"""Quantities that differ by no more than this factor are called equal."""


@dataclass(frozen=True)
class Quantity:
    """One line of the table of what is equal and what is not.

    Args:
        name: of the quantity.
        values: in words, one for each method.
        ratio: "equal", else largest over smallest; "none in some" where some have none of it; ""
            where there is nothing to compare.
    """

    name: str
    values: tuple[str, ...]
    ratio: str


def cost_of(arm: Arm, finished: Iterable[Outcome]) -> Cost:
    """Adds up the finished runs of a method; before there are any, its plan speaks."""
    ledgers = [one.ledger for one in finished if one.cell.method == arm.label]
    if not ledgers:
        assert arm.planned is not None, f"{arm.label} has neither run nor plan"
        return arm.planned
    prepared = [ledger.get("prepared", {}).values() for ledger in ledgers]
    planned = arm.planned.flops_per_image if arm.planned is not None else 0.0
    return Cost(
        measured=True,
        images=statistics.fmean(ledger["images_seen"] for ledger in ledgers),
        steps=statistics.fmean(ledger["steps"] for ledger in ledgers),
        flops_per_image=ledgers[0].get("flops_per_image") or planned,
        prepare_flops=statistics.fmean(
            sum(one.get("flops", 0.0) for one in run) for run in prepared
        ),
        train_seconds=statistics.fmean(ledger["seconds"]["train"] for ledger in ledgers),
        prepare_seconds=statistics.fmean(sum(one["seconds"] for one in run) for run in prepared),
        evaluate_seconds=statistics.fmean(ledger["seconds"]["evaluate"] for ledger in ledgers),
        peak_memory_bytes=max(ledger["peak_memory_bytes"] for ledger in ledgers),
        parameters=ledgers[0]["parameters"],
    )


def quantities(arms: Sequence[Arm], costs: Sequence[Cost]) -> list[Quantity]:
    """Lays the costs of all methods side by side; what none of them has is left out."""
    parts = dict.fromkeys(part for cost in costs for part in cost.parameters)
    any_prepared = any(cost.prepare_flops for cost in costs)
    lines: list[tuple[str, Sequence[float], Callable[[float], str]]] = [
        ("images seen", [cost.images for cost in costs], words.count),
        ("optimizer steps", [cost.steps for cost in costs], words.count),
        ("images of a step", [arm.batch_size for arm in arms], words.count),
        *(
            (f"{part} parameters", [cost.parameters.get(part, 0) for cost in costs], _size)
            for part in parts
        ),
        ("FLOPs per image", [cost.flops_per_image for cost in costs], _flops),
        ("FLOPs of pre-training", [c.images * c.flops_per_image for c in costs], _flops),
        ("FLOPs of preparation", [cost.prepare_flops for cost in costs], _work),
        ("FLOPs of both", [cost.flops for cost in costs if any_prepared], _flops),
        ("time of pre-training", [cost.train_seconds for cost in costs], _seconds),
        ("time of preparation", [cost.prepare_seconds for cost in costs], _span),
        ("preparation and pre-training", [cost.seconds for cost in costs], _seconds),
        ("time of evaluation", [cost.evaluate_seconds for cost in costs], _seconds),
        (
            "images per second",
            [cost.images / cost.train_seconds if cost.train_seconds else 0.0 for cost in costs],
            words.count,
        ),
        ("peak memory", [cost.peak_memory_bytes for cost in costs], words.memory),
    ]
    return [
        Quantity(name, tuple(written(value) for value in values), _ratio(values))
        for name, values, written in lines
        if any(values)
    ]


def _ratio(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ""
    if not min(values):
        return "none in some"
    ratio = max(values) / min(values)
    return "equal" if ratio <= ALIKE else f"×{words.NARROW}{ratio:.3g}"


def _size(value: float) -> str:
    return words.magnitude(value) if value else words.MISSING


def _flops(value: float) -> str:
    return words.magnitude(value, "FLOP")


def _work(value: float) -> str:
    return _flops(value) if value else "none"


def _seconds(value: float) -> str:
    return words.duration(value, exact=True)


def _span(value: float) -> str:
    return _seconds(value) if value else "none"
