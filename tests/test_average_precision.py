"""COCO's average precision: held against pycocotools on the same predictions."""

import contextlib
import copy
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as official_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mimkit.data.truth.records import Instances
from mimkit.data.truth.regions import encode
from mimkit.evaluate.detection.average_precision import (
    Found,
    as_coco,
    metric_names,
    precision_of,
)

SIDE = 130  # large enough for objects of all three sizes
# pycocotools' own arrays under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def boxes_of(rng, count):
    sides = rng.choice([6, 20, 40, 70, 110], (count, 2)) * rng.uniform(0.7, 1.1, (count, 2))
    corner = rng.uniform(0, SIDE - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def regions_of(rng, boxes):
    rows, cols = np.mgrid[:SIDE, :SIDE]
    masks = [
        (rows >= top) & (rows < bottom) & (cols >= left) & (cols < right) & (rng.random() < 2)
        for left, top, right, bottom in boxes
    ]
    return tuple(encode(np.array(masks).reshape(-1, SIDE, SIDE)))


def scene(rng, *, most=6, num_classes=3):
    """Truth of an image, and predictions that are some of it moved, and some invented."""
    count = int(rng.integers(0, most + 1))
    boxes = boxes_of(rng, count)
    truth = Instances(
        boxes=boxes,
        labels=rng.integers(0, num_classes, count),
        crowd=rng.random(count) < 0.15,
        areas=((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).astype(np.float32),
        regions=regions_of(rng, boxes),
    )
    again = np.flatnonzero(rng.random(count) < 0.8)
    again = np.concatenate([again, again[: len(again) // 2]])  # some twice
    moved = boxes[again] + rng.normal(0, 2, (len(again), 4)).astype(np.float32)
    moved = np.concatenate([moved, boxes_of(rng, int(rng.integers(0, most)))]).clip(0, SIDE)
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    labels = np.concatenate(
        [truth.labels[again], rng.integers(0, num_classes, len(moved) - len(again))]
    )
    scores = rng.choice([0.1, 0.5, 0.5, 0.9], len(moved)) + rng.random(len(moved)) * 0.09
    found = Found(moved, labels, scores.astype(np.float32), regions_of(rng, moved))
    return truth, found


def official(truth, found, sizes, *, num_classes, kind, max_detections):
    """pycocotools' precision, and its summary, which is right for a limit of 100 alone."""
    results = [
        {
            "image_id": number,
            "category_id": int(each.labels[k]) + 1,
            "score": float(each.scores[k]),
            **(
                {"segmentation": dict(each.regions[k])}
                if kind == "segm"
                else {
                    "bbox": [
                        *map(float, each.boxes[k, :2]),
                        *map(float, np.float64(each.boxes[k, 2:]) - np.float64(each.boxes[k, :2])),
                    ]
                }
            ),
        }
        for number, each in enumerate(found, start=1)
        for k in range(len(each.labels))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        judged = COCO()
        judged.dataset = copy.deepcopy(as_coco(truth, sizes, num_classes, masks=True))
        judged.createIndex()
        evaluation = COCOeval(judged, judged.loadRes(results), kind)
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    last = evaluation.params.maxDets.index(max_detections)
    return evaluation.eval["precision"][..., last], evaluation.stats


def compared(truth, found, *, num_classes=3, max_detections=100):
    sizes = [(SIDE, SIDE)] * len(truth)
    whole = precision_of(
        truth,
        found,
        sizes,
        num_classes=num_classes,
        max_detections=max_detections,
        masks=True,
    )
    ours = whole.metrics
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        precision, stats = official(
            truth, found, sizes, num_classes=num_classes, kind=kind, max_detections=max_detections
        )
        expected = {}
        for number, size in enumerate(("", "_small", "_medium", "_large")):
            for iou, place in {"": slice(None), "50": 0, "75": 5}.items():
                if not size or not iou:
                    asked = precision[place, :, :, number]
                    asked = asked[asked > -1]
                    if asked.size:
                        expected[f"{name}_ap{iou}{size}"] = asked.mean()
        at_half, asked = precision[0, :, :, 0], (precision[0, :, :, 0] > -1).all(axis=0)
        if asked.any():
            curve = whole.curves[f"{name} precision at an overlap of 0.5"]
            np.testing.assert_allclose(curve, at_half[:, asked].mean(axis=1), atol=1e-4)
        if kind == "bbox":
            each = {k: precision[:, :, k, 0].mean() for k in np.flatnonzero(asked)}
            assert whole.by_class == pytest.approx(each, abs=1e-12)
        mine = {key: value for key, value in ours.items() if key.startswith(name)}
        assert mine.keys() == expected.keys()
        for key, value in expected.items():
            assert mine[key] == pytest.approx(value, abs=1e-12), key
        if max_detections == 100:
            names = [f"{name}_{ending}" for ending in ("ap", "ap50", "ap75")]
            names += [f"{name}_ap_{size}" for size in ("small", "medium", "large")]
            for key, value in zip(names, stats[:6], strict=True):
                assert ours.get(key, -1) == pytest.approx(value, abs=1e-12), key
    return ours


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 5), num_classes=st.integers(1, 4))
def test_it_is_pycocotools_value_on_random_predictions(seed, images, num_classes):
    rng = np.random.default_rng(seed)
    scenes = [scene(rng, num_classes=num_classes) for _ in range(images)]
    scenes = [each for each in scenes if len(each[1].labels)]  # pycocotools cannot take none
    if scenes:
        compared(*map(list, zip(*scenes, strict=True)), num_classes=num_classes)


@pytest.mark.parametrize("max_detections", [1, 3, 50, 300])
def test_unusual_limits_of_detections_give_no_minus_one(max_detections):
    rng = np.random.default_rng(3)
    truth, found = map(list, zip(*(scene(rng, most=30) for _ in range(4)), strict=True))
    ours = compared(truth, found, max_detections=max_detections)
    assert all(value >= 0 for value in ours.values())
    assert set(ours) == set(metric_names(masks=True))
    # What COCO's summary says of the same: the trap.
    _, stats = official(
        truth,
        found,
        [(SIDE, SIDE)] * 4,
        num_classes=3,
        kind="bbox",
        max_detections=max_detections,
    )
    assert stats[0] == -1


def test_more_detections_can_only_help_where_many_objects_are():
    rng = np.random.default_rng(0)
    boxes = boxes_of(rng, 150)
    count = len(boxes)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    truth = Instances(boxes, np.zeros(count, int), np.zeros(count, bool), areas, None)
    found = Found(boxes, np.zeros(count, int), np.linspace(1, 0.5, count, dtype=np.float32), None)
    sizes, options = [(SIDE, SIDE)], {"num_classes": 1, "masks": False}
    few = precision_of([truth], [found], sizes, max_detections=100, **options).metrics
    all_ = precision_of([truth], [found], sizes, max_detections=200, **options).metrics
    assert few["box_ap"] == pytest.approx(2 / 3, abs=0.01)  # precise up to a recall of 100 / 150
    assert all_["box_ap"] == 1


def test_sizes_that_no_object_has_are_left_out():
    box = np.array([[10, 10, 20, 20]], dtype=np.float32)
    truth = Instances(box, np.zeros(1, int), np.zeros(1, bool), np.array([100.0]), None)
    found = Found(box, np.zeros(1, int), np.ones(1, np.float32), None)
    metrics = precision_of(
        [truth], [found], [(SIDE, SIDE)], num_classes=2, max_detections=100, masks=False
    ).metrics
    assert metrics == {"box_ap": 1, "box_ap50": 1, "box_ap75": 1, "box_ap_small": 1}
    assert next(iter(metrics)) == metric_names(masks=False)[0] == "box_ap"


def test_nothing_found_is_zero():
    truth, found = scene(np.random.default_rng(1))
    nothing = Found(found.boxes[:0], found.labels[:0], found.scores[:0], [])
    metrics = precision_of(
        [truth], [nothing], [(SIDE, SIDE)], num_classes=3, max_detections=100, masks=True
    ).metrics
    assert set(metrics.values()) == {0}


def test_a_crowd_is_neither_missed_nor_wrong():
    boxes = np.array([[10, 10, 50, 50], [60, 60, 110, 110]], dtype=np.float32)
    crowd = np.array([False, True])
    truth = Instances(boxes, np.zeros(2, int), crowd, np.array([1600.0, 2500.0]), None)
    found = Found(
        np.array([[10, 10, 50, 50], [61, 61, 80, 80], [80, 80, 99, 99]], dtype=np.float32),
        np.zeros(3, int),
        np.array([0.5, 0.9, 0.8], dtype=np.float32),
        None,
    )
    metrics = precision_of(
        [truth], [found], [(SIDE, SIDE)], num_classes=1, max_detections=100, masks=False
    ).metrics
    assert metrics["box_ap"] == 1


def test_the_reference_decodes_our_regions():
    masks = np.random.default_rng(0).random((3, 9, 7)) < 0.5
    assert np.array_equal(
        np.stack([official_mask.decode(dict(one)) for one in encode(masks)]), masks
    )
