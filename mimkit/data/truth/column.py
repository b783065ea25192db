"""The objects that a column of a table tells of, read as if they stood in a JSON of COCO's."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mimkit.data.intake.boxes import Fields, fields_of
from mimkit.data.intake.columns import features_of, names_in
from mimkit.data.intake.rows import RowListing, Store, reading_rows
from mimkit.data.intake.table import Table
from mimkit.data.truth.coco import SLACK, NotCocoError, is_box
from mimkit.data.truth.coco_file import CocoFile, open_tree
from mimkit.data.truth.objects import CocoObjects, objects_in, refuse_strangers
from mimkit.files import reading

if TYPE_CHECKING:
    import pyarrow as pa

_FORMAT: Final = 1
"""Raised when rows are understood otherwise, so that old files are no longer found."""
_ENOUGH: Final = 16
"""Boxes from which on one can tell how they are written."""
_MANY: Final = 0.25
_MUST: Final = "but must be left, top, width, height in pixels"
_ONLY: Final = "object"
"""The class of all objects where none is told."""


def objects_of_rows(
    listing: RowListing, training: Store, used: Table, sizes: NDArray[np.int32], cache: Path
) -> CocoObjects | None:
    """Gives the objects of a split, if its table has a column of them.

    Args:
        listing: the split.
        training: the training part, or of which it is a share.
        used: its images that are used.
        sizes: their heights and widths, (n, 2).
        cache: folder of everything cached.

    Raises: NotCocoError if boxes are written otherwise; DataError if a test part has classes that
        training has not, or a file is damaged.
    """
    column = listing.columns.objects
    if column is None or not _has(listing.store, column):
        return None
    digest = hashlib.sha256(f"{_FORMAT}\0{column}\0{listing.stamp}".encode())
    digest.update(used.rows.tobytes() + sizes.tobytes())
    file = CocoFile(
        where=f"{listing.origin}, column '{column}'",
        name=f"column '{column}'",
        place=cache / "objects" / digest.hexdigest()[:32],
    )

    def tree() -> dict[str, Any]:
        first = _Said.of(training, column)
        same = listing.store == training
        said = first if same else _Said.of(listing.store, column, first.names)
        classes = tuple(dict.fromkeys(first.categories().values()))
        refuse_strangers(file.where, tuple(said.categories().values()), classes)
        return _tree(said, classes, used.rows.tolist(), sizes.tolist())

    with reading_rows(listing.store), reading(Path(listing.origin)):
        open_tree(file, tree)
    numbers = {name: number for number, name in enumerate(file.files)}
    return objects_in(
        file,
        np.array([numbers.get(str(row), -1) for row in used.rows.tolist()], dtype=np.int64),
        sizes=sizes,
        classes=file.classes,  # the training part's already
        where=used.where,
        lost=(),
    )


def _has(store: Store, column: str) -> bool:
    schema = store.schema()
    return column in schema.names and isinstance(fields_of(schema.field(column).type), Fields)


def _tree(
    said: _Said, classes: tuple[str, ...], rows: Sequence[int], sizes: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Writes the rows of a split as a tree, in which each image is called by its row."""
    codes = {category: classes.index(name) for category, name in said.categories().items()}
    images, annotations = [], []
    for row, (height, width), found in zip(rows, sizes, said.of_rows(rows), strict=True):
        if found is None:
            continue
        images.append({"id": row, "file_name": str(row), "height": height, "width": width})
        for number, one in enumerate(found):
            known = {"category_id": codes.get(one.pop("category")), "image_id": row}
            annotations.append({"id": f"row {row} [{number}]", **one, **known})
    _refuse_other_boxes(annotations, dict(zip(rows, sizes, strict=True)))
    categories = [{"id": code, "name": name} for code, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _refuse_other_boxes(
    annotations: Sequence[Mapping[str, Any]], sizes: Mapping[int, Sequence[int]]
) -> None:
    """Refuses corners and fractions, which columns hold as often and call the same.

    Raises: NotCocoError.
    """
    whole = [one for one in annotations if is_box(one.get("bbox"))]
    if len(whole) < _ENOUGH:
        return
    boxes = np.array([one["bbox"] for one in whole], dtype=np.float64)
    ends = np.array([sizes[one["image_id"]][::-1] for one in whole]) + SLACK
    corner, extent = boxes[:, :2], boxes[:, 2:]
    outside = (corner + extent > ends).any(axis=1)
    # A box that is right of the middle, or below it, reaches outside if a corner is taken for its
    # size. Files whose sizes are sizes seldom have any that does.
    if ((extent > corner) & (extent <= ends)).all() and outside.mean() > _MANY:
        raise NotCocoError(f"its boxes look like left, top, right, bottom, {_MUST}")
    if (np.abs(boxes) <= 1).all():
        raise NotCocoError(f"its boxes look like fractions of the image, {_MUST}")


@dataclass(frozen=True)
class _Said:
    """What the column of one part says.

    Args:
        values: a row for each image.
        fields: what each object has.
        names: what the numbers of categories stand for; None if that is not known.
    """

    values: pa.ChunkedArray
    fields: Fields
    names: tuple[str, ...] | None

    @classmethod
    def of(cls, store: Store, column: str, names: tuple[str, ...] | None = None) -> _Said:
        """Reads a column; its own names go before those given."""
        schema = store.schema()
        fields = fields_of(schema.field(column).type)
        assert isinstance(fields, Fields)
        if fields.category is not None:
            names = names_in(features_of(schema), column, fields.category) or names
        return cls(store.column(column), fields, names)

    def categories(self) -> dict[int | str | None, str]:
        """Names what stands for a category, in order."""
        import pyarrow as pa  # noqa: PLC0415 -- slow to import
        import pyarrow.compute as pc  # noqa: PLC0415

        field, values = self.fields.category, self.values
        if field is None:
            return {None: _ONLY}
        if self.fields.listed:
            flat = pc.struct_field(pc.list_flatten(values), [field])
        else:
            flat = pc.list_flatten(pc.struct_field(values, [field]))
        kind = flat.type.value_type if pa.types.is_dictionary(flat.type) else flat.type
        if pa.types.is_integer(kind) and self.names is not None:
            return dict(enumerate(self.names))
        # As of labels: a number below zero, or an empty name, stands for none.
        known = set(flat.to_pylist()) - {None, ""}
        return {each: str(each) for each in sorted(known) if isinstance(each, str) or each >= 0}

    def of_rows(self, rows: Sequence[int]) -> Iterator[list[dict[str, Any]] | None]:
        """Gives the objects of each row, called as COCO does; None where nothing is said."""
        for value in self.values.take(list(rows)).to_pylist():
            yield None if _is_nothing(value) else [self._known(one) for one in self._each(value)]

    def _each(self, value: Any) -> Iterator[Mapping[str, Any]]:
        if self.fields.listed:
            yield from (one or {} for one in value)
            return
        fields = self.fields
        names = [fields.box, fields.category, fields.area, fields.crowd, fields.outline]
        kept = [name for name in names if name is not None]
        for each in itertools.zip_longest(*(value[name] or () for name in kept)):
            yield dict(zip(kept, each, strict=True))

    def _known(self, one: Mapping[str, Any]) -> dict[str, Any]:
        fields = self.fields
        named = {
            "bbox": fields.box,
            "category": fields.category,
            "area": fields.area,
            "iscrowd": fields.crowd,
            "segmentation": fields.outline,
        }
        known = {key: one.get(name) for key, name in named.items() if name is not None}
        if fields.outline is not None:
            known["segmentation"] = _outline(known["segmentation"])
        return {"category": None, **known}


def _outline(raw: Any) -> Any:
    """Gives polygons or runs as JSON has them: no text in bytes, no struct of nothing."""
    if _is_nothing(raw):
        return None
    if isinstance(raw, dict) and isinstance(raw["counts"], bytes):
        return {**raw, "counts": raw["counts"].decode("ascii", "replace")}
    return raw


def _is_nothing(value: Any) -> bool:
    """Whether a value is missing; of a struct, whether all of it is."""
    return value is None or (isinstance(value, dict) and all(v is None for v in value.values()))
