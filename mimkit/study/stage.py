"""What of a comparison one plan holds: its runs, or the trials before them."""

from dataclasses import dataclass
from typing import Final

from mimkit.study.methods import Found

TENTHS: Final = 10
"""Of a budget that is not shared."""


@dataclass(frozen=True)
class Stage:
    """One of the parts that are planned and run one after the other.

    Args:
        found: its methods; None for those that the command line names.
        tenths: of the budget that each of its runs gets.
        trials: its runs only tell which settings are better: by labels of training images, with
            nothing beside that, under a seed that no other run has.
    """

    found: tuple[Found, ...] | None = None
    tenths: int = TENTHS
    trials: bool = False


WHOLE: Final = Stage()
"""A comparison without trials."""
