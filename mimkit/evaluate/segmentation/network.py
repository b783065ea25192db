"""A network that says the class of every pixel: an encoder's maps and a head on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimkit.data.truth.records import IGNORED
from mimkit.evaluate.conv_norm import Norm
from mimkit.evaluate.pyramid import Pyramid
from mimkit.evaluate.upernet import AuxiliaryHead, LinearHead, UPerNet
from mimkit.parts.dense import DenseBackbone
from mimkit.parts.part import Module

HeadName = Literal["linear", "upernet"]
_AUXILIARY_WEIGHT: Final = 0.4
_AUXILIARY_WIDTH: Final = 256


class Segmenter(Module):
    """A backbone with a new head for segmentation.

    Args:
        backbone: gives maps.
        num_classes: K.
        head: "linear": on the last map as a frozen probe reads it; "upernet": on four maps, brought
            to strides of their own, beside an auxiliary head on the third.
        frozen: the backbone is not trained, and computes as in evaluation.
        width: of the UPerNet head.
        norm: of the head, and of the pyramid.

    Source: UPerNet with the pyramid, and the auxiliary head's weight of 0.4: BEiT,
        arXiv 2106.08254, appendix, and its code.
    """

    def __init__(
        self,
        backbone: DenseBackbone,
        num_classes: int,
        *,
        head: HeadName,
        frozen: bool,
        width: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(not frozen) if frozen else backbone
        self.frozen = frozen
        self.pyramid = self.auxiliary = None
        if head == "linear":
            self.head: nn.Module = LinearHead(backbone.last, num_classes, norm=norm)
        else:
            self.pyramid = Pyramid(backbone.levels, norm=norm)
            levels = self.pyramid.levels
            self.head = UPerNet(levels, num_classes, width=width, norm=norm)
            self.auxiliary = AuxiliaryHead(
                levels, num_classes, width=min(width, _AUXILIARY_WIDTH), norm=norm
            )

    def train(self, mode: bool = True) -> Segmenter:
        """Switches the mode of what is trained."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Gives logits for every pixel of images of the backbone's size.

        Shape: (B, C, H, W) to (B, K, H, W).
        """
        return _at_size_of(image, self._scores(image)[0])

    def loss(self, image: Tensor, mask: Tensor) -> Tensor:
        """Gives the mean cross-entropy over the pixels that are judged.

        Shape: image (B, C, H, W), mask (B, H, W) int64; () float32.
        """
        main, auxiliary = self._scores(image)
        loss = _cross_entropy(_at_size_of(image, main), mask)
        if auxiliary is not None:
            loss = loss + _AUXILIARY_WEIGHT * _cross_entropy(_at_size_of(image, auxiliary), mask)
        return loss

    def _scores(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = (
                (self.backbone.features(image),) if self.pyramid is None else self.backbone(image)
            )
        if self.pyramid is None or self.auxiliary is None:
            return self.head(maps[0]), None
        levels = self.pyramid(maps)
        auxiliary = self.auxiliary(levels) if self.training else None
        return self.head(levels), auxiliary


def _at_size_of(image: Tensor, logits: Tensor) -> Tensor:
    size = image.shape[-2:]
    full: Tensor = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
    return full


def _cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    total = F.cross_entropy(logits, mask, ignore_index=IGNORED, reduction="sum")
    return total / (mask != IGNORED).sum().clamp(min=1)


@dataclass(frozen=True)
class Heads:
    """Which head a network gets.

    Args:
        head: see `Segmenter`, as the others.
        frozen: likewise.
        width: likewise.
        norm: likewise.
    """

    head: HeadName
    frozen: bool
    width: int
    norm: Norm

    def on(self, backbone: DenseBackbone, num_classes: int) -> Segmenter:
        """Makes a network with a new head."""
        return Segmenter(backbone, num_classes, **vars(self))

    @property
    def protocol(self) -> Mapping[str, str | int | bool]:
        """What a result says of it."""
        more = {"width": self.width} if self.head == "upernet" else {}
        return {"head": self.head, "frozen": self.frozen, "norm": self.norm, **more}
