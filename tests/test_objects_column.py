"""Objects in a column of a table: held against `datasets` reading the same file."""

import json
from io import BytesIO

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from coco_files import SQUARE, opened, write_coco, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as official

from mimkit.data.intake.boxes import COLUMNS, Fields, fields_of
from mimkit.data.source import described
from mimkit.data.truth.regions import decode
from mimkit.errors import DataError

HEIGHT, WIDTH = 70, 160
"""Of images that are not kept decoded."""
NAMES = ["ant", "bee", "cow"]
BOX = datasets.Sequence(datasets.Value("float32"), length=4)
# pycocotools' own arrays under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def encoded(number, size=(HEIGHT, WIDTH)):
    file = BytesIO()
    Image.new("RGB", size[::-1], (number, 1, 2)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def one(k, number=0, **more):
    """An object that tells its image: its box begins at k."""
    return {"bbox": [float(k), float(number), 3.0, 4.0], "category": (k + number) % 3, **more}


def several(count, first=0):
    """As many objects in each image as its number, up to three."""
    return [[one(k, number) for number in range(k % 4)] for k in range(first, first + count)]


def lists(rows):
    """Structs of lists, as lists of structs."""
    keys = {key: None for row in rows for each in row for key in each}
    return [{key: [each.get(key) for each in row] for key in keys} for row in rows]


def write(path, rows, first=0, column="objects", **columns):
    images = [encoded(first + k) for k in range(len(rows))]
    pq.write_table(pa.table({"image": images, column: rows, **columns}), path)
    return path


def images_of(source):
    """The number that each image shows."""
    table = source.reader.table
    return [
        Image.open(BytesIO(table.content(int(row)))).getpixel((0, 0))[0]
        for row in (range(len(table)) if source.rows is None else source.rows)
    ]


def told(source, index):
    """The objects of an image, as datasets have them."""
    found = source.objects(index)
    sizes = found.boxes[:, 2:] - found.boxes[:, :2]
    boxes = np.concatenate([found.boxes[:, :2], sizes], axis=1).tolist()
    return boxes, [source.objects.classes[label] for label in found.labels]


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_objects_are_those_that_datasets_reads(root, saved, listed, named):
    kind = datasets.Value("string") if named else datasets.ClassLabel(names=NAMES)
    fields = {"bbox": BOX, "category": kind}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "objects": datasets.List(fields) if listed else datasets.Sequence(fields),
        }
    )
    if not listed:
        features["objects"] = {key: datasets.List(each) for key, each in fields.items()}
    made = {}
    for split, first in (("train", 0), ("test", 100)):
        rows = several(12, first)
        for each in (each for row in rows for each in row if named):
            each["category"] = NAMES[each["category"]]
        columns = {
            "image": [encoded(first + k) for k in range(12)],
            "objects": rows if listed else lists(rows),
        }
        made[split] = datasets.Dataset.from_dict(columns, features=features)
        if not saved:
            made[split].to_parquet(root / f"{split}-00000-of-00001.parquet")
    if saved:
        datasets.DatasetDict(made).save_to_disk(root)
        read = datasets.load_from_disk(str(root))
    else:
        read = datasets.load_dataset("parquet", data_dir=str(root), cache_dir=str(root / ".hub"))
    sources = opened(root)
    for source in sources:
        assert source.objects.classes == tuple(NAMES)
        expected = {}
        for row in read[source.split]:
            objects = row["objects"]
            if listed:
                objects = {key: [each[key] for each in objects] for key in fields}
            words = objects["category"]
            words = words if named else [NAMES[each] for each in words]
            expected[row["image"].getpixel((0, 0))[0]] = (objects["bbox"], words)
        assert {n: told(source, k) for k, n in enumerate(images_of(source))} == expected
        assert not source.skipped
    assert "  objects: 18 in 12 images, 3 classes, without outlines, column 'objects'" in (
        described(*sources)
    )


