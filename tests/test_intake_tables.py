"""Tables of images: parquet and what save_to_disk wrote; their columns, splits and rows."""

import itertools
import json
import pickle
from io import BytesIO

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mimkit.data.intake.columns import Asked
from mimkit.data.intake.labels import NoClassesError, codes_of, unite
from mimkit.data.intake.locate import Wanted, locate
from mimkit.data.intake.table import balanced
from mimkit.errors import DataError


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.delenv("MIMKIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def encoded(number):
    file = BytesIO()
    Image.new("RGB", (4, 4), (number, 1, 2)).save(file, "PNG")
    return file.getvalue()


def write(path, first=0, count=6, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": encoded(first + k), "path": None} for k in range(count)]
    pq.write_table(pa.table({"image": images, **columns}), path)
    return path


def opened(path, cache, **options):
    listings = locate(Wanted("data.name", str(path), None, None, cache=cache, **options))
    found = {}
    for split, listing in listings.items():
        table = listing.read(cache)
        labels = [-1] * len(table) if table.labels is None else table.labels.tolist()
        numbers = [
            Image.open(BytesIO(table.content(k))).getpixel((0, 0))[0] for k in range(len(table))
        ]
        names = [table.classes[label] if label >= 0 else None for label in labels]
        found[split] = dict(zip(numbers, names, strict=True))
    return found, listings


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["ant", "bee", "ant", None, "", "cow"], ["ant", "bee", "ant", None, None, "cow"]),
        ([True, False, True, False, None, True], ["True", "False", "True", "False", None, "True"]),
        ([2.0, 0.0, 2.0, float("nan"), None, 1.0], ["2", "0", "2", None, None, "1"]),
        ([10**8, 5, 10**8, -1, None, 5], ["100000000", "5", "100000000", None, None, "5"]),
        (pa.array([1, 2, 1, 2, 1, 2], pa.uint8()), ["1", "2", "1", "2", "1", "2"]),
        (pa.array(["a", "b"] * 3).dictionary_encode(), ["a", "b"] * 3),
        (pa.array(["a", "b"] * 3, pa.large_string()), ["a", "b"] * 3),
        (pa.array(["a", "b"] * 3, pa.string_view()), ["a", "b"] * 3),
    ],
)
def test_labels_of_every_kind_are_found(tmp_path, values, expected):
    write(tmp_path / "set" / "train.parquet", 0, label=values)
    write(tmp_path / "set" / "test.parquet", 100, label=values)
    found, _ = opened("set", tmp_path / "cache")
    assert found["train"] == dict(enumerate(expected))
    assert found["test"] == dict(enumerate(expected, 100))


@pytest.mark.parametrize("name", ["labels", "Target", "class", "class_name", "category", "y"])
def test_labels_are_found_by_many_names(tmp_path, name):
    write(tmp_path / "a.parquet", **{"key": [7] * 6, name: ["ant", "bee"] * 3})
    found, listings = opened("a.parquet", tmp_path / "cache")
    assert found["train"] | found["test"] == dict(enumerate(["ant", "bee"] * 3))
    assert (f"'{name}' (data.label_column)" in listings["train"].note) == (name != "labels")


def test_a_parquet_set_is_what_datasets_makes_of_it(tmp_path):
    names = ["ant", "bee", "cow"]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    for split, first in (("train", 0), ("test", 50)):
        rows = {
            "image": [{"bytes": encoded(first + k), "path": None} for k in range(6)],
            "label": [k % 3 for k in range(6)],
        }
        (tmp_path / "set").mkdir(exist_ok=True)
        made = datasets.Dataset.from_dict(rows, features=features)
        made.to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    found, listings = opened("set", tmp_path / "cache")
    official = datasets.load_dataset(
        "parquet", data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "hub")
    )
    for split in ("train", "test"):
        own = official[split].features["label"].names
        assert found[split] == {
            row["image"].getpixel((0, 0))[0]: own[row["label"]] for row in official[split]
        }
    assert listings["train"].note == ""


