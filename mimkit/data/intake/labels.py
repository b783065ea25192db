"""From the values of a label column to classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

LABEL_COLUMNS: Final = (
    *("label", "labels", "fine_label", "class", "target", "category", "class_name"),
    *("label_name", "category_name", "class_label", "classname", "class_id", "label_id"),
    *("category_id", "target_name", "targets", "cls", "y"),
)
"""What columns of labels are called, best first."""
Codes = tuple[NDArray[np.int64], tuple[str, ...]]
"""(N,) numbers of classes, -1 where there is none, and the names of the classes."""


class NoClassesError(Exception):
    """The values of a column cannot be classes; the text says why."""


def codes_of(column: pa.ChunkedArray, names: Sequence[str] | None = None) -> Codes:
    """Numbers the values of a column.

    Whole numbers, truth values, words and floats without a fraction are classes, in their order;
    the classes are called after the values. Missing values, the empty word and -1 are no label.

    Args:
        column: the values.
        names: what the numbers stand for, if the file says it.

    Raises: NoClassesError if values are of another kind.
    """
    import pyarrow as pa  # noqa: PLC0415 -- slow to import
    import pyarrow.compute as pc  # noqa: PLC0415

    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_string_view(kind):
        column, kind = column.cast(pa.string()), pa.string()
    if pa.types.is_boolean(kind):
        return _unique(column, [str(value) for value in (False, True)])
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_finite(column), column, None)
        odd = pc.filter(column, pc.not_equal(column, pc.floor(column)))
        if len(odd):
            raise NoClassesError(f"it holds numbers with a fraction, such as {odd[0].as_py():g}")
        column, kind = column.cast(pa.int64()), pa.int64()
    if pa.types.is_integer(kind):
        if names is None:
            return _unique(pc.if_else(pc.equal(column, -1), None, column), None)
        codes = np.asarray(pc.fill_null(column.cast(pa.int64()), -1), dtype=np.int64)
        if len(codes) and codes.max() >= len(names):
            raise NoClassesError(f"it holds {codes.max()}, but names only {len(names)} classes")
        return np.maximum(codes, -1), tuple(names)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = pc.utf8_trim_whitespace(column)
        return _unique(pc.if_else(pc.equal(column, ""), None, column), None)
    if pa.types.is_null(kind):
        return np.full(len(column), -1, dtype=np.int64), ()
    raise NoClassesError(f"it holds values of the type {kind}")


def unite(parts: Sequence[Codes]) -> list[Codes]:
    """Gives several columns the same classes: all that occur, in their order."""
    names = parts[0][1]
    if all(own == names for _, own in parts):
        return list(parts)
    every = {name for _, own in parts for name in own}
    united = tuple(sorted(every, key=int if all(map(_is_whole, every)) else None))
    number = {name: k for k, name in enumerate(united)}
    found: list[Codes] = []
    for codes, own in parts:
        new = np.array([*(number[name] for name in own), -1], dtype=np.int64)
        found.append((new[codes], united))
    return found


def _unique(column: pa.ChunkedArray, names: list[str] | None) -> Codes:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.compute as pc  # noqa: PLC0415

    values = pc.unique(column).drop_null()
    values = values.take(pc.sort_indices(values))
    codes = pc.fill_null(pc.index_in(column, value_set=values), -1)
    number = np.asarray(codes.cast(pa.int64()), dtype=np.int64)
    if names is not None:  # of False and True, in this order
        return number, tuple(names[int(value.as_py())] for value in values)
    return number, tuple(str(value.as_py()) for value in values)


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal()
