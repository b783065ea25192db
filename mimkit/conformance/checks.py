"""What a check is, and how it says that a part fails it."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mimkit.conformance.specimen import Specimen

PARTS: Final = ("maskers", "encoders", "targets", "heads", "losses")
MODULES: Final = PARTS[1:]


class FailedError(Exception):
    """A part fails a check.

    Args:
        reason: what was seen, and what must be.
        advice: what its author should do.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


class NotApplicableError(Exception):
    """A check says nothing about this part, and why."""


@dataclass(frozen=True)
class Check:
    """One thing that must hold of a part.

    Args:
        name: of the function.
        kinds: the kinds of part that it is for.
        gate: whether all later checks of a part make sense only if it passes this one.
        run: raises FailedError or NotApplicableError.
    """

    name: str
    kinds: tuple[str, ...]
    gate: bool
    run: "Callable[[Specimen], None]"

    @property
    def harm(self) -> str:
        """What breaks for a user if a part fails this check."""
        return inspect.getdoc(self.run) or ""


CHECKS: Final[list[Check]] = []
"""All checks, in the order in which they are made."""


def check(
    *kinds: str, gate: bool = False
) -> "Callable[[Callable[[Specimen], None]], Callable[[Specimen], None]]":
    """Registers a function as a check of these kinds of part."""

    def register(function: "Callable[[Specimen], None]") -> "Callable[[Specimen], None]":
        CHECKS.append(Check(function.__name__, kinds, gate, function))
        return function

    return register


def require(holds: bool, reason: str, advice: str) -> None:
    """Raises FailedError unless something holds."""
    if not holds:
        raise FailedError(reason, advice)