def test_other_columns_can_be_named_and_labels_refused(tmp_path):
    write(tmp_path / "a.parquet", label=[0] * 6, kind=["x", "y"] * 3)
    found, _ = opened("a.parquet", tmp_path / "cache", label_column="kind")
    assert found["train"] | found["test"] == dict(enumerate(["x", "y"] * 3))
    found, _ = opened("a.parquet", tmp_path / "cache", label_column="none")
    assert set((found["train"] | found["test"]).values()) == {None}
    for options, message in (
        ({"label_column": "kid"}, r"label_column = 'kid' .* image, label, kind.*mean 'kind'"),
        ({"image_column": "kind"}, r"image_column = 'kind' must be a column of image files"),
    ):
        with pytest.raises(DataError, match=message.replace("image, label", "label")):
            opened("a.parquet", tmp_path / "cache", **options)


@pytest.mark.parametrize(
    ("columns", "note"),
    [
        ({"text": ["a"] * 6}, "none of the columns text is called label"),
        ({"label": [0.25] * 6}, "numbers with a fraction, such as 0.25"),
        ({"label": [[1, 2]] * 6}, "values of the type list"),
        ({"species": ["a", "b"] * 3}, "data.label_column"),
    ],
)
def test_what_is_not_taken_for_labels_is_told_with_the_key(tmp_path, columns, note):
    write(tmp_path / "a.parquet", **columns)
    found, listings = opened("a.parquet", tmp_path / "cache")
    assert set((found["train"] | found["test"]).values()) == {None}
    assert note in listings["train"].note
    assert "data.label_column" in listings["train"].note


def test_a_column_that_was_asked_for_and_holds_no_classes_is_refused(tmp_path):
    write(tmp_path / "a.parquet", score=[0.25] * 6)
    with pytest.raises(DataError, match=r"'score' must hold classes, but .* 0.25"):
        opened("a.parquet", tmp_path / "cache", label_column="score")


@pytest.mark.parametrize(
    ("names", "test"),
    [
        ({"Train": 0, "Val": 50}, 50),
        ({"training": 0, "testing": 50}, 50),
        ({"train-00000-of-00001": 0, "validation-00000-of-00001": 50}, 50),
        ({"my_train_part": 0, "my_test_part": 50}, 50),
        ({"other": 0, "test": 50}, 50),
    ],
)
def test_splits_are_found_by_the_names_of_files(tmp_path, names, test):
    for name, first in names.items():
        write(tmp_path / "set" / f"{name}.parquet", first, label=[0, 1] * 3)
    found, _ = opened("set", tmp_path / "cache")
    assert found["train"].keys() == set(range(6))
    assert found["test"].keys() == set(range(test, test + 6))


def test_a_labelled_validation_split_beats_an_unlabelled_test_split(tmp_path):
    for name, first, labels in (
        ("train", 0, [0, 1]),
        ("validation", 50, [1, 0]),
        ("test", 90, [-1, -1]),
    ):
        write(tmp_path / "set" / f"{name}.parquet", first, label=labels * 3)
    found, listings = opened("set", tmp_path / "cache")
    assert found["test"] == dict(enumerate(["1", "0"] * 3, 50))
    assert "the test split is validation; not used: test" in listings["train"].note


def test_files_of_no_split_are_told(tmp_path):
    for name in ("train", "test", "extra"):
        write(tmp_path / "set" / f"{name}.parquet", label=[0, 1] * 3)
    _, listings = opened("set", tmp_path / "cache")
    assert "not used, as other files are called train: extra" in listings["train"].note
    assert [item.path for item in listings["train"].skipped] == [
        str(tmp_path / "set" / "extra.parquet")
    ]


