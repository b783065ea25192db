"""What each method was given and what it took, and how unequal that is."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mimkit import words
from mimkit.comparison.records import Method
from mimkit.report.findings import Outcome

ALIKE: Final = 1.01
"""Quantities that differ by no more than this factor are called equal."""


@dataclass(frozen=True)
class Cost:
    """What one method was given and what it took.

    Means over its finished runs; before there are any, what the plan expects.

    Args:
        method: as it was planned.
        measured: whether any run has finished.
        images: seen in pre-training.
        steps: of the optimizer.
        flops_per_image: of a step of pre-training, forwards and backwards.
        prepare_flops: of what targets needed first, as ``prepare_seconds``.
        train_seconds: of pre-training.
        prepare_seconds: of what targets needed first, such as a tokenizer's training, when it was
            made; a run that finds it in the cache still owes it.
        evaluate_seconds: of the evaluations.
        peak_memory_bytes: the largest of its runs.
        parameters: encoder, head, targets, frozen, trainable to how many.
    """

    method: Method
    measured: bool
    images: float
    steps: float
    flops_per_image: float
    prepare_flops: float
    train_seconds: float
    prepare_seconds: float
    evaluate_seconds: float
    peak_memory_bytes: float
    parameters: Mapping[str, int]

    @property
    def flops(self) -> float:
        """Floating-point operations of preparation and pre-training."""
        return self.prepare_flops + self.images * self.flops_per_image

    @property
    def seconds(self) -> float:
        """Preparation and pre-training."""
        return self.prepare_seconds + self.train_seconds


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


def cost_of(method: Method, finished: Iterable[Outcome]) -> Cost:
    """Adds up the finished runs of a method."""
    ledgers = [one.ledger for one in finished if one.cell.method == method.label]
    trial = method.trial
    if not ledgers:
        return Cost(
            method=method,
            measured=False,
            images=method.images,
            steps=method.total_steps,
            flops_per_image=trial.flops_per_image,
            prepare_flops=trial.prepare_flops,
            train_seconds=method.total_steps * trial.seconds_per_step,
            prepare_seconds=trial.prepare_seconds,
            evaluate_seconds=method.evaluate_seconds,
            peak_memory_bytes=trial.peak_memory_bytes,
            parameters=trial.parameters,
        )
    prepared = [ledger.get("prepared", {}).values() for ledger in ledgers]
    return Cost(
        method=method,
        measured=True,
        images=statistics.fmean(ledger["images_seen"] for ledger in ledgers),
        steps=statistics.fmean(ledger["steps"] for ledger in ledgers),
        flops_per_image=ledgers[0].get("flops_per_image") or trial.flops_per_image,
        prepare_flops=statistics.fmean(
            sum(one.get("flops", 0.0) for one in run) for run in prepared
        ),
        train_seconds=statistics.fmean(ledger["seconds"]["train"] for ledger in ledgers),
        prepare_seconds=statistics.fmean(sum(one["seconds"] for one in run) for run in prepared),
        evaluate_seconds=statistics.fmean(ledger["seconds"]["evaluate"] for ledger in ledgers),
        peak_memory_bytes=max(ledger["peak_memory_bytes"] for ledger in ledgers),
        parameters=ledgers[0]["parameters"],
    )


def quantities(costs: Sequence[Cost]) -> list[Quantity]:
    """Lays the costs of all methods side by side; what none of them has is left out."""
    parts = dict.fromkeys(part for cost in costs for part in cost.parameters)
    any_prepared = any(cost.prepare_flops for cost in costs)
    lines: list[tuple[str, Sequence[float], Callable[[float], str]]] = [
        ("images seen", [cost.images for cost in costs], words.count),
        ("optimizer steps", [cost.steps for cost in costs], words.count),
        ("images of a step", [cost.method.batch_size for cost in costs], words.count),
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
