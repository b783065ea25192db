"""Choosing on development images, with no more labels than a number says it has seen."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from mimkit.evaluate.base import Plain
from mimkit.evaluate.cells import Cell
from mimkit.evaluate.fractions import Subsets
from mimkit.evaluate.score import Score

T = TypeVar("T")


def best(candidates: Iterable[T], score: Callable[[T], Score]) -> tuple[T, Score]:
    """Scores candidates in turn and returns the best one; of equal ones the first."""
    scored = [(candidate, score(candidate)) for candidate in candidates]
    return max(scored, key=lambda one: one[1].rank)


def choose_rate(
    row: Cell,
    lrs: Sequence[float],
    subsets: Subsets,
    score: Callable[[Cell, Tensor, Tensor], Score],
) -> tuple[float, Score]:
    """Finds the learning rate that is best on a row's development images, and judges with it.

    Args:
        row: a cell of the test split without a rate.
        lrs: to choose from; a single one is taken as it is.
        subsets: the images; of the row's own labels alone some are trained on, others judged.
        score: trains a cell on some images and judges others.

    Returns: the rate, and the score of the test images after training on all labels of the row.
    """
    lr = lrs[0]
    if len(lrs) > 1:
        fitted, held = subsets.development(row)
        development = replace(row, split="development")
        lr, _ = best(lrs, lambda lr: score(_at(development, lr), fitted, held))
    return lr, score(_at(row, lr), subsets.train(row), subsets.test)


def named(lrs: Sequence[float]) -> dict[str, Plain]:
    """Names the search in a protocol, so that numbers of another search are kept apart."""
    found: dict[str, Plain] = {"lrs": ", ".join(f"{lr:g}" for lr in lrs)}
    return found if len(lrs) == 1 else {**found, "searched": "by each seed's own labels"}


def _at(row: Cell, lr: float) -> Cell:
    return replace(row, setting={**row.setting, "lr": lr})