def test_images_beside_parquet_are_told(tmp_path):
    write(tmp_path / "set" / "train.parquet", label=[0, 1] * 3)
    (tmp_path / "set" / "a.png").write_bytes(encoded(1))
    _, listings = opened("set", tmp_path / "cache")
    assert listings["train"].skipped[-1].reason.startswith("1 images not used: parquet")


def test_parquet_that_only_names_the_images_beside_it_is_no_data_set(tmp_path):
    for k in range(10):
        (tmp_path / f"{k}.png").write_bytes(encoded(k))
    rows = {"file": [f"{k}.png" for k in range(10)], "label": [k % 2 for k in range(10)]}
    pq.write_table(pa.table(rows), tmp_path / "labels.parquet")
    _, listings = opened(".", tmp_path / "cache")
    assert "data.labels='labels.parquet'" in listings["train"].note
    found, _ = opened(".", tmp_path / "cache", labels="labels.parquet")
    assert found["train"] | found["test"] == {k: str(k % 2) for k in range(10)}


def test_columns_of_one_name_are_refused(tmp_path):
    path = write(tmp_path / "a.parquet", label=[0] * 6)
    table = pq.read_table(path).rename_columns(["image", "image"])
    pq.write_table(table, path)
    with pytest.raises(DataError, match="must have different names, but two are 'image'"):
        opened("a.parquet", tmp_path / "cache")


def test_both_splits_number_the_same_classes(tmp_path):
    write(tmp_path / "set" / "train.parquet", 0, label=["b", "c"] * 3)
    write(tmp_path / "set" / "test.parquet", 50, label=["a", "c"] * 3)
    _, listings = opened("set", tmp_path / "cache")
    assert [listing.read(tmp_path / "cache").classes for listing in listings.values()] == [
        ("a", "b", "c")
    ] * 2


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "validation"), None])
def test_a_folder_that_save_to_disk_wrote(tmp_path, splits):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])}
    )

    def made(first, count):
        rows = {
            "image": [{"bytes": encoded(first + k), "path": None} for k in range(count)],
            "label": [k % 2 for k in range(count)],
        }
        return datasets.Dataset.from_dict(rows, features=features)

    if splits is None:
        made(0, 20).save_to_disk(tmp_path / "set", num_shards=3)
    else:
        both = {splits[0]: made(0, 20), splits[1]: made(50, 4)}
        datasets.DatasetDict(both).save_to_disk(tmp_path / "set")
    found, _ = opened("set", tmp_path / "cache")
    expected = {k: ["ant", "bee"][k % 2] for k in range(20)}
    if splits is None:
        assert found["train"] | found["test"] == expected
        assert len(found["test"]) == 2
    else:
        assert found == {
            "train": expected,
            "test": {50 + k: ["ant", "bee"][k % 2] for k in range(4)},
        }
    assert not (tmp_path / "cache" / "arrow").exists()  # mapped as it lies


def test_a_saved_folder_that_was_not_copied_whole_is_named(tmp_path):
    datasets.Dataset.from_dict({"image": [encoded(1)]}).save_to_disk(tmp_path / "set")
    for path in (tmp_path / "set").glob("*.arrow"):
        path.unlink()
    with pytest.raises(DataError, match=r"\.arrow' is missing. Was it copied whole"):
        opened("set", tmp_path / "cache")


def test_parquet_is_copied_once_for_every_split_and_number_of_images(tmp_path):
    write(tmp_path / "all.parquet", count=40, label=[0, 1] * 20)
    _, listings = opened("all.parquet", tmp_path / "cache")
    copies = sorted((tmp_path / "cache" / "arrow").iterdir())
    assert len(copies) == 1
    for count in (3, 5, 8):
        listings["train"].read(tmp_path / "cache").limited(count, "data.num_images")
    assert sorted((tmp_path / "cache" / "arrow").iterdir()) == copies


