"""Which mask belongs to which image: folders of masks beside those of the images, file by file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from mimkit.data.intake.paths import Paths
from mimkit.data.intake.table import Skipped
from mimkit.data.intake.walk import Folder

_LOSSY: Final = (".jpg", ".jpeg", ".jfif", ".jpe")
"""What is compressed with loss holds no ids."""
_TRIED: Final = 20
"""So many images are looked at for the letters by which masks differ from them."""


@dataclass(frozen=True)
class Pairs:
    """The masks of images below one folder.

    Args:
        files: by the folder of images, then by the name of an image without its extension, the
            path of its mask below the root.
        digest: changes with a mask's name, size or time of change.
    """

    files: Mapping[str, Mapping[str, str]]
    digest: str

    @property
    def folders(self) -> list[str]:
        """Where masks lie."""
        found = (
            str(PurePosixPath(path).parent) for of in self.files.values() for path in of.values()
        )
        return list(dict.fromkeys(found))

    def of(self, image: str) -> str | None:
        """Names the mask of an image, both below the root; None if it has none."""
        path = PurePosixPath(image)
        folder = "" if str(path.parent) == "." else str(path.parent)
        return self.files.get(folder, {}).get(path.stem)


@dataclass(frozen=True)
class PairedMasks:
    """Undecoded masks, by the number of their image among the paths.

    Args:
        paths: of the images.
        pairs: which mask is whose.
    """

    paths: Paths
    pairs: Pairs

    @property
    def digest(self) -> str:
        """Changes with the files."""
        return self.pairs.digest

    def where(self, number: int) -> str:
        """Names a mask for people, or the image that has none."""
        image = self.paths.where(number)
        mask = self.pairs.of(image.removeprefix(f"{self.paths.root}/"))
        return image if mask is None else f"{self.paths.root}/{mask}"

    def content(self, number: int) -> bytes | None:
        """Reads a mask's file; None if there is none.

        Raises: OSError if it cannot be read.
        """
        path = self.where(number)
        if path == self.paths.where(number):
            return None
        with open(path, "rb") as file:
            return file.read()


def unused(
    skipped: Iterable[Skipped], root: str, masks: Sequence[Folder], pairs: Iterable[Pairs]
) -> tuple[Skipped, ...]:
    """Takes masks that belong to images out of what is not used.

    Args:
        skipped: folders that are not used, those of masks among them.
        root: below which they lie.
        masks: the folders of masks.
        pairs: which masks are whose, of all splits.
    """
    taken = {path for each in pairs for of in each.files.values() for path in of.values()}
    found = []
    for item in skipped:
        inside = (f for f in masks if _covers(item.path.removeprefix(f"{root}/"), f.name))
        names = [folder.path(name) for folder in inside for name in folder.images]
        left = len([name for name in names if name not in taken])
        if names and all(PurePosixPath(name).suffix.lower() in _LOSSY for name in names):
            why = f"{left:,} images not used: as masks they hold no ids, since JPEG blurs; take PNG"
            found.append(Skipped(item.path, why))
        elif left == len(names):
            found.append(item)
        elif left:
            why = f"{left:,} images not used: masks, but no image is called as they are"
            found.append(Skipped(item.path, why))
    return tuple(found)


def _covers(path: str, folder: str) -> bool:
    """Whether what is listed as a path, or as ``path/*``, holds a folder."""
    if path.endswith("*"):
        return folder == path.rstrip("*").rstrip("/")
    return folder == path or folder.startswith(f"{path}/")


def pair(images: Iterable[Folder], masks: Sequence[Folder]) -> Pairs | None:
    """Finds the masks of images: the same path but for one folder, the same name but for its ends.

    ``masks/a/1.png``, ``masks/a/1_mask.png`` or ``masks/a/mask_1.png`` for ``images/a/1.jpg``,
    ``train_masks/1.png`` for ``train/1.jpg``. All masks of a folder must have the same letters
    before or behind the name.

    Returns: None if no image has one.
    """
    by_path = {folder.parts: folder for folder in masks}
    files: dict[str, Mapping[str, str]] = {}
    digest = hashlib.sha256()
    for folder in images:
        candidates = [by_path[path] for path in by_path if _answers(folder.parts, path)]
        found = max((_stems(folder, each) for each in candidates), key=len, default={})
        if found:
            files[folder.name] = found
            digest.update("\0".join((folder.name, *found.values())).encode())
            for each in candidates:
                digest.update(each.digest)
    return Pairs(files, digest.hexdigest()) if files else None


def _answers(images: Sequence[str], masks: Sequence[str]) -> bool:
    return (
        len(images) == len(masks) and sum(a != b for a, b in zip(images, masks, strict=True)) == 1
    )


def _stems(images: Folder, masks: Folder) -> dict[str, str]:
    """The path of each image's mask, by the image's name without extension."""
    paths = {
        PurePosixPath(name).stem: masks.path(name)
        for name in masks.images
        if PurePosixPath(name).suffix.lower() not in _LOSSY
    }
    stems = [PurePosixPath(name).stem for name in images.images]
    found = {stem: paths[stem] for stem in stems if stem in paths}
    if found or not stems or not paths:
        return found
    # The same letters before or behind the name of every image.
    first = next((s for s in stems[:_TRIED] if any(s in mask for mask in paths)), None)
    if first is None:
        return {}
    around = {
        (mask[:place], mask[place + len(first) :])
        for mask in paths
        for place in range(len(mask))
        if mask.startswith(first, place)
    }
    named = (
        {s: paths[name] for s in stems if (name := f"{before}{s}{behind}") in paths}
        for before, behind in sorted(around, key=lambda each: (bool(each[0]), each))
    )
    return max(named, key=len, default={})
