"""Data sets in shards, here or elsewhere: tars, and parquet in buckets and on servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mimkit.data.intake.columns import Asked
from mimkit.data.intake.parquet import grouped
from mimkit.data.intake.remote_rows import RemoteStore
from mimkit.data.intake.rows import RowListing, list_rows
from mimkit.data.intake.shard_listing import CLASSES, MASK_CLASSES, ShardListing, list_shards
from mimkit.data.intake.table import Skipped
from mimkit.data.intake.tars import TAR_KINDS, is_tar
from mimkit.data.intake.urls import ShardFile, find, local_file, nearest_there, read_text
from mimkit.data.registered import Split
from mimkit.errors import DataError


def open_url(
    key: str, url: str, asked: Asked, cache: Path
) -> Mapping[Split, ShardListing | RowListing]:
    """Lists both splits of a data set that lies elsewhere.

    Args:
        key: of the recipe, which names the data.
        url: a file, a pattern with braces or stars, or a folder; with a protocol.
        asked: what is known of the fields or columns.
        cache: folder of everything cached.

    Raises: DataError if it cannot be reached, or holds neither tar shards nor parquet.
    """
    files, missing = find(url, (*TAR_KINDS, ".parquet"))
    tars = [file for file in files if is_tar(file.url)]
    if tars:
        return open_shards(tars, shared_folder(tars), asked, cache, missing)
    if files:
        groups = grouped([Path(file.url) for file in files])
        at = {Path(file.url): file for file in files}
        stores = {name: RemoteStore.of([at[path] for path in of]) for name, of in groups.items()}
        listings = list_rows(stores, asked)
        train = listings["train"]
        return {**listings, "train": replace(train, skipped=(*train.skipped, *missing))}
    raise DataError(
        f"{key}: '{url}' must be a folder, a file or a pattern (train-{{000..099}}.tar) of tar "
        f"shards or of parquet files, but there are none. {nearest_there(url)} Images in files of "
        "their own are packed where they lie: mimkit pack FOLDER --out SHARDS"
    )


def open_local(paths: Sequence[Path], asked: Asked, cache: Path) -> dict[Split, ShardListing]:
    """Lists both splits of tar shards on this machine; those that are not there are named.

    Raises: DataError as `list_shards`.
    """
    files = [local_file(path) for path in paths if path.exists()]
    missing = [Skipped(str(path), "is missing") for path in paths if not path.exists()]
    return open_shards(files, shared_folder(files), asked, cache, missing)


def open_shards(
    files: Sequence[ShardFile],
    origin: str,
    asked: Asked,
    cache: Path,
    missing: Sequence[Skipped] = (),
) -> dict[Split, ShardListing]:
    """Lists both splits of tar shards, with the names that lie beside them."""
    return list_shards(
        files,
        origin,
        asked,
        cache,
        missing=missing,
        names=_lines(f"{origin}/{CLASSES}"),
        mask_names=_lines(f"{origin}/{MASK_CLASSES}"),
    )


def shared_folder(files: Sequence[ShardFile]) -> str:
    """The innermost folder in which all files lie.

    >>> shared_folder([ShardFile(f"s3://b/{name}.tar", 0, "") for name in ("x/train/1", "x/val/1")])
    's3://b/x'
    """
    parts = [file.url.split("/")[:-1] for file in files]
    depth = 0
    while all(len(each) > depth for each in parts) and len({each[depth] for each in parts}) == 1:
        depth += 1
    return "/".join(parts[0][:depth])


def _lines(url: str) -> tuple[str, ...] | None:
    text = read_text(url)
    return None if text is None else tuple(text.removesuffix("\n").split("\n"))
