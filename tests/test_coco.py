"""Reading COCO's JSON: held against pycocotools, and what is not as it must be is counted."""

import json

import numpy as np
import pytest
from coco_files import SQUARE, annotation, coco
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as official
from pycocotools.coco import COCO

from mimkit.data.truth.coco import NotCocoError, looks_like_coco, parse
from mimkit.data.truth.coco_file import open_coco
from mimkit.data.truth.regions import decode, encode

HEIGHT, WIDTH = 12, 16
# pycocotools' own arrays under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def parsed(tmp_path, annotations, **options):
    file = tmp_path / "objects.json"
    file.write_text(json.dumps(coco(["a.png", "b.png"], annotations, **options)))
    return parse(file)


def kept(found):
    return dict(zip(["a.png", "b.png"], np.diff(found.starts).tolist(), strict=True))


def problems(found):
    return {each.reason: each.path.partition(": ")[2] for each in found.skipped}


numbers = st.integers(-8, 24).map(float) | st.floats(-8, 24, width=32)
corners = st.lists(numbers, min_size=6, max_size=16).filter(lambda each: len(each) % 2 == 0)


@settings(max_examples=60)
@given(polygons=st.lists(corners, min_size=1, max_size=3))
def test_polygons_cover_the_pixels_that_pycocotools_says(tmp_path_factory, polygons):
    folder = tmp_path_factory.mktemp("polygons")
    found = parsed(folder, [annotation(bbox=(0, 0, WIDTH, HEIGHT), segmentation=polygons)])
    expected = official.decode(official.merge(official.frPyObjects(polygons, HEIGHT, WIDTH)))
    if not expected.any():
        assert problems(found) == {"have an outline around nothing": "1 of its annotations (1)"}
        return
    region = {"size": [HEIGHT, WIDTH], "counts": found.regions[0]}
    assert np.array_equal(decode([region], HEIGHT, WIDTH)[0], expected.astype(bool))
    assert found.areas[0] == expected.sum()


@settings(max_examples=40)
@given(
    mask=st.lists(st.booleans(), min_size=HEIGHT * WIDTH, max_size=HEIGHT * WIDTH).filter(any),
    compressed=st.booleans(),
)
def test_runs_are_read_compressed_or_not(tmp_path_factory, mask, compressed):
    pixels = np.array(mask).reshape(WIDTH, HEIGHT).T
    region = official.encode(np.asfortranarray(pixels.astype(np.uint8)))
    if compressed:
        written = {"size": [HEIGHT, WIDTH], "counts": region["counts"].decode()}
    else:
        steps = np.flatnonzero(np.diff(np.array([0, *mask, 0]))) if any(mask) else []
        runs = np.diff(np.concatenate([[0], steps, [HEIGHT * WIDTH]])).tolist()
        written = {"size": [HEIGHT, WIDTH], "counts": [int(run) for run in runs]}
    one = {"image_id": 1, "category_id": 1, "segmentation": written}
    found = parsed(tmp_path_factory.mktemp("runs"), [one])
    assert np.array_equal(
        decode([{"size": [HEIGHT, WIDTH], "counts": found.regions[0]}], HEIGHT, WIDTH)[0], pixels
    )
    left, top, wide, high = official.toBbox(region)
    assert found.boxes[0].tolist() == [left, top, left + wide, top + high]


def test_masks_are_compressed_as_pycocotools_does():
    masks = np.random.default_rng(0).random((5, HEIGHT, WIDTH)) < 0.3
    columns = np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8))
    assert encode(masks) == official.encode(columns)
    assert np.array_equal(decode(encode(masks), HEIGHT, WIDTH), masks)
    assert encode(masks[:0]) == []
    assert decode([], 3, 4).shape == (0, 3, 4)


