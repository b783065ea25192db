"""Parquet files, laid out as on the Hugging Face Hub or not: files of a split, columns, rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from mimkit.data.counter import uniform
from mimkit.data.folder import HELD_OUT, TEST_FOLDERS, digest
from mimkit.data.intake.table import Skipped, Table
from mimkit.data.registered import DataSet, Split
from mimkit.errors import DataError

if TYPE_CHECKING:
    import datasets

_LABEL_COLUMNS: Final = ("label", "labels", "fine_label")
_SHARD: Final = re.compile(r"(?P<split>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_HOLD_OUT_STREAM: Final = 100


@dataclass(frozen=True)
class ParquetFiles:
    """The parquet files of one split.

    Args:
        files: in order.
        dataset: what is known of the data set, if it is registered.
        held_out: which part of the rows to take, where the files hold no test part.
    """

    files: tuple[Path, ...]
    dataset: DataSet | None = None
    held_out: Split | None = None
    skipped: tuple[Skipped, ...] = ()

    @property
    def origin(self) -> str:
        """The folder."""
        return str(self.files[0].parent)

    @property
    def note(self) -> str:
        """How the split came about."""
        share = f"no test part: one row of {HELD_OUT}, chosen by its number, is held out"
        return share if self.held_out else ""

    @property
    def stamp(self) -> str:
        """Digest of files, rows and columns."""
        columns = (self.dataset.image, self.dataset.label) if self.dataset else ()
        return digest(self.files, self.held_out or "all", *columns)

    def read(self, cache: Path) -> Table:
        """Reads the columns of images and labels.

        Raises: DataError if a file is damaged, or there is no column of images.
        """
        # Two seconds, not needed where everything is cached.
        import datasets  # noqa: PLC0415
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415

        silent = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            features = datasets.Features.from_arrow_schema(pq.read_schema(self.files[0]))
            image, label = self._columns(features)
            records = datasets.Dataset.from_parquet(
                [str(path) for path in self.files],
                cache_dir=str(cache / "tables" / self.stamp),
                columns=[image] if label is None else [image, label],
            )
        except (pa.ArrowException, datasets.exceptions.DatasetsError) as error:
            raise DataError(
                f"{self.files[0].parent}: its {len(self.files)} parquet files must be readable "
                f"and have the same columns, but: {error.__cause__ or error}"
            ) from error
        finally:
            if not silent:
                datasets.enable_progress_bars()
        labels, classes = (None, ()) if label is None else _labels(records, label)
        records = records.select_columns(image).rename_columns({image: "image"})
        records = records.cast_column("image", datasets.Image(decode=False))
        table = Table(_Records(records), np.arange(len(records)), labels, classes)
        return table if self.held_out is None else table.select(_rows(len(table), self.held_out))

    def _columns(self, features: datasets.Features) -> tuple[str, str | None]:
        import datasets  # noqa: PLC0415

        images = [name for name, feature in features.items() if _holds_images(feature)]
        whole = [name for name, feature in features.items() if _holds_numbers(feature)]
        named = [name for name in whole if isinstance(features[name], datasets.ClassLabel)]
        wanted = [self.dataset.label] if self.dataset else [*_LABEL_COLUMNS, *named]
        label = next((name for name in wanted if name in whole), None)
        if self.dataset and label is None:
            raise DataError(
                f"{self.files[0]}: the labels of {self.dataset.name} must be in a column "
                f"'{self.dataset.label}', but the columns are {', '.join(features)}."
            )
        if self.dataset and self.dataset.image in images:
            images = [self.dataset.image]
        if not images:
            raise DataError(
                f"{self.files[0]}: a column must hold images (the bytes of image files), but none "
                f"of {', '.join(features)} does."
            )
        feature = features[label] if label else None
        if (
            self.dataset
            and isinstance(feature, datasets.ClassLabel)
            and feature.num_classes != self.dataset.num_classes
        ):
            raise DataError(
                f"{self.files[0]}: {self.dataset.name} has {self.dataset.num_classes} classes, but "
                f"this file has {feature.num_classes}. Is it another data set?"
            )
        return images[0], label


@dataclass(frozen=True)
class _Records:
    records: datasets.Dataset

    def __len__(self) -> int:
        return len(self.records)

    def where(self, number: int) -> str:
        record = self.records[number]["image"]
        if record["bytes"] is None:
            return str(record["path"])
        return f"row {number}" + (f" ({record['path']})" if record["path"] else "")

    def content(self, number: int) -> bytes:
        record = self.records[number]["image"]
        content: bytes | None = record["bytes"]
        return Path(record["path"]).read_bytes() if content is None else content


def list_parquet(
    files: Sequence[Path], split: Split, dataset: DataSet | None = None
) -> ParquetFiles | None:
    """Picks the files of a split by their names, as ``train-00000-of-00002`` or ``train/0000``.

    Where no name tells of a test part, one row of ten is held out, chosen by its number.

    Returns: None if the files of a registered data set have other names.
    Raises: DataError if files of a numbered series are missing, or a split lies in two folders.
    """
    found: dict[str, list[Path]] = {}
    for path in files:
        found.setdefault(_split(path), []).append(path)
    if dataset is not None:
        chosen = [path for name in dataset.splits[split] for path in found.get(name, [])]
        return ParquetFiles(_whole(chosen), dataset) if chosen else None
    train = found.get("train", [])
    test = next((found[name] for name in TEST_FOLDERS if name in found), [])
    if train and test:
        return ParquetFiles(_whole(train if split == "train" else test))
    return ParquetFiles(_whole(train or files), held_out=split)


def _split(path: Path) -> str:
    shard = _SHARD.match(path.stem)
    name = shard["split"] if shard else path.stem
    return path.parent.name if name.isdigit() else name


def _whole(files: Sequence[Path]) -> tuple[Path, ...]:
    """Refuses files that are a part of what they should be, or of more than one thing."""
    folders = sorted({path.parent for path in files})
    if len(folders) > 1:
        raise DataError(
            f"{folders[0].parent}: the parquet files of one split must lie in one folder, but they "
            f"lie in {', '.join(folder.name for folder in folders)}. Give one of these instead."
        )
    series: dict[tuple[str, int], set[int]] = {}
    for path in files:
        if shard := _SHARD.match(path.stem):
            numbers = series.setdefault((shard["split"], int(shard["count"])), set())
            numbers.add(int(shard["number"]))
    for (split, count), numbers in series.items():
        missing = [number for number in range(count) if number not in numbers]
        if missing:
            raise DataError(
                f"{folders[0]}: '{split}' must be {count} parquet files, but {len(missing)} are "
                f"missing, number {missing[0]:05d} first. Was the download interrupted?"
            )
    return tuple(files)


def _holds_images(feature: object) -> bool:
    import datasets  # noqa: PLC0415

    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary")
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)


def _holds_numbers(feature: object) -> bool:
    import datasets  # noqa: PLC0415

    if isinstance(feature, datasets.Value):
        return "int" in feature.dtype
    return isinstance(feature, datasets.ClassLabel)


def _labels(
    records: datasets.Dataset, column: str
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    import datasets  # noqa: PLC0415

    values = records[column][:]
    labels = np.array([-1 if value is None else value for value in values], dtype=np.int64)
    if (labels < 0).all():
        return None, ()
    feature = records.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return labels, tuple(feature.names)
    return labels, tuple(str(label) for label in range(int(labels.max()) + 1))


def _rows(count: int, split: Split) -> NDArray[np.int64]:
    shuffled = np.argsort(uniform(0, _HOLD_OUT_STREAM, np.arange(count), 1)[:, 0], kind="stable")
    held_out = max(1, count // HELD_OUT)
    return np.sort(shuffled[:held_out] if split == "test" else shuffled[held_out:])
