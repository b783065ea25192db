"""What folders are taken for: splits, classes, masks; expectations follow from how each is made."""

import gc
import json
import os
import warnings
from hashlib import blake2b
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mimkit.data.intake.folder import list_folder
from mimkit.data.intake.layout import arrange
from mimkit.data.intake.walk import walk
from mimkit.errors import DataError


def make(root, *paths):
    """Makes small images, each of its own colour; files with other names are text."""
    for number, name in enumerate(paths):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpg", ".JPEG"):
            Image.new("RGB", (4, 4), (number % 256, number // 256, 7)).save(path)
        else:
            path.write_text("text")
    return root


def several(*folders, count=3):
    return [f"{folder}/{k}.png" for folder in folders for k in range(count)]


def tables(root, cache, **options):
    """For each split: class by path below the root; and the listing."""
    listings = list_folder(walk(str(root)), str(root), **options)
    found = {}
    for split, listing in listings.items():
        table = listing.read(cache)
        labels = [-1] * len(table) if table.labels is None else table.labels.tolist()
        found[split] = {
            Path(table.where(row)).relative_to(root).as_posix(): (
                table.classes[label] if label >= 0 else None
            )
            for row, label in enumerate(labels)
        }
    return found, listings


def official(root, cache):
    """The same, as datasets reads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves metadata.csv open
        loaded = datasets.load_dataset("imagefolder", data_dir=str(root), cache_dir=str(cache))
        gc.collect()
    found = {}
    for split, rows in loaded.cast_column("image", datasets.Image(decode=False)).items():
        feature = rows.features["label"]
        named = isinstance(feature, datasets.ClassLabel)
        found[split] = {
            Path(row["image"]["path"]).relative_to(root).as_posix(): (
                feature.names[row["label"]] if named else row["label"]
            )
            for row in rows
        }
    return found


@pytest.fixture
def opened(tmp_path):
    def open_(*paths, **options):
        root = make(tmp_path / "set", *paths)
        return tables(root, tmp_path / "cache", **options)

    return open_


def by_parent(*paths, at=-2):
    return {path: path.split("/")[at] for path in paths}


class TestSplits:
    @pytest.mark.parametrize(
        ("train", "test"),
        [
            ("Train", "Val"),
            ("Training", "Testing"),
            ("TRAIN", "TEST"),
            ("train", "Validation"),
            ("training", "valid"),
            ("train", "dev"),
        ],
    )
    def test_are_found_whatever_their_case(self, opened, train, test):
        of_train, of_test = several(f"{train}/ant", f"{train}/bee"), several(f"{test}/ant")
        found, listings = opened(*of_train, *of_test)
        assert found == {"train": by_parent(*of_train), "test": by_parent(*of_test)}
        assert listings["train"].note == listings["test"].note == ""

    def test_may_lie_below_each_class_or_beside_other_folders(self, opened):
        of_train, of_test = several("ant/train", "bee/train"), several("ant/test", "bee/test")
        found, _ = opened(*of_train, *of_test)
        assert found["train"] == by_parent(*of_train, at=0)
        assert found["test"] == by_parent(*of_test, at=0)

    def test_a_shared_outer_folder_changes_nothing(self, opened):
        of_train, of_test = (
            several("all/test/train/ant", "all/test/train/bee"),
            several("all/test/val/bee"),
        )
        found, _ = opened(*of_train, *of_test)
        assert found == {"train": by_parent(*of_train), "test": by_parent(*of_test)}

    def test_a_labelled_validation_split_beats_an_unlabelled_test_split(self, opened):
        of_train, of_val = several("train/ant", "train/bee"), several("val/ant")
        found, listings = opened(*of_train, *of_val, *several("test"))
        assert found == {"train": by_parent(*of_train), "test": by_parent(*of_val)}
        assert "the test split is val/; not used: test/" in listings["train"].note
        assert [item.reason for item in listings["train"].skipped] == [
            "3 images not used: the test split is val/"
        ]

    def test_a_test_folder_without_a_training_folder_beside_classes_is_not_trained_on(self, opened):
        of_train, of_test = several("pics/ant", "pics/bee"), several("test/ant", "test/bee")
        found, _ = opened(*of_train, *of_test)
        assert found == {"train": by_parent(*of_train), "test": by_parent(*of_test)}

    def test_folders_beside_the_splits_are_told_with_the_key(self, opened):
        paths = several("train/ant", "train/bee", "val/ant", "unlabeled")
        found, listings = opened(*paths)
        assert len(found["train"]) == 6
        assert "not used" in listings["train"].note
        assert "unlabeled" in listings["train"].note
        assert "data.layout='classes'" in listings["train"].note

    def test_layout_splits_decides_for_a_flat_test_folder(self, opened):
        paths = several("test", "pool")
        found, listings = opened(*paths)
        assert "taken for classes" in listings["train"].note
        assert "data.layout='splits'" in listings["train"].note
        found, _ = opened(*paths, meaning="splits")
        assert found["train"].keys() == set(several("pool"))
        assert found["test"].keys() == set(several("test"))

    def test_layout_splits_without_such_folders_is_refused(self, opened):
        with pytest.raises(DataError, match=r"data\.layout='splits' .* the folders are ant, bee"):
            opened(*several("ant", "bee"), meaning="splits")


class TestClasses:
    def test_a_class_may_be_called_train(self, opened):
        paths = several("bus", "car", "train", count=10)
        found, listings = opened(*paths)
        assert found["train"] | found["test"] == by_parent(*paths)
        assert len(found["test"]) == 3
        assert "a folder called train is taken for a class" in listings["train"].note
        assert "data.layout='splits'" in listings["train"].note
        assert listings["train"].classes == ("bus", "car", "train")

    def test_layout_classes_decides_for_classes_called_as_splits(self, opened):
        paths = several("bus", "train", "test")
        found, _ = opened(*paths)
        assert found["train"].keys() == set(several("train"))
        found, _ = opened(*paths, meaning="classes")
        assert found["train"] | found["test"] == by_parent(*paths)

    def test_layout_splits_decides_for_a_training_folder_beside_others(self, opened):
        found, listings = opened(*several("bus", "car", "train", count=10), meaning="splits")
        assert set(found["train"]) | set(found["test"]) == set(several("train", count=10))
        assert {item.reason[:19] for item in listings["train"].skipped} == {"10 images not used:"}

    def test_one_stray_image_beside_class_folders_has_no_label(self, opened):
        paths, tests = several("train/ant", "train/bee"), several("test/ant")
        found, listings = opened("train/stray.png", *paths, *tests)
        assert found["train"] == {**by_parent(*paths), "train/stray.png": None}
        assert found["test"] == by_parent(*tests)
        assert "1 image lies beside the class folders, without a label" in listings["train"].note

    def test_images_in_a_folder_of_their_class_folder(self, opened):
        paths = several("train/ant/images", "train/bee/images")
        tests = several("test/ant/images", "test/bee/images")
        found, _ = opened(*paths, *tests)
        assert found == {"train": by_parent(*paths, at=1), "test": by_parent(*tests, at=1)}

    def test_a_test_part_with_one_class_of_training(self, opened):
        paths, tests = several("train/ant", "train/bee"), several("test/bee")
        found, _ = opened(*paths, *tests)
        assert found["test"] == by_parent(*tests)

    def test_tiny_imagenets_flat_validation_folder_has_no_labels(self, opened):
        paths = several("train/n01/images", "train/n02/images")
        found, _ = opened(*paths, *several("val/images"))
        assert found["train"] == by_parent(*paths, at=1)
        assert set(found["test"].values()) == {None}

    @pytest.mark.parametrize(
        ("paths", "why"),
        [
            (several("animal/dog", "animal/cat", "thing/car", "thing/bus"), "folders of folders"),
            ([f"{k}.png" for k in range(20)] + several("a", "b"), "beside the folders"),
            (several("a", "b", "c", count=1), "each folder holds one image"),
        ],
    )
    def test_doubtful_ones_are_told_and_layout_decides(self, opened, paths, why):
        found, listings = opened(*paths)
        assert set((found["train"] | found["test"]).values()) == {None}
        assert why in listings["train"].note
        assert "data.layout=" in listings["train"].note
        found, _ = opened(*paths, meaning="classes")
        assert found["train"] | found["test"] == {
            path: path.split("/")[0] if "/" in path else None for path in paths
        }

    def test_what_systems_leave_behind_is_passed_over(self, opened):
        paths = several("ant", "bee")
        junk = ["ant/.ipynb_checkpoints/0-checkpoint.png", "__MACOSX/ant/._0.png", ".hidden.png"]
        found, listings = opened(*paths, *junk, "Thumbs.db", "bee/Thumbs.db", "ant/.DS_Store")
        assert found["train"] | found["test"] == by_parent(*paths)
        assert [item for each in listings.values() for item in each.skipped] == []

    def test_folders_mean_nothing_where_the_recipe_says_so(self, opened):
        paths = several("train/images", "train/masks", "val/images")
        found, _ = opened(*paths, meaning="unlabelled")
        assert found["train"] | found["test"] == dict.fromkeys(paths)


class TestMasks:
    @pytest.mark.parametrize(
        ("images", "masks"),
        [
            ("images", "masks"),
            ("Images", "Annotations"),
            ("JPEGImages", "SegmentationClass"),
            ("img", "gt"),
        ],
    )
    def test_beside_their_images_are_no_class(self, opened, images, masks):
        found, listings = opened(*several(images, masks, count=10))
        assert found["train"] | found["test"] == dict.fromkeys(several(images, count=10))
        assert "taken for masks" in listings["train"].note
        assert "data.layout='classes'" in listings["train"].note
        assert listings["train"].masks == listings["test"].masks == f"{masks}/"
        assert not listings["train"].skipped

    def test_within_the_splits_and_within_each_image(self, opened):
        found, _ = opened(
            *several(*[f"{s}/{k}" for s in ("train", "val") for k in ("images", "masks")])
        )
        assert found["train"] == dict.fromkeys(several("train/images"))
        assert found["test"] == dict.fromkeys(several("val/images"))

    def test_called_after_the_folder_of_the_images(self, opened):
        found, _ = opened(*several("train", "train_masks", "val", "valannot"))
        assert found["train"].keys() == set(several("train"))
        assert found["test"].keys() == set(several("val"))

    def test_layout_classes_makes_them_classes(self, opened):
        paths = several("images", "masks", count=10)
        found, _ = opened(*paths, meaning="classes")
        assert found["train"] | found["test"] == by_parent(*paths)


class TestTables:
    def write(self, path, rows, kind):
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        else:
            lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
            path.write_text("\n".join(lines))

    @pytest.mark.parametrize("kind", ["csv", "jsonl"])
    def test_metadata_beside_the_images_is_read_as_datasets_reads_it(self, tmp_path, kind):
        root = tmp_path / "set"
        for split in ("train", "test"):
            paths = several(f"{split}/pics", count=4)
            make(root, *paths)
            rows = [
                {"file_name": path.removeprefix(f"{split}/"), "label": "ab"[k % 2], "age": k}
                for k, path in enumerate(paths)
            ]
            self.write(root / split / f"metadata.{kind}", rows, kind)
        found, listings = tables(root, tmp_path / "cache")
        assert found == official(root, tmp_path / "hub")
        assert "labels in 'label'" in listings["train"].note
        assert [item.path for item in listings["train"].skipped] == []

    def test_without_tables_class_folders_are_what_datasets_makes_of_them(self, tmp_path):
        root = make(
            tmp_path / "set", *several("train/ant", "train/bee"), *several("test/ant", "test/bee")
        )
        found, _ = tables(root, tmp_path / "cache")
        assert found == official(root, tmp_path / "hub")

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("file,label\n{0},cat\n{1},dog\n", "labels.csv"),
            ("label;file\ncat;{0}\ndog;{1}\n", "labels.csv"),
            ("\ufefffilename\tclass\n{0}\tcat\n{1}\tdog\n", "labels.tsv"),
            ("{0},cat\n{1},dog\n", "labels.csv"),
            ('{{"path": "{0}", "species": "cat"}}\n{{"path": "{1}", "species": "dog"}}', "a.jsonl"),
        ],
    )
    @pytest.mark.parametrize("names", [("0.png", "1.png"), ("./0.png", "set/1.png")])
    def test_a_table_of_file_and_label(self, opened, tmp_path, text, name, names):
        table = tmp_path / name
        table.write_text(text.format(*names), encoding="utf-8")
        found, listings = opened(*several(".", count=12), tables=[table])
        both = found["train"] | found["test"]
        assert {path: label for path, label in both.items() if label} == {
            "0.png": "cat",
            "1.png": "dog",
        }
        assert len(both) == 12
        assert f"{name}: files in column" in listings["train"].note

    def test_names_may_lack_folder_and_extension(self, opened, tmp_path):
        table = tmp_path / "labels.csv"
        table.write_text("image_id,target\n0,4.0\nb,7\nnowhere,1\n")
        found, listings = opened("a/0.png", "a/b.png", "c.png", tables=[table])
        both = found["train"] | found["test"]
        assert both == {"a/0.png": "4", "a/b.png": "7", "c.png": None}
        assert "1 files that it names are not there, first nowhere" in listings["train"].note

    def test_columns_are_chosen_by_name(self, opened, tmp_path):
        table = tmp_path / "labels.csv"
        table.write_text("key,file,label,kind\n0.png,no,9,x\n1.png,no,8,y\n")
        columns = {"image_column": "key", "label_column": "kind"}
        found, _ = opened("0.png", "1.png", tables=[table], **columns)
        assert found["train"] | found["test"] == {"0.png": "x", "1.png": "y"}
        with pytest.raises(DataError, match=r"data\.label_column = 'kin' .* Did you mean 'kind'"):
            opened("0.png", tables=[table], image_column="key", label_column="kin")

    def test_a_column_of_splits_is_followed(self, opened, tmp_path):
        table = tmp_path / "labels.csv"
        table.write_text("file,label,split\n0.png,a,train\n1.png,b,Train\n2.png,b,val\n")
        found, listings = opened("0.png", "1.png", "2.png", "3.png", tables=[table])
        assert found == {"train": {"0.png": "a", "1.png": "b"}, "test": {"2.png": "b"}}
        assert listings["train"].skipped[0].reason.startswith("1 images not used")

    def test_names_that_look_like_numbers_are_names(self, opened, tmp_path):
        table = tmp_path / "labels.csv"
        table.write_text("id,label\n007,a\n010,b\n")
        found, _ = opened("007.png", "010.png", tables=[table])
        assert found["train"] | found["test"] == {"007.png": "a", "010.png": "b"}

    def test_a_table_beside_unlabelled_images_is_told(self, opened):
        _, listings = opened("a.png", "b.png", "labels.csv")
        assert "data.labels='labels.csv'" in listings["train"].note

    def test_no_labels_can_be_asked_for(self, opened, tmp_path):
        found, _ = opened(*several("train/ant", "train/bee", "test/ant"), label_column="none")
        assert set((found["train"] | found["test"]).values()) == {None}

    def test_a_column_of_a_folder_is_refused(self, opened):
        with pytest.raises(DataError, match=r"data\.label_column = 'x': .* with data\.labels"):
            opened("a.png", "b.png", label_column="x")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("file,file,label\n0.png,0.png,a\n", "must have different names, but two are 'file'"),
            ("file,label\nx.png,1\n", "none of its 1 is there"),
            ("label\n1\n", "must have a column of file names"),
            (
                "file,label\n0.png,0.5\n",
                r"numbers with a fraction, such as 0.5.*data\.label_column",
            ),
            ("file,label\n0.png,a\n0.png,b\n", "gives '0.png' a and b"),
            ('file,label\n"0.png', "must be a table that can be read"),
        ],
    )
    def test_what_does_not_fit_is_refused_in_one_message(self, opened, tmp_path, text, message):
        table = tmp_path / "labels.csv"
        table.write_text(text)
        with pytest.raises(DataError, match=message):
            opened("0.png", "1.png", tables=[table])


names = st.sampled_from(
    ["ant", "bee", "train", "Train", "test", "val", "images", "masks", "labels", "x1", "Testing"]
)
trees = st.lists(
    st.lists(names, max_size=3).map("/".join), min_size=1, max_size=8, unique_by=str.lower
)


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(folders=trees, counts=st.integers(2, 3), meaning=st.sampled_from(["auto", "classes"]))
def test_every_image_is_in_one_split_or_listed_as_not_used(
    tmp_path_factory, folders, counts, meaning
):
    root = tmp_path_factory.mktemp("tree")
    every = set()
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for k in range(counts):
            (root / folder / f"{k}.png").touch()
            every.add((Path(folder) / f"{k}.png").as_posix())
    try:
        found, listings = tables(root, root.parent / "cache", meaning=meaning)
    except DataError:
        with pytest.raises(DataError, match="class folders must be among"):
            arrange(walk(str(root)), meaning)
        return
    assert not found["train"].keys() & found["test"].keys()
    masks = {
        path
        for listing in listings.values()
        if listing.pairs is not None
        for of in listing.pairs.files.values()
        for path in of.values()
    }
    assert not masks & (found["train"].keys() | found["test"].keys())
    left = every - found["train"].keys() - found["test"].keys() - masks
    unused = [item.path for item in listings["train"].skipped]
    for path in left:
        whole = root / path
        assert (
            sum(
                whole.parent == Path(folder).parent
                if folder.endswith("*")
                else whole.is_relative_to(folder)
                for folder in unused
            )
            == 1
        )
    counted = sum(int(item.reason.split()[0]) for item in listings["train"].skipped)
    assert counted == len(left)
    if meaning == "auto" and any(p.split("/")[0].lower() == "train" for p in found["train"]):
        tests = {"test", "testing", "val"}
        assert not any(p.split("/")[0].lower() in tests for p in found["train"])


def test_the_stamp_follows_files_and_decisions(tmp_path):
    root = make(tmp_path / "set", *several("train/ant", "train/bee", "test/ant"))

    def stamps(**options):
        return {k: v.stamp for k, v in list_folder(walk(str(root)), "", **options).items()}

    first = stamps()
    assert stamps() == first
    assert stamps(meaning="classes")["train"] != first["train"]
    make(root, "test/ant/9.png")
    assert stamps()["train"] == first["train"]
    assert stamps()["test"] != first["test"]


def test_a_warm_table_is_read_without_looking_at_names_again(tmp_path, monkeypatch):
    root = make(tmp_path / "set", *several("train/ant", "train/bee", "test/ant"))
    cold, _ = tables(root, tmp_path / "cache")
    monkeypatch.setattr(
        "mimkit.data.intake.folder.write_paths", lambda *_: pytest.fail("written again")
    )
    warm, _ = tables(root, tmp_path / "cache")
    assert warm == cold
    assert [*warm["train"]] == [*cold["train"]]


def test_the_order_is_that_of_the_hashes_of_paths(tmp_path):
    root = make(tmp_path / "set", *several("train/ant", "train/bee", "test/ant", count=20))
    found, _ = tables(root, tmp_path / "cache")
    below = [path.removeprefix("train/") for path in found["train"]]
    assert below == sorted(below, key=lambda path: blake2b(path.encode()).digest())


def test_names_that_are_not_utf8_are_listed_in_ascii(tmp_path):
    root = make(tmp_path / "set", *several("a"), "b/0.png")
    for name in (b"a/\xff.png", b"a/\xff.txt", b"b\xff/x.png"):
        path = os.fsencode(root) + b"/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"x")
    found, listings = tables(root, tmp_path / "cache")
    assert len(found["train"] | found["test"]) == 4
    skipped = {Path(item.path).name: item.reason for item in listings["train"].skipped}
    assert skipped == {
        "\\udcff.png'": "has a name that is not UTF-8",
        "\\udcff.txt'": "is not an image by its name",
        "x.png'": "has a name that is not UTF-8",
    }


def test_many_other_files_of_one_kind_are_counted(tmp_path):
    root = make(tmp_path / "set", *several("a", "b"), *[f"a/{k}.xml" for k in range(50)])
    _, listings = tables(root, tmp_path / "cache")
    assert [(item.path, item.reason) for item in listings["train"].skipped] == [
        (f"{root}/a/*.xml", "50 files, each is not an image by its name")
    ]


def test_arranging_asks_no_disk(tmp_path):
    root = make(tmp_path / "set", *several("ant", "bee"))
    tree = walk(str(root))
    for path in root.rglob("*.png"):
        path.unlink()
    assert arrange(tree, "auto").classes == ("ant", "bee")
    assert np.array_equal(arrange(tree, "auto").train.labels, [0, 1])
