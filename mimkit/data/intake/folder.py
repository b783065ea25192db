"""Folders of images as listings: which files belong to a split, in which order, of which class."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimkit.data.intake.beside import annotation_files
from mimkit.data.intake.kept import keep, kept, kept_rows
from mimkit.data.intake.kinds import advice, census, reason
from mimkit.data.intake.layout import Layout, arrange
from mimkit.data.intake.pairs import PairedMasks, Pairs, pair, unused
from mimkit.data.intake.paths import Paths, write_paths
from mimkit.data.intake.places import Meaning, Part, Place, some
from mimkit.data.intake.sheet import KINDS, METADATA, Naming, naming
from mimkit.data.intake.table import Skipped, Table
from mimkit.data.intake.walk import ARRAYS, EXTENSIONS, Folder, Tree, is_utf8
from mimkit.data.registered import Split
from mimkit.errors import DataError

_MANY: Final = 20
"""So many files of one kind in a folder are counted, not listed."""
HELD_OUT: Final = 10
"""One image of so many is held out where a data set has no test part."""
_NAMES: Final = ("classes.txt", "labels.txt", "class_names.txt")
"""Files that say what the ids of masks stand for."""
_FORMAT: Final = 1
"""Raised when what is kept of a listing changes, so that old files are no longer found."""


@dataclass(frozen=True)
class FolderListing:
    """Image files below one folder.

    Args:
        origin: where it lies, for people.
        root: the folder.
        part: the folders whose images belong to it.
        classes: their names, or () if the images are not labelled.
        share: which share of the images to take, where there is no test part.
        named: what a table says of the images, which then counts instead of their folders.
        skipped: files and folders that are not used.
        note: how the split came about.
        pairs: the masks of its images; None if they have none.
        mask_names: what the ids of masks stand for; None if that is not known.
        annotations: paths below the root of JSON files that may say what the images show.
    """

    origin: str
    root: str
    part: Part
    classes: tuple[str, ...]
    share: Split | None = None
    named: Naming | None = None
    skipped: tuple[Skipped, ...] = ()
    note: str = ""
    pairs: Pairs | None = None
    mask_names: tuple[str, ...] | None = None

    @property
    def masks(self) -> str:
        """Where the masks of its images are, in words; nothing if they have none."""
        return some([f"{folder}/" for folder in self.pairs.folders]) if self.pairs else ""

    annotations: tuple[str, ...] = ()

    @cached_property
    def stamp(self) -> str:
        """Digest of paths, sizes and times of change of the images, and of labels and share."""
        words = [str(_FORMAT), self.root, str(self.share), *self.classes]
        words.append(self.named.digest if self.named else "")
        key = hashlib.sha256("\0".join(words).encode())
        labels = self.part.labels or [None] * len(self.part.places)
        for place, label in zip(self.part.places, labels, strict=True):
            files = "\0".join(place.folder.images).encode() if self.named else b""
            name = "\0".join((place.folder.name, *place.below, str(label)))
            key.update(f"\1{name}\0".encode() + place.folder.digest + files)
        return key.hexdigest()[:32]

    def read(self, cache: Path) -> Table:
        """Builds the table of paths, or maps what was built before; no image is opened.

        Images come in the order of the hashes of their paths, so that an order says nothing.
        """
        place = cache / "tables" / self.stamp
        found = kept(place)
        if found is None:
            files = list(self._files())
            order = self._order()
            write_paths(self.root, [files[k] for k in order], place)
            labels = self._labels(files)
            keep(place, None if labels is None else labels[order], self.classes)
            found = kept(place)
            assert found is not None
        paths = Paths(self.root, place)
        masks = PairedMasks(paths, self.pairs) if self.pairs else None
        rows = kept_rows(place, lambda: np.arange(len(paths)))
        return Table(paths, rows, *found, masks)

    def _files(self) -> Iterator[str]:
        for place in self.part.places:
            yield from map(place.folder.path, place.folder.images)

    def _order(self) -> NDArray[np.int64]:
        hashes = b"".join(
            hashlib.blake2b("/".join((*place.below, file)).encode()).digest()[:8]
            for place in self.part.places
            for file in place.folder.images
        )
        order = np.argsort(np.frombuffer(hashes, ">u8"), kind="stable")
        if self.share is None:
            return order
        count = held_out(len(order))
        return order[:count] if self.share == "test" else order[count:]

    def _labels(self, files: Sequence[str]) -> NDArray[np.int64] | None:
        if self.named is not None:
            return np.array([self.named.codes.get(file, -1) for file in files], dtype=np.int64)
        if self.part.labels is None:
            return None
        counts = [place.count for place in self.part.places]
        return np.repeat(np.array(self.part.labels, dtype=np.int64), counts)


def held_out(total: int) -> int:
    """How many of so many images are held out."""
    return max(1, total // HELD_OUT)


def list_folder(
    tree: Tree,
    origin: str,
    *,
    meaning: Meaning = "auto",
    tables: Sequence[Path] = (),
    only_named: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    masks: str | None = None,
) -> dict[Split, FolderListing]:
    """Lists both splits of a folder of images.

    Args:
        tree: the folder.
        origin: where it lies, for people.
        meaning: of its folders (`arrange`).
        tables: of file and label; by default those that lie beside the images as Hugging Face has
            it, ``metadata.csv`` or ``.jsonl``.
        only_named: whether the tables say which images there are, not only their labels.
        image_column: of the tables: which holds the files.
        label_column: of the tables: which holds the labels.
        masks: how folders of masks are called, "none" for no masks; None: as people call them.

    Raises: DataError if there is no image, or the splits, labels or masks do not fit.
    """
    if not tree.count:
        raise DataError(_empty(tree))
    beside = [Path(tree.root, path) for path in tree.others() if Path(path).name in METADATA]
    named = None
    if tables or beside:
        named = naming(tree, tables or beside, image_column, label_column)
    elif image_column is not None or label_column not in (None, "none"):
        key = "label" if image_column is None else "image"
        raise DataError(
            f"data.{key}_column = '{image_column or label_column}': must be a column of a parquet "
            f"file or table, but {tree.root} is a folder of images. Name a table of files and "
            "labels with data.labels."
        )
    called = None if masks == "none" else masks
    layout = _layout(tree, meaning, named, only_named=only_named, masks=called)
    notes = [*layout.notes, *layout.label_notes]
    if label_column == "none":
        layout = _unlabelled(layout)
    elif named is None and not layout.classes and (table := _table_beside(tree)):
        notes.append(f"if {table} holds labels of the images: data.labels='{table}'")
    if named is not None:
        notes.append(named.note)
        if named.lost:
            notes.append(
                f"{len(named.lost):,} files that it names are not there, first {named.lost[0]}"
            )
    shares: dict[Split, Split | None] = {"train": None, "test": None}
    if layout.test is None:
        notes.insert(0, _hold_out(tree, layout.train.count))
        shares = {"train": "train", "test": "test"}
    beside_images = annotation_files(tree)
    whole = FolderListing(
        origin, tree.root, layout.train, layout.classes, annotations=beside_images
    )
    if named is not None and named.classes:
        whole = replace(whole, classes=named.classes, named=named)
    parts = {"train": layout.train, "test": layout.test or layout.train}
    pairs = {
        split: pair((place.folder for place in part.places), layout.masks)
        for split, part in parts.items()
        if masks != "none"
    }
    if called is not None and not any(pairs.values()):
        raise DataError(
            f"data.masks: must name folders whose files are called as the images of {tree.root} "
            f"that lie beside them, but '{called}' does not."
        )
    used = {path.name for path in (*tables, *beside)}
    if any(pairs.values()) and (names := _file_of_names(tree)):
        used.add(Path(names).name)
    others = {split: tuple(_others(tree, layout.test, split, used)) for split in shares}
    left = unused(layout.unused, tree.root, layout.masks, filter(None, pairs.values()))
    whole = replace(whole, mask_names=_mask_names(tree) if any(pairs.values()) else None)
    first = notes[:1] if layout.test is None else []
    return {
        "train": replace(
            whole,
            share=shares["train"],
            pairs=pairs.get("train"),
            skipped=left + others["train"],
            note="; ".join(notes),
        ),
        "test": replace(
            whole,
            part=layout.test or layout.train,
            share=shares["test"],
            pairs=pairs.get("test"),
            skipped=others["test"],
            note="; ".join(first),
        ),
    }


def _unlabelled(layout: Layout) -> Layout:
    test = layout.test and replace(layout.test, labels=None)
    return replace(layout, train=replace(layout.train, labels=None), test=test, classes=())


def _table_beside(tree: Tree) -> str | None:
    tables = (path for path in tree.others() if path.endswith(KINDS) and path.count("/") <= 1)
    return next((path for path in tables if not path.endswith(".txt")), None)


def _hold_out(tree: Tree, total: int) -> str:
    if total == 1:
        raise DataError(
            f"{tree.root}: must hold at least two images, one to train on and one to hold out, but "
            "holds one."
        )
    return f"no test part: {held_out(total):,} of {total:,} images, chosen by path, are held out"


def _file_of_names(tree: Tree) -> str | None:
    return next((path for path in tree.others() if Path(path).name in _NAMES), None)


def _mask_names(tree: Tree) -> tuple[str, ...] | None:
    """Reads what ids stand for: a name in each line of ``classes.txt``."""
    found = _file_of_names(tree)
    if found is None:
        return None
    content = Path(tree.root, found).read_bytes()
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:  # what Windows wrote before that
        lines = content.decode("cp1252", errors="replace").splitlines()
    return tuple(line.strip() for line in lines if line.strip()) or None


def _layout(
    tree: Tree, meaning: Meaning, named: Naming | None, *, only_named: bool, masks: str | None
) -> Layout:
    if named is None:
        return arrange(tree, meaning, masks=masks)
    if named.splits:
        return _by_table(tree, named)
    codes, left = named.codes, 0
    if only_named:
        kept = tuple(_only(tree.folders, codes.keys()))
        left = tree.count
        tree = Tree(tree.root, kept)
        left -= tree.count

    def labelled(part: Part) -> bool:
        paths = (p.folder.path(name) for p in part.places for name in p.folder.images)
        return any(codes.get(path, -1) >= 0 for path in paths)

    layout = arrange(tree, meaning, labelled if named.classes else None, masks)
    unused = Skipped(f"{tree.root}/*", f"{left:,} images not used: the table does not name them")
    return replace(layout, unused=(*layout.unused, unused)) if left else layout


def _by_table(tree: Tree, named: Naming) -> Layout:
    """Splits images as a table says."""
    parts: dict[str, Part] = {}
    for split in ("train", "test"):
        files = {file for file, of in named.splits.items() if of == split}
        places = (Place(folder, folder.parts) for folder in _only(tree.folders, files))
        parts[split] = Part(split, tuple(places))
    left = tree.count - parts["train"].count - parts["test"].count
    unused = (Skipped(tree.root, f"{left:,} images not used: the table puts them in no split"),)
    return Layout(parts["train"], parts["test"], (), unused if left else (), ())


def _only(folders: Sequence[Folder], files: Collection[str]) -> Iterator[Folder]:
    for folder in folders:
        kept = tuple(name for name in folder.images if folder.path(name) in files)
        if kept:
            yield replace(folder, images=kept)


def _others(
    tree: Tree, test: Part | None, split: Split, used: Collection[str]
) -> Iterator[Skipped]:
    """Files that are no images: those of the test part's folders for test, the rest for train."""
    of_test = {place.folder.name for place in test.places} if test else set()
    for folder in tree.folders:
        if (folder.name in of_test) is not (split == "test"):
            continue
        at = f"{tree.root}/{folder.name}" if folder.name else tree.root
        by_kind: dict[str, list[str]] = {}
        for name in folder.others:
            if name not in used:
                by_kind.setdefault(Path(name).suffix.lower(), []).append(name)
        for kind, names in by_kind.items():
            if len(names) > _MANY:
                yield Skipped(
                    _shown(f"{at}/*{kind}"), f"{len(names):,} files, each {reason(names[0])}"
                )
            else:
                yield from (Skipped(_shown(f"{at}/{name}"), reason(name)) for name in names)
        for name in folder.unnameable:
            yield Skipped(_shown(f"{at}/{name}"), "has a name that is not UTF-8")


def _shown(path: str) -> str:
    return path if is_utf8(path) else ascii(path)


def _empty(tree: Tree) -> str:
    others = list(tree.others())
    kinds = f" Its files are {census(others)}.{advice(others)}" if others else ""
    known = ", ".join(sorted(EXTENSIONS | ARRAYS))
    return (
        f"{tree.root}: must hold images ({known}), in train/ and test/ or val/, in one folder "
        f"per class, or at any depth, but holds none.{kinds}"
    )
