"""Which columns of a table hold the images, and what is known of these."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimkit.data.intake.boxes import find_objects
from mimkit.data.intake.labels import LABEL_COLUMNS, Codes, NoClassesError, codes_of
from mimkit.data.intake.sheet import check_names, choose, some
from mimkit.data.intake.words import is_mask_word
from mimkit.data.registered import DataSet
from mimkit.errors import DataError, nearest

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Columns:
    """What was found in a table.

    Args:
        image: the column of images.
        label: the column of labels, or None.
        mask: the column of masks, or None.
        objects: the column of objects, or None.
        names: of the classes, if the file says what its numbers stand for.
        note: what people must know of the choice, or nothing.
    """

    image: str
    label: str | None
    mask: str | None
    objects: str | None
    names: tuple[str, ...] | None
    note: str


@dataclass(frozen=True)
class Asked:
    """What is known of the columns beforehand.

    Args:
        dataset: what is registered, or None.
        image: ``data.image_column``.
        label: ``data.label_column``.
        mask: ``data.masks``.
        objects: ``data.objects``.
    """

    dataset: DataSet | None = None
    image: str | None = None
    label: str | None = None
    mask: str | None = None
    objects: str | None = None


def find_columns(where: Path, schema: pa.Schema, features: dict[str, Any], asked: Asked) -> Columns:
    """Finds the columns of images, labels, masks and objects by their types and names.

    Args:
        where: a file, for messages.
        schema: of the table.
        features: what `datasets` wrote down of its columns (`features_of`).
        asked: what is known beforehand.

    Raises: DataError if there are no images, or a column that was asked for is not there.
    """
    columns, dataset = schema.names, asked.dataset
    check_names(where, columns)
    images = [name for name in columns if holds_images(schema.field(name).type)]
    image = choose(where, columns, (), asked.image, "data.image_column")
    if image is not None and image not in images:
        raise DataError(
            f"{where}: data.image_column = '{image}' must be a column of image files (their "
            f"bytes), but holds {schema.field(image).type}.{nearest(image, images)}"
        )
    if not images:
        raise DataError(
            f"{where}: a column must hold images (the bytes of image files), but none of "
            f"{some(columns)} does."
        )
    if image is None:
        pictures = [name for name in images if not is_mask_word(name)] or images
        image = dataset.image if dataset and dataset.image in images else pictures[0]
    mask = _mask(where, [name for name in images if name != image], asked)
    objects = find_objects(where, schema, asked.objects)
    others = [name for name in columns if name not in (image, mask, objects)]
    label = choose(where, others, LABEL_COLUMNS, asked.label, "data.label_column")
    note = ""
    if dataset is not None and asked.label is None:
        label = dataset.label
        if label is not None and label not in others:
            raise DataError(
                f"{where}: the labels of {dataset.name} must be in a column '{label}', but the "
                f"columns are {some(columns)}."
            )
    elif asked.label is None:
        named = [name for name in others if _names(features.get(name)) is not None]
        if named and (label is None or label.lower() not in LABEL_COLUMNS[:3]):
            label = named[0]
        if label is None and others:
            note = f"no labels: none of the columns {some(others)} is called label, class or so"
            note += "; if one holds them: data.label_column"
        elif label is not None and label not in ("label", "labels"):
            note = f"labels are those of the column '{label}' (data.label_column)"
    names = None if label is None else _names(features.get(label))
    if dataset is not None and names is not None and len(names) != dataset.num_classes:
        raise DataError(
            f"{where}: {dataset.name} has {dataset.num_classes} classes, but this file has "
            f"{len(names)}. Is it another data set?"
        )
    return Columns(image, label, mask, objects, names, note)


def _mask(where: Path, images: Sequence[str], asked: Asked) -> str | None:
    """Finds the column of masks among the other columns of images."""
    if asked.mask == "none":
        return None
    if asked.mask is not None and asked.mask not in images:
        raise DataError(
            f"{where}: data.masks = '{asked.mask}' must be a column of masks (the bytes of image "
            f"files) beside that of the images, but there is none.{nearest(asked.mask, images)}"
        )
    return asked.mask or next((name for name in images if is_mask_word(name)), None)


def features_of(schema: pa.Schema) -> dict[str, Any]:
    """What `datasets` wrote down of the columns of a parquet or Arrow file."""
    try:
        written = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return written if isinstance(written, dict) else {}


def names_in(features: dict[str, Any], column: str, field: str) -> tuple[str, ...] | None:
    """What the numbers stand for that a field of a column of structs holds, if it is written down.

    >>> label = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    >>> of_struct = {"bbox": {}, "category": {"feature": label, "_type": "List"}}
    >>> of_list = {"feature": {"bbox": {}, "category": label}, "_type": "List"}
    >>> [names_in({"objects": each}, "objects", "category") for each in (of_struct, of_list)]
    [('cat', 'dog'), ('cat', 'dog')]
    """
    inside = _unlisted(features.get(column))
    return _names(_unlisted(inside.get(field))) if isinstance(inside, dict) else None


def _unlisted(feature: object) -> object:
    match feature:
        case [inside] | {"_type": str(), "feature": inside}:
            return _unlisted(inside)
    return feature


def codes_in(where: Path, column: pa.ChunkedArray, found: Columns, *, sure: bool) -> Codes | str:
    """Numbers the labels of a table.

    Args:
        where: a file, for messages.
        column: the values.
        found: the columns.
        sure: whether the column was asked for; else one that holds no classes is only told.

    Returns: numbers and classes; or why they are none.
    Raises: DataError if the column was asked for and holds no classes.
    """
    import pyarrow as pa  # noqa: PLC0415 -- slow to import

    try:
        codes, names = codes_of(column, found.names)
    except (NoClassesError, pa.ArrowException) as error:
        if sure:
            raise DataError(
                f"{where}: the column '{found.label}' must hold classes, but {error}. Name another "
                "with data.label_column, or 'none'."
            ) from error
        return (
            f"no labels: the column '{found.label}' is not taken for them, as {error}; if another "
            "holds them: data.label_column"
        )
    return codes, names


def _names(feature: object) -> tuple[str, ...] | None:
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
        return tuple(feature.get("names") or ()) or None
    return None


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold image files."""
    import pyarrow as pa  # noqa: PLC0415

    if pa.types.is_struct(kind):
        return any(kind.field(k).name == "bytes" for k in range(kind.num_fields))
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )
