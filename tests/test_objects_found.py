"""Where the objects of images are found, how they are joined with these, and what is told."""

import json
import pickle

import numpy as np
import pytest
from coco_files import annotation, coco, opened, write_coco, write_images

from mimkit.data.intake.walk import walk
from mimkit.data.objects import OBJECTS, annotate
from mimkit.data.opening import find, open_source
from mimkit.data.source import described
from mimkit.data.truth.objects import match
from mimkit.data.truth.regions import decode
from mimkit.errors import DataError
from mimkit.recipe.sections import DataSection

NAMES = ("a.png", "b.png", "c.png")
LARGE = (70, 80)
"""Height and width of images that are not kept decoded, so that their paths can be asked."""


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "set"


def images(root, train="train", test="val", size=(12, 16)):
    paths = (f"{folder}/{name}" for folder in (train, test) for name in NAMES)
    write_images(root, *paths, size=size)
    return root


def test_one_file_beside_each_folder(root):
    images(root)
    write_coco(root / "train.json", NAMES)
    write_coco(root / "val.json", NAMES[:2])
    train, test = opened(root)
    assert described(train, test)[1:] == [
        "  objects: 3 in 3 images, 1 class, with outlines, train.json",
        "  objects: 2 in 2 images, 1 class, with outlines, 1 image without annotations, val.json",
    ]
    assert train.objects.usable().tolist() == [0, 1, 2]
    assert len(test.objects.usable()) == 2
    assert not train.skipped
    assert not test.skipped


@pytest.mark.parametrize(
    ("folders", "files", "written"),
    [
        (("train", "val"), ("train.json", "val.json"), "{name}"),
        (("train", "valid"), ("train/_annotations.coco.json", "valid/_annotations.coco.json"), ""),
        (
            ("train2017", "val2017"),
            ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
            "",
        ),
        (("images/train", "images/val"), ("train.json", "val.json"), "{folder}/{name}"),
        (("images/train", "images/val"), ("labels/train.json", "labels/val.json"), "./{name}"),
        (("train", "val"), ("train.json", "val.json"), "C:\\data\\{name}"),
        (("train", "val"), ("all.json", "all.json"), "{folder}/{name}"),
    ],
)
def test_layouts_that_people_bring(root, folders, files, written):
    images(root, *folders, size=LARGE)
    trees = {}
    for folder, file in zip(folders, files, strict=True):
        names = [(written or "{name}").format(folder=folder, name=name) for name in NAMES]
        trees.setdefault(file, []).extend(names)
    for file, names in trees.items():
        boxes = [annotation(image=k, bbox=(k, 1, 3, 3)) for k in range(1, len(names) + 1)]
        write_coco(root / file, names, boxes, size=LARGE)
    (root / "annotations").mkdir(exist_ok=True)
    captions = {"images": [], "categories": [], "annotations": [{"caption": "x"}]}
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps(captions))
    for split, source in zip(("train", "test"), opened(root), strict=True):
        assert source.objects is not None, split
        assert source.objects.file.name == files[split == "test"].rpartition("/")[2]
        assert source.objects.usable().tolist() == [0, 1, 2]
        offset = 3 if split == "test" and files[0] == files[1] else 0
        for index in range(3):
            name = source.reader.table.where(index).rpartition("/")[2]
            wanted = NAMES.index(name) + 1 + offset
            assert source.objects(index).boxes.tolist() == [[wanted, 1, wanted + 3, 4]]


def test_one_file_of_a_pool_serves_both_splits(root):
    names = [f"{k}.png" for k in range(20)]
    write_images(root, *names)
    write_coco(root / "labels.json", names)
    train, test = opened(root)
    assert (len(train.objects.usable()), len(test.objects.usable())) == (18, 2)
    assert not any("not there" in each.reason for each in train.skipped + test.skipped)


def test_the_test_part_is_that_which_is_annotated(root):
    images(root, "train2017", "val2017")
    write_images(root, "test2017/x.png")
    write_coco(root / "annotations/instances_train2017.json", NAMES)
    write_coco(root / "annotations/instances_val2017.json", NAMES)
    info = root / "annotations/image_info_test2017.json"
    info.write_text(json.dumps({"images": [], "categories": []}))
    _, test = opened(root)
    assert len(test) == 3
    assert test.objects is not None


def test_a_folder_of_a_file_for_each_image_is_not_looked_into(root):
    names = [f"{k}.png" for k in range(30)]
    write_images(root, *names)
    for name in names:
        write_coco(root / f"{name}.json", [name])
    train, test = opened(root)
    assert train.objects is None
    assert test.objects is None


def test_what_is_no_coco_file_is_passed_over_and_listed(root):
    images(root)
    (root / "train.json").write_text('{"info": 1}')
    train, _ = opened(root)
    assert train.objects is None
    assert [each.path for each in train.skipped] == [str(root / "train.json")]


def test_a_file_can_be_named_and_none_asked_for(root, tmp_path):
    images(root)
    write_coco(root / "train.json", NAMES)
    other = write_coco(tmp_path / "other.json", NAMES, categories=("dog",))
    assert opened(root, objects="none")[0].objects is None
    assert opened(root, objects=str(other))[0].objects.classes == ("dog",)
    assert opened(root, objects="train.json")[0].objects.classes == ("cat",)
    # Both splits have images of these names.
    assert opened(root, objects="other.json")[1].objects is not None


def test_a_pattern_names_one_for_each_split(root):
    images(root)
    write_coco(root / "x/train_1.json", [f"train/{name}" for name in NAMES])
    write_coco(root / "x/val_1.json", [f"val/{name}" for name in NAMES[:1]])
    train, test = opened(root, objects="x/*_1.json")
    assert (len(train.objects.usable()), len(test.objects.usable())) == (3, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "data.objects: must be a JSON of objects as COCO has them.*'mine.json' is no file"),
        ("[]", "data.objects: 'mine.json' must be a JSON of objects.*its outermost value"),
        (json.dumps(coco(["z.png"])), "data.objects: 'mine.json' must name images of these data"),
        (json.dumps(coco([])), "data.objects: 'mine.json' must name images of these data"),
    ],
)
def test_a_named_file_that_does_not_fit_is_one_message(root, tmp_path, text, message):
    images(root)
    if text is not None:
        (tmp_path / "mine.json").write_text(text)
    with pytest.raises(DataError, match=message):
        opened(root, objects="mine.json")


def test_a_class_of_the_test_file_alone_is_refused_by_name(root):
    images(root)
    write_coco(root / "train.json", NAMES, categories=("cat", "dog"))
    write_coco(root / "val.json", NAMES, categories=("cat", "dogs"))
    with pytest.raises(DataError, match=r"val.json: its categories must.*'dogs' is not.*'dog'"):
        opened(root)


def test_both_splits_number_the_classes_alike(root):
    images(root)
    write_coco(root / "train.json", NAMES, categories=("cat", "dog"))
    boxes = [annotation(category=1), annotation(category=2)]
    write_coco(root / "val.json", ["a.png"], boxes, categories=("dog", "cat"))
    train, test = opened(root)
    assert train.objects.classes == test.objects.classes == ("cat", "dog")
    assert test.objects(int(test.objects.usable()[0])).labels.tolist() == [1, 0]


def test_images_of_another_size_are_not_used_and_listed(root):
    images(root)
    tree = coco(NAMES)
    tree["images"][1].update(height=16, width=12)
    (root / "train.json").write_text(json.dumps(tree))
    train, _ = opened(root)
    assert len(train.objects.usable()) == 2
    (told,) = train.skipped
    assert "gives 1 image another size; their objects are not used" in told.reason
    assert "b.png: is 16 x 12 pixels, but train.json says 12 x 16" in told.reason


def test_a_file_of_which_no_size_fits_is_refused(root):
    images(root)
    write_coco(root / "train.json", NAMES, size=(24, 32), annotations=[])
    with pytest.raises(DataError, match=r"is 16 x 12 pixels, but train.json says 32 x 24, and so"):
        opened(root)


def test_names_of_images_that_are_not_there_are_counted(root):
    images(root)
    write_coco(root / "train.json", [*NAMES, "x.png", "y.png"])
    train, _ = opened(root)
    assert [each.reason for each in train.skipped] == ["names 2 images not there, first x.png"]


def test_a_part_of_the_images_keeps_its_objects(root):
    images(root, size=LARGE)
    boxes = [annotation(image=k, bbox=(k, 1, 3, 3)) for k in (1, 2, 3)]
    write_coco(root / "train.json", NAMES, boxes, size=LARGE)
    few, _ = opened(root, num_images=2)
    assert len(few.objects.usable()) == 2
    assert not few.skipped  # the third is there, only not wanted
    for index in range(2):
        name = few.reader.table.where(index).rpartition("/")[2]
        assert few.objects(index).boxes[0, 0] == NAMES.index(name) + 1


def test_images_that_are_looked_at_when_they_are_met_have_objects(root):
    images(root)
    write_coco(root / "train.json", NAMES)
    train, _ = opened(root, survey=False)
    assert train.objects.usable().tolist() == [0, 1, 2]


def test_small_images_that_are_kept_decoded_have_objects(root):
    images(root)
    boxes = [annotation(image=k, bbox=(k, 1, 3, 3)) for k in (1, 2, 3)]
    write_coco(root / "train.json", NAMES, boxes)
    train, _ = opened(root)
    assert train.pixels is not None
    assert sorted(train.objects(k).boxes[0, 0] for k in range(3)) == [1, 2, 3]


def test_objects_are_sent_to_other_processes(root):
    images(root)
    write_coco(root / "train.json", NAMES)
    objects = opened(root)[0].objects
    objects(0)
    again = pickle.loads(pickle.dumps(objects))
    assert again(1).boxes.tolist() == objects(1).boxes.tolist()
    assert again.fingerprint == objects.fingerprint
    assert len(pickle.dumps(objects)) < 2000


def test_images_without_any_json_cost_no_look_at_paths(root, monkeypatch):
    images(root)
    opened(root)
    monkeypatch.setattr("mimkit.data.truth.found.match", lambda *_: pytest.fail("looked"))
    opened(root)


@pytest.mark.parametrize(
    ("files", "paths", "expected"),
    [
        (["1.png"], ["/r/a/1.png", "/r/b/1.png"], [-1, -1]),  # which one cannot be told
        (["a/1.png"], ["/r/a/1.png", "/r/b/1.png"], [0, -1]),
        (["b/1.png", "1.png"], ["/r/b/1.png"], [0]),
        (["old/1.png", "old/2.png"], ["/new/2.png", "/new/3.png"], [-1, -1]),
        (["x/1.png", "a/2.png", "."], ["/r/a/1.png", "/r/a/2.png"], [-1, 1]),
    ],
)
def test_names_are_ends_of_paths(files, paths, expected):
    assert match(files, paths).tolist() == expected


def test_folders_can_be_left_out():
    paths = ["/new/2.png", "/new/3.png", "/new/4.png"]
    files = ["old/1.png", "old/2.png", "old/4.png", "older/4.png"]
    assert match(files, paths, names_alone=True).tolist() == [1, -1, -1]


def test_folders_are_left_out_only_where_no_image_lies_as_the_file_says(root):
    images(root)
    write_coco(root / "all.json", [f"train/{name}" for name in NAMES])
    train, test = opened(root)
    assert len(train.objects.usable()) == 3
    assert test.objects is None


class TestYears:
    def test_may_follow_the_words_for_splits(self, root):
        images(root, "train2017", "val2017")
        listings = find(DataSection(name=str(root), image_size=8, patch_size=4)).images
        assert listings["train"].share is None
        assert {p.folder.name for p in listings["test"].part.places} == {"val2017"}

    def test_a_number_is_no_year(self, root):
        images(root, "train2", "train3")
        assert len(walk(str(root)).folders) == 2
        train, _ = opened(root)
        assert train.classes == ("train2", "train3")


class TestDrawn:
    def opened(self, size):
        section = DataSection(
            name="objects", image_size=size, patch_size=8, num_images=6, num_test_images=4
        )

        return open_source(section, "test")

    @pytest.mark.parametrize("size", [32, 96])
    def test_parts_are_those_of_the_annotation(self, size):
        source = self.opened(size)
        found = annotate(np.arange(10**12, 10**12 + 4), image_size=size)
        assert source.objects.classes == OBJECTS.kinds
        assert len(OBJECTS.kinds) == 9
        for index in range(4):
            objects = source.objects(index)
            masks = decode(objects.regions, size, size)
            for mask, box, label in zip(masks, objects.boxes, objects.labels, strict=True):
                (place,) = np.unique(found.parts[index][mask])
                assert np.array_equal(found.parts[index] == place, mask)
                assert found.kinds[index, place - 1] == label + 1
                assert found.boxes[index, place - 1].tolist() == box.tolist()
            assert masks.sum() == np.count_nonzero(found.parts[index])
            assert objects.areas.tolist() == masks.sum((1, 2)).tolist()

    def test_what_is_drawn_goes_without_saying(self):
        assert len(described(self.opened(32))) == 1
