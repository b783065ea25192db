"""Where an image comes to lie in the rectangle that the network sees, and its objects with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimkit.data.counter import uniform
from mimkit.data.pixels.augment import EPOCH_STRIDE
from mimkit.data.pixels.raster import Raster
from mimkit.data.truth.records import Instances
from mimkit.data.truth.regions import decode
from mimkit.parts.records import Interpolation

_STREAM: Final = 1003
_LEAST: Final = 1.0
"""Pixels: a box that a crop leaves narrower is no longer an object."""


@dataclass(frozen=True)
class Variation:
    """How training images vary.

    Args:
        scale: least and largest size of an image, 1 being where it just fits in. What is larger is
            cropped, what is smaller is padded.
        flip: whether every other image is mirrored, left to right.

    Source: large-scale jitter, arXiv 2012.07177, section 3.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False


@dataclass(frozen=True)
class Place:
    """How an image is resized, cropped and mirrored; then it lies at the top left.

    Args:
        resized: height and width of the whole image after it was resized.
        corner: top and left of the crop, in these pixels.
        shape: height and width of the crop.
        flip: whether it is mirrored.
    """

    resized: tuple[int, int]
    corner: tuple[int, int]
    shape: tuple[int, int]
    flip: bool

    def image(self, image: Raster, interpolation: Interpolation) -> Tensor:
        """Cuts and resizes the pixels.

        Shape: (C, height, width) uint8 or float32.
        """
        down, right = self._scales(image.height, image.width)
        (top, left), (height, width) = self.corner, self.shape
        box = (
            left / right,
            top / down,
            min((left + width) / right, image.width),
            min((top + height) / down, image.height),
        )
        small = image.resized((height, width), interpolation, box)
        return (small.mirrored() if self.flip else small).tensor()

    def boxes(self, boxes: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
        """Moves boxes of an image of this height and width along, cut where the crop ends.

        Shape: (k, 4).
        """
        down, right = self._scales(height, width)
        moved = boxes * np.array([right, down, right, down], dtype=np.float32)
        moved -= np.array([*self.corner[::-1], *self.corner[::-1]], dtype=np.float32)
        moved = moved.clip(0, np.array([*self.shape[::-1], *self.shape[::-1]], dtype=np.float32))
        if self.flip:
            moved[:, [0, 2]] = self.shape[1] - moved[:, [2, 0]]
        return moved.astype(np.float32)

    def masks(self, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Moves masks along: each pixel takes what lies at its centre.

        Shape: (k, H, W) to (k, height, width).
        """
        down, right = self._scales(*masks.shape[1:])
        rows = _centres(self.corner[0], self.shape[0], down, masks.shape[1])
        cols = _centres(self.corner[1], self.shape[1], right, masks.shape[2])
        return masks[:, rows][:, :, cols[::-1] if self.flip else cols]

    def back(self, boxes: Tensor, height: int, width: int) -> Tensor:
        """Moves boxes of a whole image back to its full size, height and width, and into it.

        Shape: (k, 4).
        """
        down, right = self._scales(height, width)
        full = boxes.float() / boxes.new_tensor([right, down, right, down], dtype=torch.float32)
        return full.clamp(min=0).minimum(full.new_tensor([width, height, width, height]))

    def _scales(self, height: int, width: int) -> tuple[float, float]:
        return self.resized[0] / height, self.resized[1] / width


def fit(size: tuple[int, int], frame: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
    """Says how large an image becomes so that it fits into a frame, its aspect kept.

    >>> fit((200, 400), (100, 100))
    (50, 100)
    """
    factor = scale * min(side / own for side, own in zip(frame, size, strict=True))
    height, width = (max(1, round(own * factor)) for own in size)
    return height, width


def whole(size: tuple[int, int], frame: tuple[int, int]) -> Place:
    """Shows all of an image, as large as fits."""
    resized = fit(size, frame)
    return Place(resized, (0, 0), resized, flip=False)


def draw(
    variation: Variation,
    size: tuple[int, int],
    frame: tuple[int, int],
    *,
    seed: int,
    epoch: int,
    index: int,
) -> Place:
    """Draws the place of a training image, from (seed, epoch, index) alone."""
    number = np.array([epoch * EPOCH_STRIDE + index], dtype=np.int64)
    scale, down, right, flip = uniform(seed, _STREAM, number, 4)[0].tolist()
    low, high = variation.scale
    resized = fit(size, frame, low + (high - low) * scale)
    shape = min(resized[0], frame[0]), min(resized[1], frame[1])
    room = resized[0] - shape[0], resized[1] - shape[1]
    corner = int(down * (room[0] + 1)), int(right * (room[1] + 1))
    return Place(resized, corner, shape, flip=variation.flip and flip < 0.5)


def targets(
    known: Instances, place: Place, size: tuple[int, int], frame: tuple[int, int], *, masks: bool
) -> dict[str, Tensor]:
    """Gives what a detector learns of an image: objects of which enough is left, no crowds.

    Args:
        known: the objects of the whole image.
        place: of the image.
        size: of the image, height and width.
        frame: what the network sees.
        masks: whether masks are learned.

    Shape: boxes (k, 4) float32, labels (k,) int64 from 1, masks (k, *frame) uint8.
    """
    boxes = place.boxes(known.boxes, *size)
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = np.flatnonzero((sides >= _LEAST).all(axis=1) & ~known.crowd)
    found = {
        "boxes": torch.from_numpy(boxes[kept]),
        "labels": torch.from_numpy(known.labels[kept] + 1),
    }
    if masks:
        assert known.regions is not None
        shown = place.masks(decode([known.regions[k] for k in kept], *size))
        padded = np.zeros((len(kept), *frame), dtype=np.uint8)
        padded[:, : place.shape[0], : place.shape[1]] = shown
        found["masks"] = torch.from_numpy(padded)
    return found


def _centres(start: int, count: int, scale: float, size: int) -> NDArray[np.int64]:
    places = (np.arange(start, start + count) + 0.5) / scale
    return places.astype(np.int64).clip(0, size - 1)
