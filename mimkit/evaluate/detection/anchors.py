"""Anchors: boxes of a few shapes at every cell of every map, from which proposals start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

_RATIOS: Final = (0.5, 1.0, 2.0)
"""Height through width."""
PAPER_SCALE: Final = 8.0
_LEAST_SCALE: Final = 2.0
_SMALL: Final = 0.1


def fitting_scale(sides: NDArray[np.float64], stride: int) -> float:
    """Chooses the anchors' side, in cells, by the objects that are there.

    A tenth of them is smaller than the smallest anchor; but it has at least 2 cells, and at most
    the 8 of the papers.

    >>> fitting_scale(np.array([12.0, 20.0, 30.0]), stride=4)
    3.4

    Args:
        sides: root of the area of each box, in pixels that the network sees.
        stride: of the finest map.
    """
    if not len(sides):
        return PAPER_SCALE
    wanted = float(np.quantile(sides, _SMALL)) / stride
    return round(min(max(wanted, _LEAST_SCALE), PAPER_SCALE), 2)


class Anchors(AnchorGenerator):  # type: ignore[misc]  # torchvision is not typed
    """Anchors of three shapes, their side a multiple of each map's stride.

    torchvision's rounds sides to whole pixels, and divides the image's size by the map's to get
    the stride: with anchors of few pixels, or maps with an odd number of cells, both are wrong.

    Args:
        strides: of the maps, in pixels.
        scale: side in cells.
    """

    def __init__(self, strides: Sequence[int], scale: float) -> None:
        self.strides = tuple(strides)
        super().__init__(tuple((scale * stride,) for stride in strides), (_RATIOS,) * len(strides))

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008 -- as in torchvision
    ) -> Tensor:
        """Gives the boxes around (0, 0).

        Shape: (scales * ratios, 4).
        """
        side = torch.tensor(scales, dtype=dtype, device=device)
        root = torch.tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        width, height = (side / root).flatten(), (side * root).flatten()
        return torch.stack([-width, -height, width, height], dim=1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Gives the anchors of all maps, the same for every image.

        Shape: for each image (A, 4).
        """
        first = feature_maps[0]
        self.set_cell_anchors(torch.float32, first.device)
        sizes = [list(each.shape[-2:]) for each in feature_maps]
        strides = [
            2 * [torch.tensor(stride, dtype=torch.int64, device=first.device)]
            for stride in self.strides
        ]
        anchors = torch.cat(self.grid_anchors(sizes, strides))
        return [anchors] * len(image_list.image_sizes)
