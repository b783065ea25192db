"""Mask R-CNN on an encoder's maps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from mimkit.evaluate.conv_norm import Norm, make_norm
from mimkit.evaluate.detection.anchors import Anchors
from mimkit.evaluate.detection.heads import BoxHead, BoxLoss, Heads, Target
from mimkit.evaluate.pyramid import Pyramid
from mimkit.parts.dense import DenseBackbone
from mimkit.parts.part import Module

_MANY: Final = 1000
"""Proposals of an image when it is judged; as many from every map before they are thinned out."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a detector is made of, beside the encoder.

    Args:
        num_classes: of objects; the data say it.
        masks: whether it also says which pixels an object covers.
        fpn_channels: of every map.
        norm: of all convolutions: the pyramid's, the FPN's and the heads'.
        box_head: see `mimkit.evaluate.detection.heads.Heads`.
        box_loss: likewise.
        head_width: likewise.
        num_sampled: likewise.
        max_detections: likewise.
    """

    num_classes: int = 0
    masks: bool = False
    fpn_channels: int
    norm: Norm
    box_head: BoxHead
    box_loss: BoxLoss
    head_width: int
    num_sampled: int
    max_detections: int


class Detector(Module):
    """Encoder, pyramid, FPN, proposals and heads, for normalised images of one size.

    torchvision's ``GeneralizedRCNN`` would normalise and resize once more.

    Args:
        backbone: the encoder's maps.
        settings: of all else.
        frozen: whether the encoder stays as it is.

    Source: Mask R-CNN on FPN, arXiv 1703.06870 and 1612.03144, by torchvision, whose thresholds
        and start values it has.
    """

    def __init__(self, backbone: DenseBackbone, settings: Settings, *, frozen: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.frozen = frozen
        if frozen:
            backbone.requires_grad_(False)
        self.pyramid = Pyramid(backbone.levels, norm=settings.norm)
        levels, channels = self.pyramid.levels, settings.fpn_channels
        norm_layer: Any = partial(make_norm, settings.norm)
        self.fpn = FeaturePyramidNetwork(
            [level.channels for level in levels], channels, LastLevelMaxPool(), norm_layer
        )
        self.names = [str(number) for number in range(len(levels))]
        strides = [level.stride for level in levels]
        anchors = Anchors([*strides, 2 * strides[-1]], scale=1.0)
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2 * _MANY, "testing": _MANY},
            post_nms_top_n={"training": 2 * _MANY, "testing": _MANY},
            nms_thresh=0.7,
        )
        self.heads = Heads(
            names=self.names,
            strides=strides,
            channels=channels,
            num_classes=settings.num_classes,
            box_head=settings.box_head,
            head_width=settings.head_width,
            box_loss=settings.box_loss,
            norm=settings.norm,
            masks=settings.masks,
            num_sampled=settings.num_sampled,
            max_detections=settings.max_detections,
        )

    @property
    def finest(self) -> int:
        """The stride of the finest map."""
        return self.pyramid.levels[0].stride

    def set_anchors(self, scale: float) -> None:
        """Sets the side of the anchors, in cells."""
        self.rpn.anchor_generator = Anchors(self.rpn.anchor_generator.strides, scale)

    def train(self, mode: bool = True) -> Detector:
        """Switches to training, but for an encoder that is frozen, and its batch norm in any case.

        Statistics of the few images of a batch are too noisy; the encoder's are measured before.
        """
        super().train(mode)
        for module in self.backbone.modules():
            if self.frozen or isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(
        self,
        image: Tensor,
        shapes: Sequence[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Gives losses in training, else what is found in each image.

        Args:
            image: (B, C, H, W), normalised, padded at the right and below.
            shapes: height and width of what each really shows.
            targets: of each image boxes (k, 4), labels (k,) int64 from 1, masks (k, H, W) uint8.

        Shape: of each image boxes (k, 4) in pixels of ``image``, labels (k,) int64 from 1,
            scores (k,), and masks (k, 1, 28, 28) in [0, 1].
        """
        maps = self.fpn(OrderedDict(zip(self.names, self._maps(image), strict=True)))
        images, device = ImageList(image, list(shapes)), image.device.type
        with torch.autocast(device, enabled=False):  # coordinates need float32
            whole = OrderedDict((name, each.float()) for name, each in maps.items())
            proposals, losses = self.rpn(images, whole, targets)
        found, more = self.heads(maps, proposals, list(shapes), targets)
        return found, {**losses, **more}

    def _maps(self, image: Tensor) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.backbone(image)
        enlarged: tuple[Tensor, ...] = self.pyramid(maps)
        return enlarged
