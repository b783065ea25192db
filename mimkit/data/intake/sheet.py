"""Tables of file and label: CSV, TSV, JSON lines, parquet without images."""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from mimkit.data.intake.labels import LABEL_COLUMNS, NoClassesError, codes_of
from mimkit.data.intake.walk import ARRAYS, EXTENSIONS, Tree
from mimkit.data.intake.words import TEST_WORDS, TRAIN_WORDS
from mimkit.errors import DataError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

KINDS: Final = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".parquet")
METADATA: Final = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables that belong to the images beside and below them, as Hugging Face has it."""
_FILE_COLUMNS: Final = (
    *("file_name", "filename", "file", "filepath", "file_path", "path", "image", "image_path"),
    *("image_file", "image_name", "image_id", "img", "img_path", "name", "id"),
)
_SPLIT_COLUMNS: Final = ("split", "subset", "partition", "set", "dataset")
_SHOWN: Final = 8


@dataclass(frozen=True)
class Naming:
    """What a table says of the images of a folder.

    Args:
        codes: class of each image by its path below the folder, -1 for none.
        classes: their names; () if the table has no labels.
        splits: the split of each image, where the table has such a column.
        lost: files that the table names, but the folder has not.
        note: what was taken for what.
        digest: of the tables, and of the columns taken.
    """

    codes: dict[str, int]
    classes: tuple[str, ...]
    splits: dict[str, str]
    lost: tuple[str, ...]
    note: str
    digest: str


@dataclass
class _Rows:
    files: list[str] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    values: list[pa.ChunkedArray] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def naming(
    tree: Tree, tables: Sequence[Path], image_column: str | None, label_column: str | None
) -> Naming:
    """Reads tables and finds the images that they name.

    A name is a path below the folder of its table, or below that of the images, with or without
    its extension; or a file's name alone, if only one image has it.

    Raises: DataError if a table cannot be read, names no image, or its labels are no classes.
    """
    import pyarrow as pa  # noqa: PLC0415 -- slow to import

    rows, digest = _Rows(), hashlib.sha256(f"{image_column}\0{label_column}".encode())
    finder = _Finder(tree)
    lost: list[str] = []
    for path in tables:
        digest.update(path.read_bytes())
        before = len(rows.files)
        _read_rows(path, image_column, label_column, rows)
        folder = os.path.relpath(path.parent.absolute(), tree.root)
        found = [finder.find(name, folder) for name in rows.files[before:]]
        lost += [name for name, at in zip(rows.files[before:], found, strict=True) if at is None]
        rows.files[before:] = [at or "" for at in found]
    if not any(rows.files):
        raise DataError(
            f"{tables[0]}: must name images below {tree.root}, but none of its {len(rows.files):,} "
            f"is there{f', for example {lost[0]!r}' if lost else ''}. Name the column of files "
            "with data.image_column, or the folder of the images with data.name."
        )
    codes: dict[str, int] = {}
    classes: tuple[str, ...] = ()
    if rows.values:
        try:
            chunks = [chunk for values in rows.values for chunk in values.chunks]
            numbers, classes = codes_of(pa.chunked_array(chunks))
        except (NoClassesError, pa.ArrowException) as error:
            raise DataError(
                f"{tables[0]}: its column of labels must hold classes, but {error}. Name another "
                "column with data.label_column, or 'none'."
            ) from error
        for file, code in zip(rows.files, numbers.tolist(), strict=True):
            if file and codes.setdefault(file, code) != code:
                both = " and ".join(classes[each] for each in (codes[file], code))
                raise DataError(
                    f"{tables[0]}: must give each image one label, but gives '{file}' {both}."
                )
    splits = {
        file: split
        for file, split in zip(rows.files, rows.splits, strict=True)
        if split is not None and file
    }
    note = "; ".join(dict.fromkeys(rows.notes))
    listed = dict.fromkeys((file for file in rows.files if file), -1)
    return Naming(listed | codes, classes, splits, tuple(lost), note, digest.hexdigest())


def file_column(path: Path, columns: Sequence[str], asked: str | None) -> str | None:
    """The column that names the files, or None.

    Raises: DataError if the one asked for is not there.
    """
    found = choose(path, columns, _FILE_COLUMNS, asked, "data.image_column")
    return found or next((name for name in columns if name.endswith("file_name")), None)


def check_names(where: object, columns: Sequence[str]) -> None:
    """Refuses tables in which two columns have one name."""
    if len(set(columns)) < len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise DataError(f"{where}: its columns must have different names, but two are '{twice}'.")


def choose(
    where: object, columns: Sequence[str], known: Sequence[str], asked: str | None, key: str
) -> str | None:
    """Finds a column by what it is called, or as asked for.

    Raises: DataError if the one asked for is not there.
    """
    if asked == "none":
        return None
    if asked is not None:
        if asked not in columns:
            raise DataError(
                f"{where}: {key} = '{asked}' must be one of its columns, which are "
                f"{some(columns)}.{nearest(asked, columns)}"
            )
        return asked
    lower = {column.lower().strip(): column for column in reversed(columns)}
    return next((lower[name] for name in known if name in lower), None)


def some(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _read_rows(path: Path, image_column: str | None, label_column: str | None, to: _Rows) -> None:
    import pyarrow as pa  # noqa: PLC0415

    try:
        table = _load(path, image_column)
    except (OSError, pa.ArrowException, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: must be a table that can be read, but: {error}") from error
    columns = table.column_names
    check_names(path, columns)
    files = file_column(path, columns, image_column)
    if files is None:
        raise DataError(
            f"{path}: must have a column of file names, but has {some(columns)}. Name it with "
            "data.image_column."
        )
    others = [name for name in columns if name != files]
    label = choose(path, others, LABEL_COLUMNS, label_column, "data.label_column")
    split = next((name for name in others if name.lower() in _SPLIT_COLUMNS), None)
    if label is None and label_column is None:
        rest = [name for name in others if name != split]
        if len(rest) == 1 and path.name not in METADATA:
            label = rest[0]
    words = [str(value).lower() for value in table[split].to_pylist()] if split else []
    if not set(words) & set(TRAIN_WORDS) or not set(words) & set(TEST_WORDS):
        words = []
    what = f"files in column '{files}'"
    if label:
        what += f", labels in '{label}'"
        to.values.append(table[label])
    elif others and label_column != "none":
        what += f", no labels (columns: {some(others)}; data.label_column names one)"
    if words:
        what += f", splits in '{split}'"
    to.notes.append(f"{path.name}: {what}")
    to.files += [str(value or "") for value in table[files].to_pylist()]
    known = {**dict.fromkeys(TRAIN_WORDS, "train")}
    tests = [word for word in TEST_WORDS if word in words]
    if tests:  # the first of several; the others are left out
        known |= {word: "test" if word == tests[0] else "none" for word in tests}
    to.splits += [known.get(word, "none") for word in words] or [None] * len(table)


def _load(path: Path, image_column: str | None) -> pa.Table:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.csv as pc  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    kind = path.suffix.lower()
    if kind == ".parquet":
        return pq.read_table(path)
    if kind in (".jsonl", ".ndjson"):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        return pa.Table.from_pylist([json.loads(line) for line in lines if line.strip()])
    text = path.read_bytes().decode("utf-8-sig")
    first = text.partition("\n")[0]
    delimiter = max("\t;,", key=first.count) if kind != ".tsv" else "\t"
    headless = any(
        PurePosixPath(cell.strip().strip('"')).suffix.lower() in EXTENSIONS | ARRAYS
        for cell in first.split(delimiter)
    )
    header = [cell.strip("\r").strip('"') for cell in first.split(delimiter)]
    files = [name for name in header if _may_name_files(name.strip(), image_column)]
    table = pc.read_csv(
        io.BytesIO(text.encode()),
        pc.ReadOptions(autogenerate_column_names=headless),
        pc.ParseOptions(delimiter=delimiter),
        pc.ConvertOptions(column_types=dict.fromkeys(files, pa.string())),  # 007 is no number
    )
    if headless:
        names = ["file", "label"] if table.num_columns == 2 else table.column_names
        table = table.rename_columns(["file" if k == 0 else n for k, n in enumerate(names)])
    return table.rename_columns([name.strip() for name in table.column_names])


def _may_name_files(column: str, image_column: str | None) -> bool:
    lower = column.lower()
    return column == image_column or lower in _FILE_COLUMNS or lower.endswith("file_name")


class _Finder:
    """Finds images of a tree by what tables call them."""

    def __init__(self, tree: Tree) -> None:
        self.root = tree.root
        self.paths = {f.path(name): f.path(name) for f in tree.folders for name in f.images}
        self.loose: dict[str, str] | None = None

    def find(self, name: str, folder: str) -> str | None:
        """The path of an image below the root.

        Args:
            name: as a table calls it.
            folder: that of the table, as a path from the root, which may lead upwards.
        """
        name = posixpath.normpath(name.strip().replace("\\", "/").removeprefix(f"{self.root}/"))
        whole = posixpath.normpath(f"{folder}/{name}")
        if whole.startswith("../"):  # from above the root down into it
            whole = os.path.relpath(f"{self.root}/{whole}", self.root)
        return self.paths.get(whole) or self.paths.get(name) or self._loosely(whole, name)

    def _loosely(self, *names: str) -> str | None:
        if self.loose is None:
            self.loose = {}
            for path in self.paths:
                stem = path.rpartition(".")[0]
                file = path.rpartition("/")[2]
                for known in {stem, file, stem.rpartition("/")[2]} - {path}:
                    # "": several images are called so
                    self.loose[known] = "" if known in self.loose else path
        return next((found for name in names if (found := self.loose.get(name))), None)
