"""Masks and objects of the images of one split, wherever they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from mimkit.data.intake.table import Skipped

IGNORED: Final = -1
"""The class of pixels that are neither learned from nor judged."""


class Masks(Protocol):
    """The class of every pixel, for the images of one split."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names that masks number."""

    @property
    def fingerprint(self) -> str:
        """Changes with the masks and their classes; nothing if they change with images alone."""

    @property
    def kind(self) -> str:
        """What was found, in words; nothing where that goes without saying."""

    @property
    def note(self) -> str:
        """What people must know of how ids became classes, or nothing."""

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Masks that cannot be used, and images that have none, with the reason."""

    def usable(self) -> NDArray[np.int64]:
        """Says which images have a mask with a pixel to judge.

        Shape: (n,) int64, ascending.
        """

    def __call__(self, index: int) -> NDArray[np.int64]:
        """Gives the class of every pixel of an image at its full size, ``IGNORED`` for none.

        Shape: (H, W) int64.
        Raises: DataError if the mask is not one of this image.
        """


class Rle(TypedDict):
    """Which pixels a region covers, as COCO has it: runs down the columns, compressed."""

    size: list[int]
    counts: bytes


@dataclass(frozen=True, eq=False)
class Instances:
    """The objects of one image.

    Args:
        boxes: left, top, right and bottom in pixels, right and bottom just outside.
        labels: their classes.
        crowd: whether one stands for many, which is neither learned from nor judged.
        areas: in pixels, by which objects are small, medium or large.
        regions: the pixels of each; None where only boxes are known.

    Shape: boxes (k, 4) float32, labels (k,) int64, crowd (k,) bool, areas (k,) float32.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float32]
    regions: tuple[Rle, ...] | None

    def __len__(self) -> int:
        return len(self.labels)


class Objects(Protocol):
    """The objects that the images of one split show."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names that labels number."""

    @property
    def fingerprint(self) -> str:
        """Changes with what is said of the images."""

    @property
    def has_regions(self) -> bool:
        """Whether the pixels of objects are known, not only their boxes."""

    @property
    def kind(self) -> str:
        """What was found, in words; nothing where that goes without saying."""

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Objects and images that are not as they must be, and why."""

    def usable(self) -> NDArray[np.int64]:
        """Says which images are annotated, those without any object included.

        Shape: (n,) int64, ascending.
        """

    def __call__(self, index: int) -> Instances:
        """Gives the objects of an image, at its full size."""
