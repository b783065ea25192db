"""Finding a data set: a registered name, a folder, parquet files or a Hugging Face id."""

import glob
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from mimkit.data.folder import EXTENSIONS, list_images
from mimkit.data.intake.table import Listing
from mimkit.data.parquet import list_parquet
from mimkit.data.registered import DataSet, Split
from mimkit.errors import DataError, nearest
from mimkit.recipe import registry

_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_ANSWER_SECONDS: Final = 10
"""How long the Hub may take to answer before this machine counts as offline."""


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


@dataclass(frozen=True)
class Wanted:
    """What a recipe says of where its data lie and how they are to be understood.

    Args:
        key: of the recipe, which names the data: ``data.name`` or ``data.labelled``.
        name: registered name, folder, file or glob (absolute, or below one of the places), or
            Hugging Face id.
        path: a folder to look in first, or None.
        dataset: what is registered under the name, if anything is.
    """

    key: str
    name: str
    path: str | None
    dataset: DataSet | None


def locate(wanted: Wanted) -> dict[Split, Listing]:
    """Finds both splits of a data set, in one walk over the disk.

    Raises: DataError with the ways to get the data, if it is nowhere.
    """
    splits: tuple[Split, Split] = ("train", "test")
    key, name, path = wanted.key, wanted.name, wanted.path
    return {split: _locate(name, path, wanted.dataset, split, key) for split in splits}


def _locate(
    name: str, path: str | None, dataset: DataSet | None, split: Split, key: str = "data.name"
) -> Listing:
    """Looks in ``path``, then in ``$MIMKIT_DATA``, then downloads.

    Args:
        name: registered name, folder, parquet file or glob (absolute, or below one of these
            places), or Hugging Face id.
        path: a folder to look in first, or None.
        dataset: what is registered under the name, if anything is.
        split: which part of it.
        key: of the recipe, which names it.

    Raises: DataError with the ways to get the data, if it is nowhere.
    """
    if path is not None and not Path(path).expanduser().is_dir():
        raise DataError(f"data.path (--data): must be an existing folder, but is '{path}'.")
    roots = [Path(root).expanduser() for root in (path, os.environ.get("MIMKIT_DATA")) if root]
    for root in roots if dataset else [*roots, Path()]:
        for candidate in _candidates(root, name, dataset):
            if listing := _open(candidate, split, dataset, key):
                return listing
    hub = dataset.hub if dataset else name
    if hub is None or not _HUB_ID.fullmatch(hub):
        reason = "it is no registered name and no path"
        raise DataError(_advice(key, name, roots, dataset, reason))
    listing = _open([_download(hub, name, roots, dataset, key)], split, dataset, key)
    if listing is None:
        reason = f"'{hub}' has no parquet files of it"
        raise DataError(_advice(key, name, roots, dataset, reason))
    return listing


def _candidates(root: Path, name: str, dataset: DataSet | None) -> list[list[Path]]:
    """Sets of paths below ``root`` that may hold the data, best first."""
    if dataset is None:
        whole = root / Path(name).expanduser()
        matches = [whole] if whole.exists() else [Path(match) for match in glob.glob(str(whole))]
        return [sorted(matches)] if matches else []
    below = [match for match in sorted(root.glob(dataset.folder)) if match.is_dir()]
    # --data may also name the folder itself; anything else is not searched for images.
    itself = fnmatch(root.resolve().name, dataset.folder) or (root / "train").is_dir()
    return [[folder] for folder in ([*below, root] if itself or _parquet(root, 1) else below)]


def _open(paths: list[Path], split: Split, dataset: DataSet | None, key: str) -> Listing | None:
    folders = [path for path in paths if path.is_dir()]
    if not folders:
        return list_parquet(paths, split, dataset)
    if len(paths) > 1:
        raise DataError(
            f"{key}: must be one folder, or parquet files, but the pattern matches "
            f"{len(paths)} paths, '{folders[0]}' among them."
        )
    files = _parquet(folders[0], 2)
    return list_parquet(files, split, dataset) if files else list_images(folders[0], split)


def _parquet(folder: Path, depth: int) -> list[Path]:
    patterns = ["/".join(["*"] * level + ["*.parquet"]) for level in range(depth)]
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def _download(hub: str, name: str, roots: list[Path], dataset: DataSet | None, key: str) -> Path:
    # Slow to import, and only needed here.
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError  # noqa: PLC0415

    if dataset is None:
        patterns = ["*.parquet", *(f"*{extension}" for extension in EXTENSIONS)]
    else:
        words = [word for split in dataset.splits.values() for word in split]
        patterns = [f"*/{word}-*.parquet" for word in words]
    # The bases of the Hub's own error are what its HTTP client raises, whichever that is.
    failures: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)
    try:
        # Offline, this answers at once with what an earlier download left.
        folder = snapshot_download(
            hub, repo_type="dataset", allow_patterns=patterns, etag_timeout=_ANSWER_SECONDS
        )
    except GatedRepoError as error:
        page = f"https://huggingface.co/datasets/{hub}"
        reason = f"its owner asks you to accept terms at {page}, then to run: hf auth login"
        raise DataError(_advice(key, name, roots, dataset, reason)) from error
    except failures as error:
        reason = f"the Hugging Face Hub did not give '{hub}' ({str(error).splitlines()[0]})"
        raise DataError(_advice(key, name, roots, dataset, reason)) from error
    return Path(folder)


def _advice(key: str, name: str, roots: list[Path], dataset: DataSet | None, reason: str) -> str:
    known = [entry.name for entry in registry.entries("datasets")]
    hint = "" if dataset else nearest(name, known)
    folder = dataset.folder.replace("[-_]", "_").rstrip("*") if dataset else Path(name).name
    hub = (dataset.hub if dataset else None) or (name if _HUB_ID.fullmatch(name) else "USER/NAME")
    way, unset = f"--data FOLDER, where FOLDER/{folder} holds", "neither --data nor MIMKIT_DATA"
    if key != "data.name":  # --data says where the images to pre-train on are
        way, unset = f"{key}=FOLDER, which holds", "no MIMKIT_DATA"
    looked = ", ".join(str(root) for root in roots) or f"no folder: {unset}"
    return (
        f"{key}: '{name}' must be found or downloaded, but {reason}.{hint} "
        f"Looked in {looked}. Three ways to get it:\n"
        f"  1. {way} parquet files, or images in train/CLASS/ and val/CLASS/;\n"
        "  2. MIMKIT_DATA=FOLDER, the same for every run;\n"
        f"  3. on a machine with network: hf download {hub} --repo-type dataset "
        f"--local-dir {folder}\n"
        f"Without any data: --set {key}=shapes"
    )
