"""Finding a data set, and finding out what it is."""

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from mimkit.data.intake.archive import unpacked
from mimkit.data.intake.columns import Asked
from mimkit.data.intake.folder import list_folder
from mimkit.data.intake.hub import download, is_hub_id
from mimkit.data.intake.kinds import describe, is_archive, is_parquet
from mimkit.data.intake.parquet import grouped
from mimkit.data.intake.places import Meaning
from mimkit.data.intake.remote import open_local, open_url
from mimkit.data.intake.rows import RowListing, Store, list_rows
from mimkit.data.intake.saved import saved_splits
from mimkit.data.intake.shard_listing import ShardListing
from mimkit.data.intake.sheet import KINDS, METADATA
from mimkit.data.intake.table import Listing, Skipped
from mimkit.data.intake.tars import is_tar, is_webdataset
from mimkit.data.intake.urls import braces, is_url
from mimkit.data.intake.walk import Tree, walk
from mimkit.data.registered import DataSet, Split
from mimkit.errors import DataError, nearest
from mimkit.recipe import registry

Listings = Mapping[Split, Listing]


def registered(name: str) -> DataSet | None:
    """Returns the registered data set of this name, or None if there is none.

    Raises: PluginError if two distributions offer it, or the one that does fails to load.
    """
    known = {entry.name for entry in registry.entries("datasets")}
    if name.rpartition(":")[2] not in known:
        return None
    found = registry.load(registry.find("datasets", name))
    assert isinstance(found, DataSet)
    return found


def labels_key(path: str) -> str:
    """Which key of ``[data]`` takes labels given as a path: a table's, or a labelled set's."""
    kind = Path(path).suffix.lower()
    table = kind in KINDS and kind != ".parquet"
    given = Path(path).expanduser()
    if kind == ".parquet" and given.is_file():
        table = _names_files(given, Asked())
    return "labels" if table else "labelled"


@dataclass(frozen=True)
class Wanted:
    """What a recipe says of where its data lie and how they are to be understood.

    Args:
        key: of the recipe, which names the data: ``data.name`` or ``data.labelled``.
        name: registered name, folder, file or glob (absolute, or below one of the places), or
            Hugging Face id.
        path: a folder to look in first, or None.
        dataset: what is registered under the name, if anything is.
        cache: folder of everything cached, where archives are unpacked.
        meaning: of folders (``data.layout``).
        labels: a table of files and labels, or None.
        image_column: which column holds the images or their files, or None.
        label_column: which column holds the labels, ``"none"`` for no labels, or None.
        masks: which folder or column holds the masks, ``"none"`` for no masks, or None.
        objects: which column of a table holds the objects, ``"none"`` for no objects, or None.
    """

    key: str
    name: str
    path: str | None
    dataset: DataSet | None
    cache: Path
    meaning: Meaning = "auto"
    labels: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    masks: str | None = None
    objects: str | None = None

    @property
    def asked(self) -> Asked:
        """What is known of the columns."""
        return Asked(self.dataset, self.image_column, self.label_column, self.masks, self.objects)

    @property
    def roots(self) -> list[Path]:
        """The places to look in first."""
        places = (self.path, os.environ.get("MIMKIT_DATA"))
        return [Path(place).expanduser() for place in places if place]


def locate(wanted: Wanted) -> Listings:
    """Finds both splits of a data set, in one walk over the disk.

    Looks in ``path``, then in ``$MIMKIT_DATA``, then downloads.

    Raises: DataError with the ways to get the data, if it is nowhere.
    """
    name, path, dataset, roots = wanted.name, wanted.path, wanted.dataset, wanted.roots
    if path is not None and not Path(path).expanduser().is_dir():
        raise DataError(f"data.path (--data): must be an existing folder, but is '{path}'.")
    if is_url(name):
        _refuse_table(wanted, name, "shards of images")
        return open_url(wanted.key, name, wanted.asked, wanted.cache)
    for root in roots if dataset else [*roots, Path()]:
        for candidate in _candidates(root, name, dataset):
            if listings := _open(candidate, wanted):
                return listings
    hub = dataset.hub if dataset else name
    if hub is None or not is_hub_id(hub):
        unknown = "it is no registered name and no path"
        raise DataError(_advice(wanted, "it has no place to load from" if dataset else unknown))
    found, reason = download(hub, dataset)
    listings = None if found is None else _open([found], wanted)
    if listings is None:
        raise DataError(_advice(wanted, reason or f"'{hub}' has no parquet files of it"))
    return listings


