"""COCO's average precision, by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimkit.data.truth.records import Instances, Rle

_SIZES: Final = ("", "_small", "_medium", "_large")
"""Objects of any area; below 32 x 32 pixels; up to 96 x 96; above."""
_IOUS: Final = {"50": 0, "75": 5}
"""Places of 0.5 and 0.75 among the overlaps 0.5, 0.55, ..., 0.95."""


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in one image, in its own pixels.

    Args:
        boxes: left, top, right and bottom.
        labels: classes, from 0.
        scores: how sure each is.
        regions: the pixels of each; None where only boxes are told.

    Shape: boxes (k, 4), labels (k,) int64, scores (k,).
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    regions: Sequence[Rle] | None


@dataclass(frozen=True)
class Precision:
    """What COCO's measure finds.

    Args:
        metrics: ``box_ap``, the mean over overlaps from 0.5 to 0.95; ``box_ap50`` and ``box_ap75``,
            at one of them; ``box_ap_small``, ``_medium`` and ``_large`` by the area of the objects;
            and the same of masks. What nothing was asked of, such as a size that no object has, is
            left out.
        by_class: of each class that was asked for, by its number, ``box_ap``.
        curves: precision at an overlap of one half, at 101 recalls from 0 to 1, as the mean over
            classes; of boxes, and of masks where they are judged.
    """

    metrics: dict[str, float]
    by_class: dict[int, float]
    curves: dict[str, list[float]]


def precision_of(
    truth: Sequence[Instances],
    found: Sequence[Found],
    sizes: Sequence[tuple[int, int]],
    *,
    num_classes: int,
    max_detections: int,
    masks: bool,
) -> Precision:
    """Judges what was found by what is there, image by image.

    Args:
        truth: of each image.
        found: likewise.
        sizes: heights and widths.
        num_classes: how many classes there are.
        max_detections: so many of an image's count, the surest of each class.
        masks: whether masks are judged as well.
    """
    metrics: dict[str, float] = {}
    by_class: dict[int, float] = {}
    curves: dict[str, list[float]] = {}
    for kind, name in {"bbox": "box", **({"segm": "mask"} if masks else {})}.items():
        judged = as_coco(truth, sizes, num_classes, masks=kind == "segm")
        precision = _precision(judged, _results(found, kind), kind, max_detections)
        for number, size in enumerate(_SIZES):
            of_size = precision[:, :, :, number, -1]  # overlaps, recalls, classes
            metrics |= _mean(f"{name}_ap{size}", of_size)
            if not size:
                for iou, place in _IOUS.items():
                    metrics |= _mean(f"{name}_ap{iou}", of_size[place])
                curves |= _curve(f"{name} precision at an overlap of 0.5", of_size[_IOUS["50"]])
                if name == "box":
                    asked = {label: of_size[:, :, label] for label in range(num_classes)}
                    by_class = {k: float(v.mean()) for k, v in asked.items() if (v > -1).all()}
    return Precision(metrics, by_class, curves)


def _curve(name: str, values: NDArray[np.float64]) -> dict[str, list[float]]:
    """The mean over the classes that were asked for, (recalls, classes) to recalls."""
    asked = values[:, (values > -1).all(axis=0)]
    return {name: asked.mean(axis=1).round(4).tolist()} if asked.size else {}


def metric_names(*, masks: bool) -> tuple[str, ...]:
    """All metrics that `precision_of` may give, in its order; the first ranks."""
    kinds = ("box", "mask") if masks else ("box",)
    endings = ("ap", *(f"ap{iou}" for iou in _IOUS), *(f"ap{size}" for size in _SIZES[1:]))
    return tuple(f"{kind}_{ending}" for kind in kinds for ending in endings)


def _mean(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    """The mean over what was asked; COCO writes -1 where nothing was."""
    asked = values[values > -1]
    return {name: float(asked.mean())} if asked.size else {}


def _precision(
    truth: dict[str, Any], results: list[dict[str, Any]], kind: str, max_detections: int
) -> NDArray[np.float64]:
    """Gives precision by overlap, recall, class, size and number of detections."""
    # Half a second, which a command that judges nothing need not wait.
    from faster_coco_eval import COCO, COCOeval_faster  # noqa: PLC0415

    judged = COCO(truth)
    evaluation = COCOeval_faster(judged, judged.loadRes(results), kind)
    # Summaries of COCO look for a limit of 100 and write -1 where it is not among them; here the
    # last is read, whatever it is.
    evaluation.params.maxDets = [max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    precision: NDArray[np.float64] = evaluation.eval["precision"]
    return precision


def as_coco(
    truth: Sequence[Instances],
    sizes: Sequence[tuple[int, int]],
    num_classes: int,
    *,
    masks: bool,
) -> dict[str, Any]:
    """Writes truth as a COCO file would; ids begin at 1, since COCO's code takes 0 for none."""
    images = [
        {"id": number, "height": height, "width": width}
        for number, (height, width) in enumerate(sizes, start=1)
    ]
    annotations: list[dict[str, Any]] = []
    for number, each in enumerate(truth, start=1):
        for place in range(len(each)):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": int(each.labels[place]) + 1,
                "bbox": _corner_and_size(each.boxes[place]),
                "area": float(each.areas[place]),
                "iscrowd": int(each.crowd[place]),
            }
            if masks:
                assert each.regions is not None
                annotation["segmentation"] = dict(each.regions[place])
            annotations.append(annotation)
    categories = [{"id": label + 1, "name": str(label)} for label in range(num_classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _results(found: Sequence[Found], kind: str) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for number, each in enumerate(found, start=1):
        for place in range(len(each.labels)):
            if kind == "segm":
                assert each.regions is not None
                shape: dict[str, Any] = {"segmentation": dict(each.regions[place])}
            else:
                shape = {"bbox": _corner_and_size(each.boxes[place])}
            label, score = int(each.labels[place]) + 1, float(each.scores[place])
            results.append({"image_id": number, "category_id": label, "score": score, **shape})
    return results


def _corner_and_size(box: NDArray[np.float32]) -> list[float]:
    left, top, right, bottom = box.tolist()
    return [left, top, right - left, bottom - top]
