"""Folders of images: which files belong to a split, and which class each shows."""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from mimkit.data.intake.paths import write_paths
from mimkit.data.intake.table import Skipped, Table
from mimkit.data.registered import Split
from mimkit.errors import DataError

EXTENSIONS: Final = frozenset(
    f".{kind}"
    for kind in (
        *("avif", "bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "pbm", "pgm"),
        *("png", "pnm", "ppm", "tif", "tiff", "webp"),
    )
)
TEST_FOLDERS: Final = ("test", "val", "validation", "valid")
HELD_OUT: Final = 10
"""One image of so many is held out where a data set has no test part."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files below one folder.

    Args:
        root: the folder.
        names: paths below it, in the order of the data set.
        classes: their names, or () if the images are not labelled.
        skipped: files that are no images.
        note: how the split came about.
    """

    root: Path
    names: tuple[str, ...]
    classes: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    note: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """The image files."""
        return tuple(self.root / name for name in self.names)

    @property
    def origin(self) -> str:
        """The folder."""
        return str(self.root)

    @property
    def stamp(self) -> str:
        """Digest of files and classes."""
        return digest(self.files, *self.classes)

    def read(self, cache: Path) -> Table:
        """Builds the table of paths; no image is opened."""
        paths = write_paths(str(self.root.absolute()), self.names, cache / "tables" / self.stamp)
        number = {name: label for label, name in enumerate(self.classes)}
        labels = [number[name.split("/")[0]] for name in self.names] if self.classes else None
        return Table(
            paths,
            np.arange(len(self.names)),
            None if labels is None else np.array(labels, dtype=np.int64),
            self.classes,
        )


def digest(files: tuple[Path, ...], *words: str) -> str:
    """Digests paths, sizes and times of change of files, and words."""
    key = hashlib.sha256("\0".join(words).encode())
    for path in files:
        try:
            status = path.stat()
        except OSError:  # a link to nowhere: the survey lists it
            stamp = "unreadable"
        else:
            stamp = f"{status.st_size}\0{status.st_mtime_ns}"
        key.update(f"\0{path.absolute()}\0{stamp}".encode())
    return key.hexdigest()[:32]


def list_images(root: Path, split: Split) -> ImageFiles:
    """Lists a split of a folder that holds ``train/`` and ``test/`` or ``val/``, or images only.

    Images at ``CLASS/file`` are labelled by their folder, all others are unlabelled. Without a
    test part, the tenth of the images whose paths have the smallest hashes is held out. Images
    come in the order of these hashes, so that the first so many are a sample of all classes.
    Names that begin with a dot are passed over.

    Raises: DataError if there is no image, or the test part has classes that training has not.
    """
    parts = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    if not (root / "train").is_dir():
        return _hold_out(_read(root), split)
    train = _read(root / "train")
    if not parts:
        return _hold_out(train, split)
    if split == "train":
        return train
    tests = [_read(part) for part in parts]
    # ImageNet's test/ has no classes, its val/ has.
    test = next((each for each in tests if each.classes), tests[0])
    if not train.classes:
        return replace(test, classes=())
    strangers = sorted(set(test.classes) - set(train.classes))
    if strangers:
        raise DataError(
            f"{test.root}: its class folders must be among those of {train.root}, but "
            f"{', '.join(strangers[:5])} {'is' if len(strangers) == 1 else 'are'} not."
        )
    return replace(test, classes=train.classes if test.classes else ())


def _read(root: Path) -> ImageFiles:
    names: list[str] = []
    skipped: list[Skipped] = []
    for path in _files(root):
        name = path.relative_to(root).as_posix()
        if path.suffix.lower() not in EXTENSIONS:
            skipped.append(Skipped(str(path), "is not an image by its name"))
        elif name != name.encode(errors="replace").decode():
            skipped.append(Skipped(ascii(str(path)), "has a name that is not UTF-8"))
        else:
            names.append(name)
    if not names:
        raise DataError(
            f"{root}: must hold images ({', '.join(sorted(EXTENSIONS))}), in train/ and test/ or "
            "val/, in one folder per class, or at any depth, but holds none."
        )
    folders = sorted({name.split("/")[0] for name in names})
    labelled = all(name.count("/") == 1 for name in names) and len(folders) > 1
    return ImageFiles(
        root,
        tuple(sorted(names, key=lambda name: hashlib.blake2b(name.encode()).digest())),
        tuple(folders) if labelled else (),
        tuple(sorted(skipped, key=lambda item: item.path)),
    )


def _files(root: Path) -> list[Path]:
    """All files below a folder; links are followed, each folder is entered once."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed: {error.strerror}.") from error

    found: list[Path] = []
    entered: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        entered.add(os.path.realpath(folder))
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".")
            and os.path.realpath(os.path.join(folder, name)) not in entered
        ]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return found


def _hold_out(whole: ImageFiles, split: Split) -> ImageFiles:
    if len(whole.names) == 1:
        raise DataError(
            f"{whole.root}: must hold at least two images, one to train on and one to hold out, "
            "but holds one."
        )
    count = max(1, len(whole.names) // HELD_OUT)
    names = whole.names[:count] if split == "test" else whole.names[count:]
    note = f"no test part: {count:,} of {len(whole.names):,} images, chosen by path, are held out"
    return replace(whole, names=names, note=note)
