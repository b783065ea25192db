"""Tables of images - parquet, or Arrow from ``save_to_disk`` - as listings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from numpy.typing import NDArray

from mimkit.data.intake.boxes import shows_objects
from mimkit.data.intake.columns import Asked, Columns, codes_in, features_of, find_columns
from mimkit.data.intake.folder import HELD_OUT
from mimkit.data.intake.groups import rows_of_share, split_groups
from mimkit.data.intake.kept import keep, kept, kept_rows
from mimkit.data.intake.labels import Codes, unite
from mimkit.data.intake.parquet import check_whole
from mimkit.data.intake.records import Records, copy_column
from mimkit.data.intake.table import Skipped, Table
from mimkit.data.registered import Split
from mimkit.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_FORMAT: Final = 1


@dataclass(frozen=True)
class Store:
    """The files of one split.

    Args:
        files: in order.
        arrow: whether they are Arrow streams, which can be mapped as they lie; else parquet.
    """

    files: tuple[Path, ...]
    arrow: bool = False

    @property
    def origin(self) -> str:
        """The folder."""
        return str(self.files[0].parent)

    def joined(self, others: Sequence[Self]) -> Self:
        """Its files, and after them those of others."""
        return replace(self, files=tuple(p for each in (self, *others) for p in each.files))

    def schema(self) -> pa.Schema:
        """Of the first file."""
        import pyarrow as pa  # noqa: PLC0415 -- slow to import
        import pyarrow.parquet as pq  # noqa: PLC0415

        if self.arrow:
            return pa.ipc.open_stream(pa.memory_map(str(self.files[0]))).schema
        return pq.read_schema(self.files[0])

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of all files, in memory."""
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415

        columns = [
            _stream(path)[name] if self.arrow else pq.read_table(path, columns=[name])[name]
            for path in self.files
        ]
        chunks = [chunk for column in columns for chunk in column.chunks]
        return pa.chunked_array(chunks, columns[0].type)

    def count(self) -> int:
        """How many rows there are."""
        import pyarrow.parquet as pq  # noqa: PLC0415

        if self.arrow:
            return sum(len(_stream(path)) for path in self.files)
        return sum(int(pq.read_metadata(path).num_rows) for path in self.files)

    def records(self, column: str, cache: Path) -> Records:
        """The images, each within reach."""
        if self.arrow:
            return Records(tuple(map(str, self.files)), column, self.origin)
        return copy_column(self.files, column, cache)

    def words(self) -> list[str]:
        """Paths, sizes and times of change."""
        status = [path.stat() for path in self.files]
        return [
            f"{path.absolute()}\0{each.st_size}\0{each.st_mtime_ns}"
            for path, each in zip(self.files, status, strict=True)
        ]


@dataclass(frozen=True)
class RowListing:
    """One split of a table of images.

    Args:
        store: its files.
        columns: what is read of them.
        other: the files of the other split, with which the classes are shared.
        share: which share of the rows to take, where no files are those of a test part.
        skipped: files that are not used.
        note: how the split came about.
    """

    store: Store
    columns: Columns
    other: Store | None = None
    share: Split | None = None
    skipped: tuple[Skipped, ...] = ()
    note: str = ""

    @property
    def masks(self) -> str:
        """The column of masks, in words; nothing if there is none."""
        return f"column '{self.columns.mask}'" if self.columns.mask else ""

    @property
    def mask_names(self) -> None:
        """Columns do not say what ids stand for."""
        return None

    @property
    def origin(self) -> str:
        """The folder."""
        return self.store.origin

    @cached_property
    def stamp(self) -> str:
        """Digest of the files, the columns and the share."""
        columns = self.columns
        words = [str(_FORMAT), columns.image, str(columns.label), *(columns.names or ())]
        words += [str(self.share), *self.store.words(), *(self.other.words() if self.other else ())]
        return hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]

    def read(self, cache: Path) -> Table:
        """Maps the images and numbers the labels."""
        with reading_rows(self.store):
            records = self.store.records(self.columns.image, cache)
            place = cache / "tables" / self.stamp
            rows = kept_rows(place, lambda: rows_of_share(len(records), self.share))
            if (found := kept(place)) is None:
                labels, classes = self._labels()
                keep(place, None if labels is None else labels[rows], classes)
                found = kept(place)
                assert found is not None
            masks = None
            if self.columns.mask is not None:
                masks = self.store.records(self.columns.mask, cache)
            return Table(records, rows, *found, masks, records.shards)

    def _labels(self) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
        label = self.columns.label
        if label is None:
            return None, ()
        stores = [self.store] if self.other is None else [self.store, self.other]
        codes = [_codes(store, self.columns) for store in stores]
        return unite(codes)[0]


