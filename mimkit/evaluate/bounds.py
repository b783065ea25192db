"""What the options of an evaluator may be; anything else is refused by the option's name."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mimkit.errors import RecipeError

Given = float | None | Sequence[float]


@dataclass(frozen=True)
class Range:
    """An interval that numbers must lie in; it has no infinity in it, nor NaN.

    Args:
        low: the least that is allowed, or what must be exceeded.
        high: the most that is allowed.
        open: whether ``low`` itself is left out.
    """

    low: float
    high: float = math.inf
    open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open else value >= self.low
        return above and value <= self.high and math.isfinite(value)

    def __str__(self) -> str:
        if math.isfinite(self.high) and not self.open:
            return f"from {self.low:g} to {self.high:g}"
        above = f"{'above' if self.open else 'at least'} {self.low:g}"
        return f"{above} and at most {self.high:g}" if math.isfinite(self.high) else above


COUNT: Final = Range(1)
NOT_NEGATIVE: Final = Range(0)
POSITIVE: Final = Range(0, open=True)
SHARE: Final = Range(0, 1)
PART: Final = Range(0, 1, open=True)
"""A share that is not nothing, such as a label fraction."""


def require(evaluator: str, allowed: Range, **options: Given) -> None:
    """Refuses values out of range; of lists also an empty one and a value that comes twice.

    Args:
        evaluator: whose options they are.
        allowed: where they must lie.
        options: by name; None is what stands for no value.

    Raises: RecipeError naming the option, the range and what it is.
    """
    for name, given in options.items():
        if given is None:
            continue
        where = f"evaluator '{evaluator}', {name}:"
        if isinstance(given, Sequence):
            distinct(evaluator, **{name: given})
            for value in given:
                if value not in allowed:
                    raise RecipeError(f"{where} each must be {allowed}, but one is {value:g}.")
        elif given not in allowed:
            raise RecipeError(f"{where} must be {allowed}, but is {given:g}.")


def distinct(evaluator: str, **options: Sequence[object]) -> None:
    """Refuses lists that are empty or hold a value twice, which would be measured twice.

    Raises: RecipeError naming the option and what it is.
    """
    for name, given in options.items():
        if not given or len(set(given)) < len(given):
            raise RecipeError(
                f"evaluator '{evaluator}', {name}: must hold at least one value and none twice, "
                f"but is {list(given)}."
            )
