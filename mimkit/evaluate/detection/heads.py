"""What is said of each proposal: class, box and mask."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    fastrcnn_loss,
    maskrcnn_inference,
)
from torchvision.ops import generalized_box_iou_loss, roi_align
from torchvision.ops.poolers import LevelMapper

from mimkit.evaluate.conv_norm import Norm, make_norm

BoxLoss = Literal["smooth_l1", "giou"]
BoxHead = Literal["mlp", "conv"]
_BOX_CELLS: Final = 7
_MASK_CELLS: Final = 14
_GIOU_WEIGHT: Final = 10.0
_CANONICAL_SIDE, _CANONICAL_LEVEL = 224, 4
"""An object of 224 px is looked up in the map of stride 2 ** 4 (FPN, arXiv 1612.03144, eq. 1)."""

Target = dict[str, Tensor]


class Pooling(nn.Module):
    """RoIAlign on the map that suits each box.

    torchvision's ``MultiScaleRoIAlign`` guesses strides, to powers of two, and looks half a cell
    beside (``aligned=False``).

    Args:
        names: of the maps.
        strides: of the maps.
        cells: of what is cut out, a side.
    """

    def __init__(self, names: Sequence[str], strides: Sequence[int], cells: int) -> None:
        super().__init__()
        self.scales = {name: 1 / stride for name, stride in zip(names, strides, strict=True)}
        self.cells = cells
        first = round(math.log2(strides[0]))
        last = first + len(strides) - 1
        self.levels = LevelMapper(first, last, _CANONICAL_SIDE, _CANONICAL_LEVEL)

    def forward(
        self, maps: Mapping[str, Tensor], boxes: list[Tensor], _: list[tuple[int, int]]
    ) -> Tensor:
        """Cuts boxes out.

        Shape: boxes of each image (k, 4) in pixels; (all k, C, cells, cells).
        """
        images = [each.new_full((len(each), 1), number) for number, each in enumerate(boxes)]
        rois = torch.cat([torch.cat(images), torch.cat(boxes)], dim=1)
        levels = self.levels(boxes)
        where = [torch.where(levels == number)[0] for number in range(len(self.scales))]
        pooled = [
            roi_align(maps[name], rois[here], self.cells, scale, 2, aligned=True)
            for here, (name, scale) in zip(where, self.scales.items(), strict=True)
        ]
        found: Tensor = torch.cat(pooled)[torch.cat(where).argsort()]
        return found


class Heads(RoIHeads):  # type: ignore[misc]  # torchvision is not typed
    """torchvision's heads, with a choice of the box's loss, in float32 where coordinates are made.

    Args:
        names: of the maps.
        strides: of the maps.
        channels: of every map.
        num_classes: of objects; one more stands for none.
        box_head: "mlp": two linear layers; "conv": four convolutions with norm, and one linear.
        head_width: of the linear layers.
        box_loss: "smooth_l1" of offsets, as in torchvision; "giou" of boxes, weight 10.
        norm: of convolutions.
        masks: whether masks are predicted.
        num_sampled: proposals of an image that are learned from, a quarter of them objects.
        max_detections: of an image.

    Source: Mask R-CNN, arXiv 1703.06870; generalised IoU, arXiv 1902.09630, its loss over all
        sampled proposals and not only those of objects, as smooth L1 is.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        strides: Sequence[int],
        channels: int,
        num_classes: int,
        box_head: BoxHead,
        head_width: int,
        box_loss: BoxLoss,
        norm: Norm,
        masks: bool,
        num_sampled: int,
        max_detections: int,
    ) -> None:
        norm_layer: Any = partial(make_norm, norm)
        of_masks: dict[str, nn.Module] = {}
        if masks:
            predictor = MaskRCNNPredictor(channels, channels, num_classes + 1)
            # torchvision's start values grow as classes get fewer; with one it is sure of nonsense.
            nn.init.normal_(predictor.mask_fcn_logits.weight, std=1e-3)
            of_masks = {
                "mask_roi_pool": Pooling(names, strides, _MASK_CELLS),
                "mask_head": MaskRCNNHeads(channels, [channels] * 4, 1, norm_layer=norm_layer),
                "mask_predictor": predictor,
            }
        super().__init__(
            box_roi_pool=Pooling(names, strides, _BOX_CELLS),
            box_head=TwoMLPHead(channels * _BOX_CELLS**2, head_width)
            if box_head == "mlp"
            else FastRCNNConvFCHead(
                (channels, _BOX_CELLS, _BOX_CELLS),
                [channels] * 4,
                [head_width],
                norm_layer=norm_layer,
            ),
            box_predictor=FastRCNNPredictor(head_width, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=num_sampled,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=max_detections,
            **of_masks,
        )
        self.box_loss = box_loss

    def forward(
        self,
        features: OrderedDict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Gives losses in training, else what is found in each image.

        Shape: of each image boxes (k, 4), labels (k,) int64 from 1, scores (k,), and masks
            (k, 1, 28, 28) in [0, 1], of what lies in the box.
        """
        if not self.training:
            return self._found(features, proposals, image_shapes), {}
        assert targets is not None
        proposals, matched, labels, offsets = self.select_training_samples(proposals, targets)
        scores, found = self._boxes(features, proposals, image_shapes)
        classifier, box = fastrcnn_loss(scores, found, labels, offsets)
        if self.box_loss == "giou":
            box = self._giou(found, proposals, torch.cat(labels), torch.cat(offsets))
        losses = {"classifier": classifier, "box": box}
        if self.has_mask():
            objects = [torch.where(each > 0)[0] for each in labels]
            inside = [each[of] for each, of in zip(proposals, objects, strict=True)]
            logits = self._masks(features, inside, image_shapes)
            which = [each[of] for each, of in zip(matched, objects, strict=True)]
            kinds = torch.cat([each[of] for each, of in zip(labels, objects, strict=True)])
            masks = [target["masks"] for target in targets]
            losses["mask"] = mask_loss(logits, inside, masks, which, kinds)
        return [], losses

    def _found(
        self,
        features: OrderedDict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        given = self._boxes(features, proposals, image_shapes)
        boxes, scores, labels = self.postprocess_detections(*given, proposals, image_shapes)
        found = [
            {"boxes": box, "scores": score, "labels": label}
            for box, score, label in zip(boxes, scores, labels, strict=True)
        ]
        if self.has_mask():
            logits = self._masks(features, boxes, image_shapes)
            for each, masks in zip(found, maskrcnn_inference(logits, labels), strict=True):
                each["masks"] = masks
        return found

    def _boxes(
        self,
        features: OrderedDict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[Tensor, Tensor]:
        pooled = self.box_roi_pool(features, proposals, image_shapes)
        scores, offsets = self.box_predictor(self.box_head(pooled))
        return scores.float(), offsets.float()  # coordinates need more than bfloat16's 8 bits

    def _masks(
        self,
        features: OrderedDict[str, Tensor],
        boxes: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> Tensor:
        pooled = self.mask_roi_pool(features, boxes, image_shapes)
        logits: Tensor = self.mask_predictor(self.mask_head(pooled))
        return logits.float()

    def _giou(
        self, offsets: Tensor, proposals: list[Tensor], labels: Tensor, wanted: Tensor
    ) -> Tensor:
        """The loss of the boxes of objects, over the number of all sampled proposals."""
        objects = torch.where(labels > 0)[0]
        of_class = offsets.reshape(len(labels), -1, 4)[objects, labels[objects]]
        where = torch.cat(proposals)[objects]
        boxes = self.box_coder.decode_single(of_class, where)
        truth = self.box_coder.decode_single(wanted[objects], where)
        loss: Tensor = generalized_box_iou_loss(boxes, truth, reduction="sum")
        return _GIOU_WEIGHT * loss / len(labels)


def mask_loss(
    logits: Tensor,
    boxes: Sequence[Tensor],
    masks: Sequence[Tensor],
    which: Sequence[Tensor],
    labels: Tensor,
) -> Tensor:
    """Compares what is said of boxes with what they show; the mean binary cross-entropy.

    Args:
        logits: of every class, for n boxes of all images.
        boxes: of each image.
        masks: of each image's objects.
        which: of each image, the object that a box is of.
        labels: the class of each box.

    Shape: logits (n, classes, M, M), boxes (k, 4), masks (o, H, W), which (k,), labels (n,).
    """
    cells = logits.shape[-1]
    shown = [mask_in_boxes(*each, cells) for each in zip(masks, boxes, which, strict=True)]
    said = logits[torch.arange(len(labels), device=labels.device), labels]
    if not len(labels):
        return logits.sum() * 0
    return F.binary_cross_entropy_with_logits(said, torch.cat(shown))


def mask_in_boxes(masks: Tensor, boxes: Tensor, which: Tensor, cells: int) -> Tensor:
    """Cuts masks out of boxes and resizes them.

    torchvision's own loss takes what lies half a pixel beside (``aligned=False``), which costs
    small objects that are put back in their place.

    Shape: masks (o, H, W), boxes (k, 4), which (k,) int64; (k, cells, cells) float32.
    """
    rois = torch.cat([which[:, None].to(boxes), boxes], dim=1)
    found: Tensor = roi_align(masks[:, None].to(rois), rois, cells, 1.0, aligned=True)
    return found[:, 0]