def test_a_table_travels_to_other_processes_without_its_images(tmp_path):
    write(tmp_path / "all.parquet", count=40)
    _, listings = opened("all.parquet", tmp_path / "cache")
    table = listings["train"].read(tmp_path / "cache")
    first = table.content(0)
    sent = pickle.dumps(table.contents)
    assert len(sent) < 1000
    assert pickle.loads(sent).content(int(table.rows[0])) == first


class TestClasses:
    def test_ids_of_a_hundred_million_cost_nothing(self):
        column = pa.chunked_array([[10**8, 3, 10**12]])
        codes, names = codes_of(column)
        assert codes.tolist() == [1, 0, 2]
        assert names == ("3", "100000000", "1000000000000")

    def test_names_of_the_file_count(self):
        codes, names = codes_of(pa.chunked_array([[2, None, -1, 0]]), ["a", "b", "c"])
        assert (codes.tolist(), names) == ([2, -1, -1, 0], ("a", "b", "c"))
        with pytest.raises(NoClassesError, match="holds 3, but names only 3"):
            codes_of(pa.chunked_array([[3]]), ["a", "b", "c"])

    def test_numbers_are_ordered_as_numbers_when_parts_are_united(self):
        parts = [codes_of(pa.chunked_array([values])) for values in ([2, 10], [9, 10])]
        (first, names), (second, same) = unite(parts)
        assert names == same == ("2", "9", "10")
        assert (first.tolist(), second.tolist()) == ([0, 2], [1, 2])

    def test_asked_has_no_wish_by_default(self):
        assert Asked() == Asked(None, None, None)


class TestNumberOfImages:
    def test_classes_give_as_equally_as_their_sizes_allow(self):
        labels = np.repeat([0, 1, 2, 3], [100, 50, 3, 10])
        for count, expected in (
            (4, [1] * 4),
            (12, [3] * 4),
            (15, [4, 4, 3, 4]),
            (163, [100, 50, 3, 10]),
        ):
            chosen = balanced(labels, len(labels), count)
            assert len(set(chosen.tolist())) == count
            assert np.array_equal(np.sort(chosen), chosen)
            assert np.bincount(labels[chosen], minlength=4).tolist() == expected

    def test_a_smaller_number_is_part_of_a_larger_one(self):
        labels = np.repeat([0, 1, 2], [30, 20, 10])
        draws = [set(balanced(labels, 60, count).tolist()) for count in range(1, 61)]
        assert all(a < b for a, b in itertools.pairwise(draws))

    def test_without_labels_every_row_is_as_likely(self):
        chosen = np.concatenate([balanced(None, total, 100) / total for total in range(900, 1100)])
        assert abs(chosen.mean() - 0.5) < 0.01

    def test_images_without_a_label_are_one_more_class(self):
        labels = np.repeat([-1, 0, 1], [80, 10, 10])
        assert np.bincount(labels[balanced(labels, 100, 30)] + 1).tolist() == [10, 10, 10]

    def test_of_a_set_sorted_by_class_all_classes_are_drawn(self, tmp_path):
        write(tmp_path / "all.parquet", count=40, label=[k // 10 for k in range(40)])
        _, listings = opened("all.parquet", tmp_path / "cache")
        table = listings["train"].read(tmp_path / "cache").limited(8, "data.num_images")
        assert np.bincount(table.labels).tolist() == [2, 2, 2, 2]
        with pytest.raises(DataError, match=r"data\.num_test_images: must be at most 4, .* is 5"):
            listings["test"].read(tmp_path / "cache").limited(5, "data.num_test_images")


def test_metadata_of_datasets_that_is_damaged_is_passed_over(tmp_path):
    path = write(tmp_path / "a.parquet", label=[0, 1] * 3)
    table = pq.read_table(path).replace_schema_metadata({"huggingface": json.dumps([1])})
    pq.write_table(table, path)
    found, _ = opened("a.parquet", tmp_path / "cache")
    assert set((found["train"] | found["test"]).values()) == {"0", "1"}
