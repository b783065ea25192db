"""Pictures of what a detector found, beside what is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from mimkit.data.source import Source
from mimkit.data.truth.records import Rle
from mimkit.data.truth.regions import decode
from mimkit.evaluate.detection.annotated import objects_of
from mimkit.evaluate.detection.average_precision import Found
from mimkit.evaluate.shown import IMAGE, TRUTH, Shown, visible

_SURE: Final = 0.5
"""What is less sure is not drawn; it counts all the same."""
_COVER: Final = 0.4
_COLOURS: Final = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
"""Told apart by red-green blind eyes too (Okabe and Ito); one follows the other by class."""


def show(shown: Shown, start: str, source: Source, index: int, found: Found) -> None:
    """Keeps an image, its objects, and those that were found with a score of at least one half.

    Args:
        shown: where.
        start: how the weights of the network came about.
        source: the split.
        index: number of the image.
        found: in it.
    """
    image = visible(source.image(index).tensor())
    truth = objects_of(source)(index)
    sure = found.scores >= _SURE
    regions = found.regions and [r for r, kept in zip(found.regions, sure, strict=True) if kept]
    shown.add(IMAGE, index, image)
    shown.add(TRUTH, index, drawn(image, truth.boxes, truth.labels, truth.regions))
    shown.add(start, index, drawn(image, found.boxes[sure], found.labels[sure], regions))


def drawn(
    image: Tensor,
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    regions: Sequence[Rle] | None,
) -> Tensor:
    """Draws objects over an image: a colour for each class, boxes and where known the pixels.

    Shape: image (3, H, W) uint8, boxes (k, 4), labels (k,); (3, H, W) uint8.
    """
    if not len(labels):
        return image
    colours = [_COLOURS[label % len(_COLOURS)] for label in labels.tolist()]
    if regions:
        masks = torch.from_numpy(decode(list(regions), *image.shape[1:]))
        image = draw_segmentation_masks(image, masks, alpha=_COVER, colors=colours)
    last = torch.tensor(image.shape[1:]).flip(0).repeat(2) - 1
    corners = torch.from_numpy(boxes).round().clamp(min=0).minimum(last)
    # Narrower than a pixel, which torchvision refuses.
    corners[:, 2:] = torch.maximum(corners[:, :2], corners[:, 2:])
    picture: Tensor = draw_bounding_boxes(image, corners, colors=colours)
    return picture
