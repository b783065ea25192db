"""From what lies in a box to the pixels of the whole image, at its full size."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_THRESHOLD: Final = 0.5
_MOST_PIXELS: Final = 2**24
"""Of the masks that are pasted at once."""


def paste(masks: Tensor, boxes: Tensor, height: int, width: int) -> NDArray[np.bool_]:
    """Says which pixels of an image are covered.

    Every pixel's centre is looked up in the mask, between whose cells is interpolated. torchvision
    pastes into boxes of whole pixels, which costs small objects up to a pixel on each side.

    Args:
        masks: of what lies in the boxes, in [0, 1].
        boxes: in pixels of the image.
        height: of the image.
        width: of the image.

    Shape: masks (k, 1, M, M), boxes (k, 4); (k, height, width).
    """
    step = max(1, _MOST_PIXELS // (height * width))
    pieces = [
        _paste(masks[start : start + step], boxes[start : start + step], height, width)
        for start in range(0, len(masks), step)
    ]
    return np.concatenate([np.zeros((0, height, width), dtype=np.bool_), *pieces])


def _paste(masks: Tensor, boxes: Tensor, height: int, width: int) -> NDArray[np.bool_]:
    left, top, right, bottom = boxes.float().unbind(1)
    x = _within(left, right, width)
    y = _within(top, bottom, height)
    k = len(masks)
    grid = torch.stack(
        [x[:, None, :].expand(k, height, width), y[:, :, None].expand(k, height, width)], dim=3
    )
    pasted = F.grid_sample(masks.float(), grid, align_corners=False, padding_mode="zeros")
    found: NDArray[np.bool_] = (pasted[:, 0] >= _THRESHOLD).cpu().numpy()
    return found


def _within(start: Tensor, stop: Tensor, size: int) -> Tensor:
    """Where pixels' centres lie between two ends, from -1 to 1, (k, size)."""
    centres = torch.arange(size, device=start.device) + 0.5
    extent = (stop - start).clamp(min=1e-3)[:, None]
    return 2 * (centres - start[:, None]) / extent - 1
