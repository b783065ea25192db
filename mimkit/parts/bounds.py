"""The types of bounded options, for the signatures of parts.

A bound is part of the schema that a signature is: a recipe beyond it is refused by name before
anything is built, and ``mimkit list KIND NAME`` and the JSON schema say it. A bound of its own is
``Annotated[int, annotated_types.Interval(ge=2, le=9)]``. What depends on another option, such as a
width that heads must divide, the constructor checks. No number of a recipe is NaN or infinite,
bounded or not.

>>> class Stack(Head):
...     def __init__(self, geometry, *, depth: Depth = 4, dropout: Rate = 0.0): ...
"""

from typing import Annotated

from annotated_types import Interval

__all__ = [
    "AnyCount",
    "Count",
    "Depth",
    "Fraction",
    "Multiple",
    "NonNegative",
    "Positive",
    "Rate",
    "Ratio",
    "Size",
]

Size = Annotated[int, Interval(ge=1, le=65_536)]
"""A width, a number of heads, codes or patches, a side in pixels."""

Depth = Annotated[int, Interval(ge=1, le=256)]
"""Blocks that follow each other."""

Count = Annotated[int, Interval(ge=1, le=1_000_000_000)]
"""Steps, images, runs: what takes time, but no memory."""

AnyCount = Annotated[int, Interval(ge=0, le=1_000_000_000)]
"""The same, or none."""

Multiple = Annotated[float, Interval(ge=0.1, le=100)]
"""A width as a multiple of another."""

Ratio = Annotated[float, Interval(ge=0, le=1)]
"""A share of a whole."""

Fraction = Annotated[float, Interval(gt=0, le=1)]
"""A share that is not nothing."""

Rate = Annotated[float, Interval(ge=0, lt=1)]
"""What is dropped or forgotten, of which all would leave nothing."""

Positive = Annotated[float, Interval(gt=0)]
"""A number above 0."""

NonNegative = Annotated[float, Interval(ge=0)]
"""A number of at least 0."""