def list_rows(groups: Mapping[str, Store], asked: Asked) -> dict[Split, RowListing]:
    """Lists both splits of tables of images.

    Args:
        groups: the files, by what they are called.
        asked: what is known of the columns.

    Raises: DataError if a file is damaged, or there is no column of images.
    """
    found = split_groups({name: store.files for name, store in groups.items()})
    trains, tests, notes, skipped = found
    first = groups[trains[0]]
    train = first.joined([groups[name] for name in trains[1:]])
    check_whole(train.files)
    with reading_rows(train):
        schema = train.schema()
        columns = find_columns(train.files[0], schema, features_of(schema), asked)
        columns = _checked(train, schema, columns, asked)
        if len(tests) > 1:
            chosen = _best(groups, tests, columns)
            others = [name for name in tests if name != chosen]
            notes.append(f"the test split is {chosen}; not used: {', '.join(others)}")
            skipped += [Skipped(groups[name].origin, f"not used: {name}") for name in others]
            tests = [chosen]
    shares: dict[Split, Split | None] = {"train": None, "test": None}
    other, held = (groups[tests[0]], "") if tests else (None, "")
    if other is None:
        held = f"no test part: one row of {HELD_OUT}, chosen by its number, is held out"
        shares = {"train": "train", "test": "test"}
    else:
        check_whole(other.files)
    said = "; ".join(each for each in (held, *notes, columns.note) if each)
    listing = RowListing(train, columns, other, shares["train"], tuple(skipped), said)
    test = replace(listing, share=shares["test"], skipped=(), note=held)
    if other is not None:
        test = replace(test, store=other, other=train)
    return {"train": listing, "test": test}


def _checked(store: Store, schema: pa.Schema, columns: Columns, asked: Asked) -> Columns:
    """Gives up a column of labels that was only guessed, if its values are no classes."""
    import pyarrow as pa  # noqa: PLC0415

    if columns.label is None or asked.label is not None or asked.dataset is not None:
        return columns
    kind = schema.field(columns.label).type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_string(kind):
        return columns  # classes, whatever the values are
    found = codes_in(store.files[0], store.column(columns.label), columns, sure=False)
    return replace(columns, label=None, note=found) if isinstance(found, str) else columns


def _best(groups: Mapping[str, Store], tests: Sequence[str], columns: Columns) -> str:
    """The first test split that has labels and objects, or most of these."""

    def known(name: str) -> int:
        store, column = groups[name], columns.objects
        labelled = columns.label is not None and bool((_codes(store, columns)[0] >= 0).any())
        annotated = column is not None and column in store.schema().names
        return labelled + (annotated and shows_objects(store.column(str(column))))

    return max(tests, key=known)


def _codes(store: Store, columns: Columns) -> Codes:
    """Numbers the labels of a split; all -1 if it has no such column."""
    assert columns.label is not None
    if columns.label not in store.schema().names:
        return np.full(store.count(), -1, dtype=np.int64), columns.names or ()
    own = features_of(store.schema()).get(columns.label)
    names = own.get("names") if isinstance(own, dict) else None
    mine = replace(columns, names=tuple(names) if names else columns.names)
    found = codes_in(store.files[0], store.column(columns.label), mine, sure=True)
    assert not isinstance(found, str)
    return found


def _stream(path: Path) -> pa.Table:
    import pyarrow as pa  # noqa: PLC0415

    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


@contextmanager
def reading_rows(store: Store) -> Iterator[None]:
    """Turns what Arrow says of damaged files into one message.

    Raises: DataError instead of any ArrowException inside.
    """
    import pyarrow as pa  # noqa: PLC0415

    try:
        yield
    except pa.ArrowException as error:
        kind = "Arrow" if store.arrow else "parquet"
        raise DataError(
            f"{store.origin}: its {len(store.files)} {kind} files must be readable and have the "
            f"same columns, but: {error}"
        ) from error