def test_a_share_a_part_and_images_that_cannot_be_read_keep_their_objects(root):
    rows = [[one(k)] for k in range(40)]
    images = [encoded(k) for k in range(40)]
    for k in (3, 17, 28):
        images[k] = {"bytes": images[k]["bytes"][:60], "path": None}
    table = pa.table({"image": images, "objects": rows})
    pq.write_table(table.slice(0, 15), root / "all-00000-of-00002.parquet")
    pq.write_table(table.slice(15), root / "all-00001-of-00002.parquet")
    for limit in (None, 20):
        train, test = opened(root, num_images=limit)
        for source in (train, test):
            shown = images_of(source)
            found = [source.objects(k).boxes[0, 0] for k in range(len(source))]
            assert found == shown
            assert source.objects.classes == ("0", "1", "2")  # those of all rows, used or not
        assert 0 < len(test) <= 4
        assert len(train) + len(test) == 37 if limit is None else len(train) <= 20


def test_both_splits_number_the_classes_of_training(root):
    write(root / "train.parquet", [[{"bbox": [1, 1, 2, 2], "label": "bee"}] for _ in range(3)])
    rows = [[{"bbox": [1, 1, 2, 2], "label": word}] for word in ("bee", "bees")]
    write(root / "test.parquet", rows)
    with pytest.raises(DataError, match=r"column 'objects': its categories.*'bees' is not.*'bee'"):
        opened(root)
    write(root / "test.parquet", rows[:1])
    assert opened(root)[1].objects.classes == ("bee",)


def test_numbers_of_the_test_part_are_named_as_that_part_says(root):
    for split, names in (("train", NAMES), ("test", NAMES[::-1])):
        features = {"bbox": BOX, "category": datasets.ClassLabel(names=names)}
        columns = {"image": [encoded(1)], "objects": [[one(1)]]}
        made = datasets.Features({"image": datasets.Image(), "objects": datasets.List(features)})
        datasets.Dataset.from_dict(columns, features=made).to_parquet(root / f"{split}.parquet")
    train, test = opened(root)
    assert train.objects(0).labels.tolist() == [1]
    assert test.objects(0).labels.tolist() == [1]
    assert test.objects.classes == tuple(NAMES)


def test_what_is_not_as_it_must_be_is_told_as_of_a_file(root):
    row = [
        {"bbox": [1.0, 1.0, 4.0, 4.0], "category": 0, "is_crowd": True, "area": 7.5},
        {"bbox": [170.0, 1.0, 4.0, 4.0], "category": 0},
        {"bbox": [150.0, 1.0, 40.0, 4.0], "category": 1},
        {"bbox": [1.0, 1.0, 0.0, 4.0], "category": 0},
        {"bbox": [1.0, 1.0, 4.0], "category": 0},
        {"bbox": [1.0, 1.0, 4.0, None], "category": 0},
        {"bbox": None, "category": 0},
        {"bbox": [1.0, 1.0, 4.0, 4.0], "category": -1},
        {"bbox": [1.0, 1.0, 4.0, 4.0], "category": None},
        None,
    ]
    write(root / "train.parquet", [[], row])
    write(root / "test.parquet", [[], None, row[:1]])
    train, test = opened(root)
    found = train.objects(1)
    assert found.boxes.tolist() == [[1, 1, 5, 5], [150, 1, 160, 5]]
    assert found.crowd.tolist() == [True, False]
    assert found.areas.tolist() == [7.5, 40]
    where = f"{root}, column 'objects': "
    assert {each.path.removeprefix(where): each.reason for each in train.skipped} == {
        "1 of its annotations (row 1 [1])": "lie outside of their image",
        "1 of its annotations (row 1 [2])": "reach outside of their image and are cut",
        "1 of its annotations (row 1 [3])": "have an empty box",
        "2 of its annotations (row 1 [4], row 1 [5])": (
            "have a bbox that is not four finite numbers"
        ),
        "1 of its annotations (row 1 [6])": "have neither bbox nor segmentation",
        "3 of its annotations (row 1 [7], row 1 [8], row 1 [9])": (
            "are of a category that the file does not list"
        ),
    }
    assert train.objects.usable().tolist() == [0, 1]
    assert test.objects.usable().tolist() == [0, 2]  # nothing is said of the second
    assert "1 image without annotations" in test.objects.kind


def test_lists_of_different_lengths_are_told(root):
    rows = [{"bbox": [[1.0, 1, 2, 2], [3, 3, 2, 2]], "category": ["bee"]} for _ in range(2)]
    write(root / "train.parquet", rows)
    write(root / "test.parquet", rows)
    train, _ = opened(root)
    assert train.objects.file.counts.tolist() == [1, 1]
    assert [each.reason for each in train.skipped] == [
        "are of a category that the file does not list"
    ]


