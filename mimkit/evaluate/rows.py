"""Every row of a table trained and judged, with the learning rate that suits it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from mimkit.evaluate.at_once import Call, at_once
from mimkit.evaluate.base import Plain, Result
from mimkit.evaluate.cells import Cell, Table
from mimkit.evaluate.fractions import Subsets
from mimkit.evaluate.score import Score
from mimkit.evaluate.search import choose_rate


class Training(Protocol):
    """What trains and judges the network of a cell."""

    def one_of(self, count: int) -> Call:
        """Returns the same for one of so many processes; see `mimkit.evaluate.at_once`."""


def train_rows(
    table: Table,
    subsets: Subsets,
    trainer: Training,
    score: Callable[[Cell, Tensor, Tensor, Call], Score],
    *,
    inits: Sequence[str],
    lrs: Sequence[float],
    protocol: Mapping[str, Plain],
) -> list[Result]:
    """Trains and judges for each fraction, seed and start; several at once where that pays.

    Args:
        table: where numbers are kept.
        subsets: fractions, seeds, and the images of each row.
        trainer: trains networks.
        score: trains a cell on some images, (n,) int64, by a trainer, and judges others, (m,).
        inits: where the weights come from. All starts of a seed come in turn, so that what is
            known when a run is killed is paired.
        lrs: of which a row's development images choose one.
        protocol: what else was the same for all rows.
    """
    rows = [
        Cell(init, seed, fraction)
        for fraction in subsets.fractions
        for seed in subsets.seeds
        for init in inits
    ]

    def results(row: Cell, train: Call) -> list[Result]:
        def score_by(cell: Cell, fitted: Tensor, judged: Tensor) -> Score:
            return score(cell, fitted, judged, train)

        lr, found = choose_rate(row, lrs, subsets, score_by)
        same = {**subsets.protocol(row), **protocol}
        return table.results(row, found, same, {"lr": lr, **found.chosen})

    subject = table.subject
    found = at_once(trainer.one_of, results, rows, device=subject.device, report=subject.report)
    return [result for of_row in found for result in of_row]