def test_objects_are_those_that_pycocotools_reads(tmp_path):
    given_objects = [
        annotation(image=2, category=2, bbox=(2, 3, 4, 5), segmentation=[SQUARE], area=7.5),
        annotation(image=1, category=1, bbox=(0, 0, 3, 3), segmentation=[SQUARE], iscrowd=1),
        annotation(image=2, category=1, bbox=(5.5, 2.25, 4, 5), segmentation=[SQUARE]),
    ]
    found = parsed(tmp_path, given_objects, categories=("cat", "dog"))
    file = COCO(str(tmp_path / "objects.json"))
    for number, image in enumerate((1, 2)):
        official_objects = file.loadAnns(file.getAnnIds(imgIds=[image]))
        where = slice(*found.starts[number : number + 2])
        boxes = found.boxes[where]
        corner_and_size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        assert corner_and_size.tolist() == [one["bbox"] for one in official_objects]
        assert (found.labels[where] + 1).tolist() == [o["category_id"] for o in official_objects]
        assert found.crowd[where].tolist() == [bool(o.get("iscrowd")) for o in official_objects]
    assert found.classes == ("cat", "dog")
    assert found.areas.tolist() == [16, 7.5, 16]  # as written, else the pixels of the outline
    assert not found.skipped


def test_classes_are_numbered_by_their_ids_and_may_leave_gaps(tmp_path):
    file = tmp_path / "objects.json"
    tree = coco(["a.png"], [annotation(category=90), annotation(category=7)])
    tree["categories"] = [{"id": 90, "name": "zebra"}, {"id": 7, "name": "apple"}]
    file.write_text(json.dumps(tree))
    found = parse(file)
    assert found.classes == ("apple", "zebra")
    assert found.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (annotation(image=9), "are of an image that the file does not list"),
        (annotation(image=[1]), "are of an image that the file does not list"),
        (annotation(category=5), "are of a category that the file does not list"),
        (annotation(bbox=(20, 2, 3, 3)), "lie outside of their image"),
        (annotation(bbox=(-9, 2, 3, 3)), "lie outside of their image"),
        (annotation(bbox=(2, 2, 0, 3)), "have an empty box"),
        (annotation(bbox=(2, 2, -1, 3)), "have an empty box"),
        (annotation(bbox=(2, 2, 1)), "have a bbox that is not four finite numbers"),
        (annotation(bbox=(2, 2, 1, None)), "have a bbox that is not four finite numbers"),
        (annotation(bbox=(2, 2, 1, float("nan"))), "have a bbox that is not four finite numbers"),
        ({"image_id": 1, "category_id": 1}, "have neither bbox nor segmentation"),
        (annotation(segmentation=[[1, 1, 2, 2]]), "have an outline of fewer than three corners"),
        (annotation(segmentation=[[1, 1, 2, 2, 3]]), "have an outline that cannot be read"),
        (annotation(segmentation=[["a"] * 6]), "have an outline that cannot be read"),
        (annotation(segmentation=[[1, 1, 2, 2, 3, 1e999]]), "have an outline that cannot be read"),
        (annotation(segmentation=7), "have an outline that cannot be read"),
        (
            annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": "zzzz"}),
            "have an outline that cannot be read",
        ),
        (
            annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": [3, 4]}),
            "have an outline that cannot be read",
        ),
        (
            annotation(segmentation={"size": [3, 4], "counts": [5, 7]}),
            "have an outline made for another size of image",
        ),
        (
            annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}),
            "have an outline around nothing",
        ),
        (7, "are of an image that the file does not list"),
    ],
)
def test_what_cannot_be_used_is_left_out_counted_and_named(tmp_path, broken, reason):
    whole = annotation(segmentation=[SQUARE])
    file = tmp_path / "objects.json"
    tree = coco(["a.png", "b.png"], [whole, whole])
    tree["annotations"].append({"id": "x3", **broken} if isinstance(broken, dict) else broken)
    file.write_text(json.dumps(tree))
    found = parse(file)
    assert kept(found) == {"a.png": 2, "b.png": 0}
    name = "x3" if isinstance(broken, dict) else "7"
    assert problems(found) == {reason: f"1 of its annotations ({name})"}
    assert len(found.regions) == 2