def test_without_categories_all_are_objects(root):
    write(root / "all.parquet", [{"bbox": [[k, 0, 3, 3]]} for k in range(20)], column="faces")
    train, _ = opened(root)
    assert train.objects.classes == ("object",)
    assert train.objects.kind == "18 in 18 images, 1 class, without outlines, column 'faces'"


polygons = st.lists(st.floats(0, 70, width=32), min_size=6, max_size=12).filter(
    lambda each: len(each) % 2 == 0
)


@settings(max_examples=10)
@given(
    rows=st.lists(st.lists(polygons, min_size=1, max_size=3), min_size=2, max_size=5),
    runs=st.sampled_from([None, "text", "bytes"]),
    listed=st.booleans(),
)
def test_outlines_cover_the_pixels_that_pycocotools_says(tmp_path_factory, rows, runs, listed):
    folder = tmp_path_factory.mktemp("outlines")
    masks, objects = [], []
    for row in rows:
        coded = [official.merge(official.frPyObjects([each], HEIGHT, WIDTH)) for each in row]
        masks.append([official.decode(each).astype(bool) for each in coded])
        counts = [each["counts"] if runs == "bytes" else each["counts"].decode() for each in coded]
        said = [[each] for each in row]
        if runs:
            said = [{"size": [HEIGHT, WIDTH], "counts": each} for each in counts]
        objects.append([{"segmentation": each, "label": "bee"} for each in said])
    for split in ("train", "test"):
        write(folder / f"{split}.parquet", objects if listed else lists(objects))
    source = opened(folder)[0]
    for index, row in enumerate(masks):
        found = source.objects(index)
        expected = [each for each in row if each.any()]
        assert len(found) == len(expected)
        if expected:
            assert np.array_equal(decode(found.regions, HEIGHT, WIDTH), np.array(expected))
    assert source.objects.has_regions == any(each.any() for row in masks for each in row)


@pytest.mark.parametrize(
    "rows",
    [
        ["a", "b"],
        [1, 2],
        [[1, 2, 3, 4]] * 2,
        [[[1.0, 2, 3, 4]]] * 2,
        [{"bbox": [1.0, 2, 3, 4]}] * 2,
        [[{"bbox": "1 2 3 4"}]] * 2,
        [[{"text": "a"}]] * 2,
        [[{"bbox": [1.0, 2, 3, 4], "category": 0.5}]] * 2,
    ],
)
def test_a_column_that_only_looks_like_one_is_passed_over_unless_asked_for(root, rows):
    for split in ("train", "test"):
        write(root / f"{split}.parquet", rows)
    train, test = opened(root)
    assert train.objects is None
    assert test.objects is None
    assert "object" not in train.note.replace("columns objects", "")
    with pytest.raises(DataError, match=r"data\.objects = 'objects' must be a column of objects"):
        opened(root, objects="objects")


def test_columns_can_be_named_and_none_asked_for(root):
    rows = [[one(k)] for k in range(20)]
    other = [[one(k + 20)] for k in range(20)]
    write(root / "all.parquet", rows, parts=other, instances=["x"] * 20)
    assert opened(root)[0].objects.file.name == "column 'objects'"
    named, _ = opened(root, objects="parts")
    assert named.objects(0).boxes[0, 0] == images_of(named)[0] + 20
    assert opened(root, objects="none")[0].objects is None
    with pytest.raises(DataError, match=r"data\.objects = 'part' .*Did you mean 'parts'\?"):
        opened(root, objects="part")


def test_the_test_part_is_that_which_shows_objects(root):
    write(root / "train.parquet", several(4))
    write(root / "test.parquet", [[], None, []], first=50)
    write(root / "validation.parquet", several(4), first=100)
    _, test = opened(root)
    assert images_of(test) == [100, 101, 102, 103]


@pytest.mark.parametrize("other", ["corners", "fractions"])
def test_boxes_that_are_written_otherwise_are_not_read(root, other):
    rows = []
    for k in range(24):
        left, top = 5 * k, k
        rows.append([{"bbox": [left, top, left + 30.0, top + 40.0], "label": "bee"}])
        if other == "fractions":
            rows[-1][0]["bbox"] = [0.1, 0.2, 0.3, k / 100]
    for split in ("train", "test"):
        write(root / f"{split}.parquet", rows)
    for _ in range(2):  # the second time from the cache
        train, _ = opened(root)
        assert train.objects is None
        assert "the column 'objects' is not read as objects: its boxes look like" in train.note
    with pytest.raises(DataError, match=r"data\.objects: .*, but must be left, top, width, height"):
        opened(root, objects="objects")