def _candidates(root: Path, name: str, dataset: DataSet | None) -> list[list[Path]]:
    """Sets of paths below ``root`` that may hold the data, best first."""
    if dataset is None:
        whole = root / Path(name).expanduser()
        if whole.exists():
            return [[whole]]
        each = braces(str(whole)) if "{" in name else [str(whole)]
        matches = [Path(match) for one in each for match in sorted(glob.glob(one)) or [one]]
        return [matches] if any(path.exists() for path in matches) else []
    below = [match for match in sorted(root.glob(dataset.folder)) if match.is_dir()]
    # --data may also name the folder itself; anything else is not searched for images.
    itself = fnmatch(root.resolve().name, dataset.folder) or (root / "train").is_dir()
    itself = itself or any(root.glob("*.parquet")) or any(root.glob("*.tar"))
    return [[folder] for folder in ([*below, root] if itself else below)]


def _open(paths: list[Path], wanted: Wanted) -> Listings | None:
    if len(paths) > 1 and all(is_tar(path.name) for path in paths):
        return _shards(paths, wanted)
    paths = [path for path in paths if path.exists()]
    folders = [path for path in paths if path.is_dir()]
    if folders and len(paths) > 1:
        raise DataError(
            f"{wanted.key}: must be one folder, or parquet files, but the pattern matches "
            f"{len(paths)} paths, '{folders[0]}' among them."
        )
    if folders:
        return _open_folder(folders[0], str(folders[0]), wanted)
    if len(paths) == 1:
        return _open_file(paths[0], wanted)
    odd = [path for path in paths if not is_parquet(path)]
    if odd:
        raise DataError(
            f"{wanted.key}: must be one folder, or parquet files, but the pattern matches "
            f"{len(paths)} files, '{odd[0]}' among them."
        )
    return _parquet(paths, wanted)