def test_boxes_that_reach_outside_are_cut_and_counted(tmp_path):
    inside = annotation(bbox=(0, 0, WIDTH + 0.4, HEIGHT))  # files round
    found = parsed(tmp_path, [annotation(bbox=(-3, 2, 6, 30)), inside])
    assert found.boxes.tolist() == [[0, 2, 3, HEIGHT], [0, 0, WIDTH, HEIGHT]]
    assert problems(found) == {
        "reach outside of their image and are cut": "1 of its annotations (1)"
    }


def test_far_corners_of_an_outline_cost_nothing(tmp_path):
    far = [0.0, 0.0, 1e12, 0.0, 1e12, 1e12, 0.0, 1e12]
    found = parsed(tmp_path, [annotation(bbox=(0, 0, WIDTH, HEIGHT), segmentation=[far])])
    region = {"size": [HEIGHT, WIDTH], "counts": found.regions[0]}
    assert decode([region], HEIGHT, WIDTH).all()


def test_outlines_of_some_objects_alone_are_not_used_and_that_is_told(tmp_path):
    found = parsed(tmp_path, [annotation(segmentation=[SQUARE]), annotation(segmentation=[])])
    assert found.regions is None
    assert found.note == "outlines are not used: only 1 of 2 objects have one"


def test_images_that_are_listed_twice_or_without_size_are_counted(tmp_path):
    tree = coco(["a.png", "b.png", "c.png"])
    tree["images"][1]["id"] = 1
    del tree["images"][2]["width"]
    file = tmp_path / "objects.json"
    file.write_text(json.dumps(tree))
    found = parse(file)
    assert found.files == ("a.png",)
    assert problems(found) == {
        "are listed twice; the first counts": "1 of its images (b.png)",
        "have no height or no width": "1 of its images (c.png)",
        "are of an image that the file does not list": "2 of its annotations (2, 3)",
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "it is no JSON"),
        ("[]", "its outermost value is no object"),
        ('{"images": [], "annotations": []}', "it has no list 'categories'"),
        (
            json.dumps({"images": [], "categories": [], "annotations": [{"caption": "a cat"}]}),
            "none of its annotations has a 'bbox' or a 'segmentation'",
        ),
    ],
)
def test_other_files_are_told_from_coco(tmp_path, text, why):
    file = tmp_path / "objects.json"
    file.write_text(text)
    with pytest.raises(NotCocoError, match=why):
        parse(file)
    for _ in range(2):  # the second time from the cache
        with pytest.raises(NotCocoError, match=why):
            open_coco(file, tmp_path / "cache")


def test_a_look_at_the_beginning_passes_over_what_is_no_coco_file(tmp_path):
    file = tmp_path / "objects.json"
    file.write_text("\ufeff" + json.dumps(coco(["a.png"])))
    assert looks_like_coco(file)
    assert parse(file).files == ("a.png",)
    file.write_text(json.dumps({"name": "a package", "version": 3}))
    assert not looks_like_coco(file)
    assert not looks_like_coco(tmp_path / "nowhere.json")


def test_a_file_is_parsed_once_and_again_when_it_changed(tmp_path, monkeypatch):
    file = tmp_path / "objects.json"
    file.write_text(json.dumps(coco(["a.png", "b.png"])))
    first = open_coco(file, tmp_path / "cache")
    assert first.counts.tolist() == [1, 1]
    with monkeypatch.context() as patch:
        patch.setattr("mimkit.data.truth.coco_file.parse", lambda _: pytest.fail("parsed again"))
        again = open_coco(file, tmp_path / "cache")
        assert again.instances(1).boxes.tolist() == [[1, 1, 5, 5]]
        assert decode(again.instances(1).regions, HEIGHT, WIDTH).sum() == 16
    file.write_text(json.dumps(coco(["a.png", "b.png", "c.png"])))
    changed = open_coco(file, tmp_path / "cache")
    assert changed.counts.tolist() == [1, 1, 1]
    assert changed.fingerprint != first.fingerprint