def test_without_a_survey_sizes_are_not_known(root):
    for split in ("train", "test"):
        write(root / f"{split}.parquet", several(4))
    train, test = opened(root, survey=False)
    assert train.objects is None
    assert "data.survey=true" in train.note
    assert test.objects is not None


def test_a_column_is_read_once_and_again_when_the_file_changed(root, monkeypatch):
    for split in ("train", "test"):
        write(root / f"{split}.parquet", several(4))
    first, _ = opened(root)
    with monkeypatch.context() as patch:
        patch.setattr("mimkit.data.truth.coco_file.parse_tree", lambda *_: pytest.fail("again"))
        again, _ = opened(root)
        assert told(again, 3) == told(first, 3)
    write(root / "train.parquet", [[one(k)] for k in range(5)])
    changed, _ = opened(root)
    assert changed.objects.file.counts.tolist() == [1] * 5
    assert changed.objects.fingerprint != first.objects.fingerprint
    root.rename(root.parent / "moved")
    moved, _ = opened(root.parent / "moved")
    assert moved.objects.fingerprint == changed.objects.fingerprint


def test_a_column_says_what_a_file_says(root, tmp_path):
    """The same objects in a JSON beside the same images."""
    names = [f"{k}.png" for k in range(6)]
    paths = (f"{split}/{name}" for split in ("train", "val") for name in names)
    write_images(tmp_path / "files", *paths, size=(HEIGHT, WIDTH))
    boxes = [
        {"image_id": k % 6 + 1, "category_id": 1, "bbox": [k, 1, 3, 3], "segmentation": [SQUARE]}
        for k in range(14)
    ]
    for split in ("train", "val"):
        write_coco(tmp_path / "files" / f"{split}.json", names, boxes, size=(HEIGHT, WIDTH))
        rows = [[] for _ in names]
        for each in boxes:
            kept = {"bbox": each["bbox"], "segmentation": each["segmentation"], "label": "cat"}
            rows[each["image_id"] - 1].append(kept)
        files = [(tmp_path / "files" / split / name).read_bytes() for name in names]
        pq.write_table(pa.table({"image": files, "objects": rows}), root / f"{split}.parquet")
    for file, column in zip(opened(tmp_path / "files"), opened(root), strict=True):
        assert file.objects.classes == column.objects.classes
        for index in range(6):  # of a folder in another order
            number = int(file.reader.table.where(index)[-5])
            one_way, other = file.objects(index), column.objects(number)
            for key in ("boxes", "labels", "crowd", "areas"):
                assert np.array_equal(getattr(one_way, key), getattr(other, key))
            assert one_way.regions == other.regions
        assert [e.reason for e in file.skipped] == [e.reason for e in column.skipped]


@pytest.mark.parametrize("box", ["bbox", "bboxes", "Boxes"])
@pytest.mark.parametrize("category", ["category", "categories", "category_id", "label", "labels"])
def test_fields_have_many_names(box, category):
    kind = pa.struct({box: pa.list_(pa.list_(pa.int32())), category: pa.list_(pa.string_view())})
    assert fields_of(kind) == Fields(box, category, None, None, None, listed=False)
    kind = pa.large_list(pa.struct({box: pa.list_(pa.float64(), 4), category: pa.uint8()}))
    assert fields_of(kind) == Fields(box, category, None, None, None, listed=True)


def test_a_name_of_a_class_goes_before_its_number():
    inside = {"bbox": pa.list_(pa.float32()), "category_id": pa.int64(), "category": pa.string()}
    assert fields_of(pa.list_(pa.struct(inside))).category == "category"
    assert COLUMNS[0] == "objects"


@given(text=st.text(max_size=8), number=st.floats())
def test_any_metadata_is_no_reason_to_fail(tmp_path_factory, text, number):
    from mimkit.data.intake.columns import names_in  # noqa: PLC0415

    for odd in (text, number, [text], {"_type": text, "feature": number}, [[]], {"label": [text]}):
        assert names_in(json.loads(json.dumps({"objects": odd})), "objects", "label") is None