def _open_file(path: Path, wanted: Wanted) -> Listings | None:
    try:
        if is_archive(path):
            if is_tar(path.name) and is_webdataset(path):
                return _shards([path], wanted)
            return _open_folder(unpacked(path, wanted.cache), str(path), wanted)
        if is_parquet(path) and not _names_files(path, wanted.asked):
            return _parquet([path], wanted)
        if path.suffix.lower() in KINDS:
            return list_folder(
                walk(str(path.parent)),
                str(path),
                meaning=wanted.meaning,
                tables=[path],
                only_named=True,
                image_column=wanted.image_column,
                label_column=wanted.label_column,
                masks=wanted.masks,
            )
        kind = describe(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    raise DataError(
        f"{wanted.key}: '{path}' must be a folder of images, parquet files, a zip or tar, or a "
        f"table (CSV, TSV, JSON lines) of files and labels, but is {kind}."
    )


def _names_files(path: Path, asked: Asked) -> bool:
    """Whether parquet only names the files of images."""
    import pyarrow as pa  # noqa: PLC0415 -- slow to import
    import pyarrow.parquet as pq  # noqa: PLC0415

    from mimkit.data.intake.columns import holds_images  # noqa: PLC0415
    from mimkit.data.intake.sheet import file_column  # noqa: PLC0415

    try:
        schema = pq.read_schema(path)
    except pa.ArrowException:
        return False  # damaged, which is told where it is read
    if any(holds_images(field.type) for field in schema):
        return False
    column = file_column(path, schema.names, asked.image)
    return column is not None and pa.types.is_string(schema.field(column).type)


def _open_folder(folder: Path, origin: str, wanted: Wanted) -> Listings | None:
    if (saved := saved_splits(folder)) is not None:
        return list_rows(saved, wanted.asked)
    tree = walk(str(folder))
    count = tree.count
    files = [path for path in _near(tree) if path.lower().endswith(".parquet")]
    if count:
        files = [path for path in files if not _names_files(Path(tree.root, path), Asked())]
    if files and not (count and wanted.labels):
        found = _parquet([Path(tree.root, path) for path in sorted(files)], wanted)
        if found and count:
            why = f"{count:,} images not used: parquet files lie beside them"
            left = Skipped(f"{tree.root}/*", why)
            found["train"] = replace(found["train"], skipped=(*found["train"].skipped, left))
        return found
    shards = [Path(tree.root, path) for path in _near(tree) if is_tar(path)]
    if shards and not count:
        return _shards(sorted(shards), wanted)
    return list_folder(
        tree,
        origin,
        meaning=wanted.meaning,
        tables=[] if wanted.labels is None else [_table(wanted, folder)],
        image_column=wanted.image_column,
        label_column=wanted.label_column,
        masks=wanted.masks,
    )


def _near(tree: Tree) -> list[str]:
    """Files that are no images, at most two folders deep."""
    return [
        path for path in tree.others() if path.count("/") <= 1 and Path(path).name not in METADATA
    ]


def _table(wanted: Wanted, folder: Path) -> Path:
    """The table of labels: where one stands, in the folder of the images, or beside the data."""
    assert wanted.labels is not None
    given = Path(wanted.labels).expanduser()
    for root in (Path(), folder, folder.parent, *wanted.roots):
        if (root / given).is_file():
            return root / given
    raise DataError(
        f"data.labels: must be a table of files and labels (CSV, TSV, JSON lines, parquet), but "
        f"'{wanted.labels}' is no file, neither here nor in {folder}. A labelled data set is named "
        "with data.labelled."
    )


def _parquet(files: list[Path], wanted: Wanted) -> dict[Split, RowListing] | None:
    """Lists parquet files; None if those of a registered data set have other names."""
    _refuse_table(wanted, str(files[0]), "a table")
    groups = {name: Store(paths) for name, paths in grouped(files).items()}
    if wanted.dataset is None:
        return list_rows(groups, wanted.asked)
    fixed: dict[str, Store] = {}
    for split, names in wanted.dataset.splits.items():
        paths = tuple(path for name in names if name in groups for path in groups[name].files)
        if not paths:
            return None
        fixed[split] = Store(paths)
    return list_rows(fixed, wanted.asked)


def _shards(files: list[Path], wanted: Wanted) -> dict[Split, ShardListing]:
    _refuse_table(wanted, str(files[0]), "a shard of images")
    return open_local(files, wanted.asked, wanted.cache)


def _refuse_table(wanted: Wanted, name: str, what: str) -> None:
    if wanted.labels is not None:
        raise DataError(
            f"data.labels: must stand beside a folder of images, but {name} is {what} itself. "
            "Name its column of labels with data.label_column."
        )


def _advice(wanted: Wanted, reason: str) -> str:
    key, name, roots, dataset = wanted.key, wanted.name, wanted.roots, wanted.dataset
    known = [entry.name for entry in registry.entries("datasets")]
    hint = "" if dataset else nearest(name, known)
    folder = dataset.folder.replace("[-_]", "_").rstrip("*") if dataset else Path(name).name
    hub = (dataset.hub if dataset else None) or (name if is_hub_id(name) else "USER/NAME")
    load = f"hf download {hub} --repo-type dataset --local-dir {folder}"
    if dataset and not dataset.hub:
        load = "as its authors offer it"
    way, unset = f"--data FOLDER, where FOLDER/{folder} holds", "neither --data nor MIMKIT_DATA"
    if key != "data.name":  # --data says where the images to pre-train on are
        way, unset = f"{key}=FOLDER, which holds", "no MIMKIT_DATA"
    looked = ", ".join(str(root) for root in roots) or f"no folder: {unset}"
    return (
        f"{key}: '{name}' must be found or downloaded, but {reason}.{hint} "
        f"Looked in {looked}. Three ways to get it:\n"
        f"  1. {way} parquet files, or images in train/CLASS/ and val/CLASS/;\n"
        "  2. MIMKIT_DATA=FOLDER, the same for every run;\n"
        f"  3. on a machine with network: {load}\n"
        f"Without any data: --set {key}=shapes"
    )
