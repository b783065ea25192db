"""Heads of semantic segmentation: UPerNet (arXiv 1807.10221), its helper, and a linear one."""

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimkit.evaluate.conv_norm import Norm, conv_norm_relu, make_norm
from mimkit.parts.dense import Level

_BINS: Final = (1, 2, 3, 6)
"""Cells to a side of what the last map is pooled to."""


class UPerNet(nn.Module):
    """Joins maps of several sizes and says of every cell of the first which class it shows.

    The last map is pooled to 1, 2, 3 and 6 cells a side and put together again (pyramid pooling);
    each map above takes in what the coarser one knows; all are resized to the first and joined.

    Args:
        levels: of the maps, the finest first, such as those of a `Pyramid`.
        num_classes: number of logits.
        width: channels of every layer.
        norm: "batch" as in the papers, which needs at least three images in a training step
            (`require_images`), or "group" for any number.
        dropout: share of channels that are left out before the last layer.

    Source: UPerNet, arXiv 1807.10221, section 3.1, as BEiT and CAE use it for ADE20K: width 512,
        dropout 0.1, images of 512 px. Batch statistics were there over 16 images on all devices;
        here they are those of a device.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        num_classes: int,
        *,
        width: int = 512,
        norm: Norm = "batch",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        *finer, last = (level.channels for level in levels)
        self.pooled = nn.ModuleList(conv_norm_relu(last, width, 1, norm) for _ in _BINS)
        self.bottleneck = conv_norm_relu(last + len(_BINS) * width, width, 3, norm)
        self.laterals = nn.ModuleList(conv_norm_relu(each, width, 1, norm) for each in finer)
        self.smoothing = nn.ModuleList(conv_norm_relu(width, width, 3, norm) for _ in finer)
        self.fusion = conv_norm_relu(len(levels) * width, width, 3, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = _classifier(width, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Gives the logits of every cell of the first map.

        Shape: (B, C, h, w) of every level to (B, num_classes, h, w) of the first.
        Raises: RecipeError in training with norm = "batch" on fewer than three images.
        """
        *finer, last = maps
        top = self._pool(last)
        outputs = [top]
        for lateral, smooth, finer_map in reversed(
            list(zip(self.laterals, self.smoothing, finer, strict=True))
        ):
            top = _resize(top, finer_map) + lateral(finer_map)
            outputs.insert(0, smooth(top))
        joined = torch.cat([_resize(each, outputs[0]) for each in outputs], dim=1)
        logits: Tensor = self.classifier(self.dropout(self.fusion(joined)))
        return logits

    def _pool(self, last: Tensor) -> Tensor:
        """Adds to each cell what surrounds it, near and far: (B, C, h, w) to (B, width, h, w)."""
        around = [
            _resize(layer(F.adaptive_avg_pool2d(last, side)), last)
            for side, layer in zip(_BINS, self.pooled, strict=True)
        ]
        pooled: Tensor = self.bottleneck(torch.cat([last, *around], dim=1))
        return pooled


class AuxiliaryHead(nn.Module):
    """A small head on a middle map, whose loss helps the layers below it; judging ignores it.

    Args:
        levels: of the maps, as `UPerNet` gets them.
        num_classes: number of logits.
        index: which map it reads, counted from 0.
        width: channels of its convolution.
        norm: "batch" as in the papers, or "group".
        dropout: share of channels that are left out before the last layer.

    Source: that of BEiT and CAE beside UPerNet: one convolution of 3 x 3 with 256 channels on the
        third map; its loss is weighted by 0.4 there.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        num_classes: int,
        *,
        index: int = 2,
        width: int = 256,
        norm: Norm = "batch",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.index = index
        self.convolution = conv_norm_relu(levels[index].channels, width, 3, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = _classifier(width, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Gives the logits of every cell of the map that it reads.

        Shape: (B, C, h, w) of every level to (B, num_classes, h, w) of that one.
        """
        x = self.convolution(maps[self.index])
        logits: Tensor = self.classifier(self.dropout(x))
        return logits


class LinearHead(nn.Module):
    """A linear classifier of every cell of one map, for frozen features.

    Args:
        level: of the map, such as `DenseBackbone.last`.
        num_classes: number of logits.
        norm: "batch", or "group".
        dropout: share of channels that are left out before the classifier.

    Source: DINOv2, arXiv 2304.07193, section 7.4 ("linear"): batch norm and a linear layer.
    """

    def __init__(
        self, level: Level, num_classes: int, *, norm: Norm = "batch", dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.norm = make_norm(norm, level.channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = _classifier(level.channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Gives the logits of every cell.

        Shape: (B, C, h, w) to (B, num_classes, h, w).
        """
        logits: Tensor = self.classifier(self.dropout(self.norm(features)))
        return logits


def _classifier(channels: int, num_classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, num_classes, 1)
    # As in the papers' heads: logits begin near zero.
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """Resizes a map to another's rows and columns; odd sizes are no multiples of each other."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
