"""The objects of one split's images, from a JSON as COCO has them or a column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimkit.data.intake.table import Skipped
from mimkit.data.truth.coco_file import CocoFile
from mimkit.data.truth.records import Instances
from mimkit.errors import DataError, nearest

_SHOWN: Final = 5


@dataclass(frozen=True, eq=False)
class CocoObjects:
    """What a COCO file says of the images of one split.

    Args:
        file: says it.
        numbers: for each image of the split its number in the file, -1 where it is not named.
        classes: the training part's, which labels number.
        lost: what else is not as it must be.

    Shape: numbers (n,) int64.
    """

    file: CocoFile
    numbers: NDArray[np.int64]
    classes: tuple[str, ...]
    lost: tuple[Skipped, ...]

    @property
    def has_regions(self) -> bool:
        """Whether every object has an outline."""
        return self.file.has_regions

    @property
    def fingerprint(self) -> str:
        """Changes with the file, the images and the classes."""
        return "-".join((self.file.fingerprint, *self.classes))

    @property
    def kind(self) -> str:
        """How many there are, of how many classes, and where that is said."""
        used = self.numbers[self.numbers >= 0]
        count, classes = int(self.file.counts[used].sum()), len(self.classes)
        words = [
            f"{count:,} in {_images(len(used))}",
            f"{classes} class{'es' * (classes != 1)}",
            f"with{'' if self.has_regions else 'out'} outlines",
        ]
        if len(used) < len(self.numbers):
            words.append(f"{_images(len(self.numbers) - len(used))} without annotations")
        return ", ".join([*words, self.file.name])

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What is not as it must be, in the file and beside it."""
        note = [Skipped(self.file.where, self.file.note)] if self.file.note else []
        return (*self.file.skipped, *note, *self.lost)

    def usable(self) -> NDArray[np.int64]:
        """Says which images the file names."""
        return np.flatnonzero(self.numbers >= 0)

    def __call__(self, index: int) -> Instances:
        """Gives the objects of an image.

        Raises: DataError if the file does not name it.
        """
        number = int(self.numbers[index])
        if number < 0:
            raise DataError(f"{self.file.where}: must name image {index}, but does not.")
        found = self.file.instances(number)
        labels = self._codes[found.labels]
        return Instances(found.boxes, labels, found.crowd, found.areas, found.regions)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("file", "numbers", "classes", "lost")}

    @cached_property
    def _codes(self) -> NDArray[np.int64]:
        return np.array([self.classes.index(name) for name in self.file.classes], dtype=np.int64)


def objects_in(
    file: CocoFile,
    numbers: NDArray[np.int64],
    *,
    sizes: NDArray[np.int32] | None,
    classes: tuple[str, ...],
    where: Callable[[int], str],
    lost: Sequence[str],
) -> CocoObjects:
    """Joins the images of a split with what a file says of them.

    Args:
        file: says it.
        numbers: for each image its number in the file, -1 where it is not named, (n,) int64.
        sizes: their heights and widths, (n, 2); None if they are not known yet.
        classes: the training part's.
        where: names an image for people.
        lost: names in the file of images that are not there.

    Raises: DataError if the file has a class that training has not, or if no size fits.
    """
    refuse_strangers(file.where, file.classes, classes)
    skipped: list[Skipped] = []
    if lost:
        reason = f"names {_images(len(lost))} not there, first {lost[0]}"
        skipped.append(Skipped(file.where, reason))
    if sizes is not None:
        named = np.flatnonzero(numbers >= 0)
        differ = named[(file.sizes[numbers[named]] != sizes[named]).any(axis=1)]
        told = [f"{where(int(k))}: {_sizes(file, numbers[k], sizes[k])}" for k in differ[:_SHOWN]]
        if len(differ) and len(differ) == len(named):
            raise DataError(
                f"{told[0]}, and so it is with every image that is named there. Were they resized "
                "after they were annotated? Give them their size back, or use no objects: "
                "data.objects='none'."
            )
        if told:
            reason = f"gives {_images(len(differ))} another size; their objects are not used"
            skipped.append(Skipped(file.where, f"{reason}; {'; '.join(told)}"))
        numbers = numbers.copy()
        numbers[differ] = -1
    return CocoObjects(file, numbers, classes, tuple(skipped))


def refuse_strangers(where: str, names: Sequence[str], classes: Sequence[str]) -> None:
    """Refuses what says of a split that it shows classes which training has not.

    Raises: DataError.
    """
    strangers = [name for name in names if name not in classes]
    if strangers:
        raise DataError(
            f"{where}: its categories must be among those of the training part, but "
            f"'{strangers[0]}' is not.{nearest(strangers[0], classes)} Name other objects with "
            "data.objects, or use none: data.objects='none'."
        )


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _sizes(file: CocoFile, number: int, size: NDArray[np.int32]) -> str:
    (height, width), (says_height, says_width) = size.tolist(), file.sizes[number].tolist()
    return f"is {width} x {height} pixels, but {file.name} says {says_width} x {says_height}"


def match(
    files: Sequence[str], paths: Sequence[str], *, names_alone: bool = False
) -> NDArray[np.int64]:
    """Finds the images that a file names.

    >>> match(["x/a.png", "x/b.png"], ["/data/x/b.png", "/data/y/a.png"]).tolist()
    [1, -1]

    Args:
        files: the names, each the end of a path.
        paths: of the images.
        names_alone: leave out the folders, as where the images were moved.

    Returns: for each path the number of its name, (n,) int64; -1 where there is none, or several.
    """
    where = [tuple(reversed(path.split("/"))) for path in paths]
    names = [_parts(name)[: 1 if names_alone else None] for name in files]
    by_name: dict[tuple[str, ...], int] = {}
    for number, name in enumerate(names):
        by_name[name] = -1 if name in by_name else number
    lengths = sorted(set(map(len, by_name)) - {0}, reverse=True)
    found = np.full(len(paths), -1, dtype=np.int64)
    taken: dict[int, int] = {}
    for place, path in enumerate(where):
        number = next((by_name[path[:k]] for k in lengths if path[:k] in by_name), -1)
        if number >= 0 and number in taken:  # two images of one name: none can be told
            found[taken[number]] = number = -1
        elif number >= 0:
            taken[number] = place
        found[place] = number
    return found


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in reversed(name.split("/")) if part not in ("", "."))
