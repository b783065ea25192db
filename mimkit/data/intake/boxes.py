"""Which column of a table says what images show, and what its fields are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mimkit.data.intake.sheet import some
from mimkit.errors import DataError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS: Final = ("objects", "annotations", "instances", "detections", "faces", "boxes", "bboxes")
"""What columns of objects are called, best first."""
_BOX: Final = ("bbox", "bboxes", "boxes", "box")
_CATEGORY: Final = (
    *("category", "categories", "label", "labels", "class", "classes"),
    *("category_id", "category_ids", "class_id"),
)
_AREA: Final = ("area", "areas")
_CROWD: Final = ("is_crowd", "iscrowd")
_OUTLINE: Final = ("segmentation", "segmentations")


@dataclass(frozen=True)
class Fields:
    """The fields of a column of objects; None for those that it has not, of which one may be box.

    Args:
        box: left, top, width and height.
        category: a number or a name.
        area: in pixels.
        crowd: whether an object stands for many.
        outline: polygons, or runs.
        listed: whether a row is a list of objects; else its fields are lists.
    """

    box: str | None
    category: str | None
    area: str | None
    crowd: str | None
    outline: str | None
    listed: bool


def fields_of(kind: pa.DataType) -> Fields | str:
    """Finds the fields of a column of this type; or says why it holds no objects.

    >>> import pyarrow as pa
    >>> kind = pa.struct({"bbox": pa.list_(pa.list_(pa.float32())), "label": pa.list_(pa.int8())})
    >>> found = fields_of(kind)
    >>> found.box, found.category, found.listed
    ('bbox', 'label', False)
    >>> fields_of(pa.list_(pa.float32()))
    'it holds list<item: float>'
    """
    import pyarrow as pa  # noqa: PLC0415 -- slow to import

    inner = _element(kind)
    listed = inner is not None and pa.types.is_struct(inner)
    if inner is not None and listed:
        members = {each.name: each.type for each in inner.fields}
    elif pa.types.is_struct(kind):
        members = {each.name: of for each in kind.fields if (of := _element(each.type))}
    else:
        return f"it holds {kind!s:.80}"
    box = _first(members, _BOX, _is_box)
    outline = _first(members, _OUTLINE, _is_outline)
    if box is None and outline is None:
        return f"none of its fields {some(list(members))} is a 'bbox' of four numbers"
    category = _first(members, _CATEGORY, _is_category)
    if category is None and (odd := _first(members, _CATEGORY, lambda _: True)):
        return f"its field '{odd}' holds {members[odd]!s:.60}, neither whole numbers nor names"
    area = _first(members, _AREA, _is_number)
    crowd = _first(members, _CROWD, _is_flag)
    return Fields(box, category, area, crowd, outline, listed)


def find_objects(where: Path, schema: pa.Schema, asked: str | None) -> str | None:
    """Finds the column of objects by its name and type.

    Args:
        where: a file, for messages.
        schema: of the table.
        asked: ``data.objects``.

    Raises: DataError if the column that was asked for is not there, or holds no objects.
    """
    if asked == "none":
        return None
    if asked is None:
        lower = {name.lower(): name for name in reversed(schema.names)}
        found = (lower[name] for name in COLUMNS if name in lower)
        return next((n for n in found if isinstance(fields_of(schema.field(n).type), Fields)), None)
    if asked not in schema.names:
        why = f"the columns are {some(schema.names)}.{nearest(asked, schema.names)}"
    elif isinstance(fields := fields_of(schema.field(asked).type), str):
        why = f"{fields}."
    else:
        return asked
    raise DataError(
        f"{where}: data.objects = '{asked}' must be a column of objects, each with a 'bbox' (left, "
        f"top, width, height) and a 'category', but {why} For none: data.objects='none'."
    )


def shows_objects(column: pa.ChunkedArray) -> bool:
    """Whether a column holds objects, in one row at least."""
    import pyarrow.compute as pc  # noqa: PLC0415

    fields = fields_of(column.type)
    if isinstance(fields, str):
        return False
    lists = column if fields.listed else pc.struct_field(column, [fields.box or fields.outline])
    return bool(pc.any(pc.greater(pc.list_value_length(lists), 0)).as_py())


def _first(
    members: Mapping[str, pa.DataType], names: Sequence[str], fits: Callable[[pa.DataType], bool]
) -> str | None:
    lower = {name.lower(): name for name in reversed(list(members))}
    found = (lower[name] for name in names if name in lower)
    return next((name for name in found if fits(members[name])), None)


def _element(kind: pa.DataType) -> pa.DataType | None:
    """The type of what a list holds; None if it is none."""
    import pyarrow as pa  # noqa: PLC0415

    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return kind.value_type
    return None


def _is_box(kind: pa.DataType) -> bool:
    import pyarrow as pa  # noqa: PLC0415

    side = _element(kind)
    four = not pa.types.is_fixed_size_list(kind) or kind.list_size == 4
    return side is not None and four and _is_number(side)


def _is_outline(kind: pa.DataType) -> bool:
    import pyarrow as pa  # noqa: PLC0415

    if pa.types.is_struct(kind):
        return {"size", "counts"} <= {each.name for each in kind.fields}
    polygon = _element(kind)
    corner = None if polygon is None else _element(polygon)
    return corner is not None and _is_number(corner)


def _is_category(kind: pa.DataType) -> bool:
    import pyarrow as pa  # noqa: PLC0415

    types = pa.types
    if types.is_dictionary(kind):
        return _is_category(kind.value_type)
    named = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(named or types.is_integer(kind))


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow as pa  # noqa: PLC0415

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_flag(kind: pa.DataType) -> bool:
    import pyarrow as pa  # noqa: PLC0415

    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind))
