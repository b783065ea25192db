"""What pre-training is judged beside: no training, random weights, and the image itself."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mimkit.evaluate.base import Result, Subject
from mimkit.evaluate.cells import Cell, digest
from mimkit.parts.encoder import Encoder
from mimkit.train.step import Pretrainer

TRAINED: Final = ("pretrained", "scratch")
"""Starts of a whole network that is trained on, in the order in which each seed takes them."""
BASELINES: Final = ("scratch", "random")
"""What ``"pretrained"`` is compared with: the first of these that was measured."""


@dataclass(frozen=True)
class Start:
    """One encoder, or none.

    Args:
        init: how its weights came about, as in `mimkit.evaluate.base.Result`.
        seeds: for which it is judged.
        encoder: None for the pixels of the image.
    """

    init: str
    seeds: Sequence[int]
    encoder: Encoder | None

    @property
    def weights(self) -> str:
        """What a finished cell is known by."""
        return self.init if self.encoder is None else digest(self.encoder)


def starts(subject: Subject, seeds: Sequence[int]) -> Iterator[Start]:
    """Gives the pre-trained encoder, one with random weights for each seed, and pixels.

    Each is built when it is asked for.
    """
    ours, *others = by_encoder(seeds)
    yield Start("pretrained", ours, subject.pretrainer.encoder)
    for some in others:
        yield Start("random", some, subject.fresh(some[0]).encoder)
    yield Start("pixels", seeds, None)


def start_of(cell: Cell, subject: Subject) -> Pretrainer:
    """Returns whose weights a network begins with: the pre-trained ones, or those of the seed."""
    return subject.pretrainer if cell.init == "pretrained" else subject.fresh(cell.seed)


def by_encoder(seeds: Sequence[int]) -> list[Sequence[int]]:
    """Gives the seeds for which each encoder is judged: the pre-trained one for all."""
    return [seeds, *([seed] for seed in seeds)]


class Baselines:
    """Remembers what does not change while an encoder trains, where that is judged repeatedly."""

    def __init__(self) -> None:
        self._known: list[Result] = []

    def beside(
        self, starts: Iterator[Start], judge: Callable[[Start], list[Result]]
    ) -> list[Result]:
        """Judges the first start, and the others if this is the first time."""
        ours = judge(next(starts))
        self._known = self._known or [result for start in starts for result in judge(start)]
        return ours + self._known
