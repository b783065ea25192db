"""Opening data sets: where they are found, what is in them, what is kept for the next time."""

import dataclasses
import json
import multiprocessing
import os
import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mimkit.data import registered
from mimkit.data.cache import folder as cache_folder
from mimkit.data.looking import survey
from mimkit.data.opening import open_source, open_sources
from mimkit.data.pixels.augment import Augment, draw
from mimkit.data.pixels.views import render
from mimkit.data.source import described
from mimkit.errors import DataError
from mimkit.parts.records import View
from mimkit.parts.target import Images
from mimkit.recipe.sections import DataSection

COLORS = ("red", "green", "blue")
REAL_DATA = os.environ.get("MIMKIT_DATA")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """No data, no cache, no network, whatever this machine has."""
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def section(name, **values):
    return DataSection(name=str(name), image_size=8, patch_size=4, **values)


def write_image(path, number=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(path, "PNG")
    return values


def encoded(number=0, size=(8, 8)):
    file = BytesIO()
    values = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def class_folders(root, per_class=4, size=(8, 8), classes=COLORS):
    for label, name in enumerate(classes):
        for k in range(per_class):
            write_image(root / name / f"{k}.png", 100 * label + k, size)
    return root


def write_parquet(path, numbers, labels="default", image="image", size=(8, 8), names=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": encoded(number, size), "path": f"{number}.png"} for number in numbers]
    columns = {image: images}
    features = {image: {"_type": "Image"}}
    if labels is not None:
        columns["label"] = [n % 3 for n in numbers] if labels == "default" else labels
        features["label"] = {"_type": "ClassLabel", "names": list(names or COLORS)}
    table = pa.table(columns)
    if names is not False:
        info = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(info)
    pq.write_table(table, path)
    return path


class TestFolders:
    def test_train_and_test_folders_with_classes(self, tmp_path):
        class_folders(tmp_path / "set" / "train")
        class_folders(tmp_path / "set" / "val", per_class=2, classes=("blue", "green"))
        train = open_source(section(tmp_path / "set"), "train")
        test = open_source(section(tmp_path / "set"), "test")
        assert (len(train), len(test)) == (12, 4)
        assert train.classes == test.classes == ("blue", "green", "red")
        assert train.labels.bincount().tolist() == [4, 4, 4]
        assert test.labels.bincount().tolist() == [2, 2]
        assert train.note == ""

    def test_each_image_has_the_label_of_its_folder(self, tmp_path):
        class_folders(tmp_path / "set" / "train")
        class_folders(tmp_path / "set" / "test")
        source = open_source(section(tmp_path / "set"), "train")
        for k in range(len(source)):
            color = source.classes[source.labels[k]]
            paths = [tmp_path / "set" / "train" / color / f"{j}.png" for j in range(4)]
            content = np.asarray(source.image(k))
            assert any(np.array_equal(np.asarray(Image.open(path)), content) for path in paths)

    def test_without_a_test_part_a_tenth_is_held_out_and_said_so(self, tmp_path):
        class_folders(tmp_path / "set", per_class=10)
        train, test = (open_source(section(tmp_path / "set"), split) for split in ("train", "test"))
        assert (len(train), len(test)) == (27, 3)
        assert "3 of 30 images, chosen by path, are held out" in train.note
        assert train.note in train.describe()
        contents = {
            np.asarray(source.image(k)).tobytes()
            for source in (train, test)
            for k in range(len(source))
        }
        assert len(contents) == 30

    def test_the_hold_out_stays_the_same_elsewhere(self, tmp_path):
        class_folders(tmp_path / "one", per_class=10)
        class_folders(tmp_path / "two" / "moved", per_class=10)
        one = open_source(section(tmp_path / "one"), "test")
        two = open_source(section(tmp_path / "two" / "moved"), "test")
        assert one.fingerprint == two.fingerprint

    def test_images_at_any_depth_are_unlabelled(self, tmp_path):
        for k, place in enumerate(["a.png", "b/c.png", "b/d/e/f.png", "b/g.PNG"]):
            write_image(tmp_path / "set" / place, k)
        source = open_source(section(tmp_path / "set"), "train")
        assert len(source) == 3
        assert source.labels is None
        assert source.classes == ()
        assert "no labels" in source.describe()

    def test_a_test_part_without_classes_is_passed_over_for_one_with(self, tmp_path):
        class_folders(tmp_path / "set" / "train")
        class_folders(tmp_path / "set" / "val", per_class=1)
        write_image(tmp_path / "set" / "test" / "1.png")
        assert len(open_source(section(tmp_path / "set"), "test")) == 3

    def test_a_test_part_with_classes_of_its_own_is_refused(self, tmp_path):
        class_folders(tmp_path / "set" / "train")
        class_folders(tmp_path / "set" / "test", classes=("red", "pink"))
        with pytest.raises(DataError, match=r"set/test: .* pink is not"):
            open_source(section(tmp_path / "set"), "test")

    def test_the_first_so_many_are_of_all_classes(self, tmp_path):
        class_folders(tmp_path / "set" / "train", per_class=30)
        class_folders(tmp_path / "set" / "test")
        source = open_source(section(tmp_path / "set", num_images=30), "train")
        assert len(source) == 30
        assert source.labels.bincount().min() > 3

    def test_more_images_than_there_are_cannot_be_asked_for(self, tmp_path):
        class_folders(tmp_path / "set" / "train")
        with pytest.raises(DataError, match=r"num_images: must be at most 11, .* is 12"):
            open_source(section(tmp_path / "set", num_images=12), "train")

    def test_links_are_followed_but_not_in_circles(self, tmp_path):
        class_folders(tmp_path / "real")
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "train").symlink_to(tmp_path / "real")
        (tmp_path / "real" / "red" / "back").symlink_to(tmp_path / "real")
        class_folders(tmp_path / "set" / "test")
        assert len(open_source(section(tmp_path / "set"), "train")) == 12

    @pytest.mark.parametrize("files", [[], ["notes.txt"], [".hidden.png"]])
    def test_a_folder_without_images_is_refused(self, tmp_path, files):
        (tmp_path / "set").mkdir()
        for name in files:
            (tmp_path / "set" / name).write_bytes(b"x")
        with pytest.raises(DataError, match=r"must hold images .* but holds none"):
            open_source(section(tmp_path / "set"), "train")

    def test_one_image_alone_cannot_be_split(self, tmp_path):
        write_image(tmp_path / "set" / "a.png")
        with pytest.raises(DataError, match="at least two images"):
            open_source(section(tmp_path / "set"), "train")


class TestOddImages:
    def make(self, tmp_path, size):
        root = class_folders(tmp_path / "set" / "train", size=size)
        class_folders(tmp_path / "set" / "test", size=size)
        whole = (root / "red" / "0.png").read_bytes()
        (root / "red" / "empty.jpg").write_bytes(b"")
        (root / "red" / "cut.png").write_bytes(whole[: len(whole) // 2])
        (root / "red" / "words.jpeg").write_bytes(b"not an image at all" * 9)
        (root / "red" / "notes.txt").write_text("no image")
        (root / "red" / ".DS_Store").write_bytes(b"passed over")
        (root / "green" / "gone.png").symlink_to(tmp_path / "nowhere.png")
        Image.new("L", size[::-1], 7).save(root / "blue" / "grey.png")
        Image.new("CMYK", size[::-1]).save(root / "blue" / "cmyk.jpg")
        Image.new("I;16", size[::-1], 30000).save(root / "blue" / "sixteen.png")
        Image.new("RGBA", size[::-1]).save(root / "blue" / "clear.png")
        Image.new("P", size[::-1]).save(root / "blue" / "palette.gif")
        return tmp_path / "set"

    @pytest.mark.parametrize("size", [(8, 8), (80, 90)])
    def test_what_can_be_decoded_is_used_and_the_rest_is_listed(self, tmp_path, size):
        source = open_source(section(self.make(tmp_path, size), range="type"), "train")
        assert len(source) == 12 + 5
        assert (source.pixels is not None) == (size == (8, 8))
        reasons = {Path(item.path).name: item.reason for item in source.skipped}
        assert reasons.keys() == {"empty.jpg", "cut.png", "words.jpeg", "notes.txt", "gone.png"}
        assert reasons["empty.jpg"] == "is empty"
        assert reasons["cut.png"].startswith("cannot be decoded")
        assert reasons["words.jpeg"] == "is no image of a known kind"
        assert reasons["notes.txt"] == "is not an image by its name"
        assert reasons["gone.png"] == "cannot be read: No such file or directory"
        assert "5 skipped" in source.describe()
        images = [source.image(k) for k in range(len(source))]
        assert {image.bands[0].mode for image in images} == {"RGB"}
        assert len(source.labels) == len(source.sizes) == 17

    def test_what_was_skipped_is_also_known_the_second_time(self, tmp_path):
        root = self.make(tmp_path, (8, 8))
        first, second = (open_source(section(root, range="type"), "train") for _ in range(2))
        assert first.skipped == second.skipped
        assert torch.equal(first.pixels, second.pixels)
        assert torch.equal(first.labels, second.labels)

    def test_a_set_of_broken_images_is_refused(self, tmp_path):
        for name in "abc":
            path = tmp_path / "set" / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"broken")
        with pytest.raises(DataError, match="at least one image that can be read"):
            open_source(section(tmp_path / "set"), "train")

    def test_an_image_that_changes_later_is_named_and_not_replaced(self, tmp_path):
        class_folders(tmp_path / "set" / "train", size=(70, 70))
        class_folders(tmp_path / "set" / "test", size=(70, 70))
        source = open_source(section(tmp_path / "set"), "train")
        for path in (tmp_path / "set" / "train").rglob("*.png"):
            path.write_bytes(b"broken")
        with pytest.raises(DataError, match=r"\d\.png: must still be the image of 70 x 70"):
            source.image(0)
        for path in (tmp_path / "set" / "train").rglob("*.png"):
            write_image(path, size=(5, 6))
        with pytest.raises(DataError, match="is 6 x 5 pixels"):
            source.image(0)
        assert source.describe()
        assert open_source(section(tmp_path / "set"), "train").image(0).size == (6, 5)


class TestPixels:
    def test_small_images_of_one_size_are_held_decoded(self, tmp_path):
        class_folders(tmp_path / "set" / "train", size=(6, 9))
        source = open_source(section(tmp_path / "set"), "train")
        assert source.pixels.shape == (11, 3, 6, 9)
        assert source.pixels.dtype == torch.uint8
        assert (source.sizes == torch.tensor([6, 9])).all()
        on_cpu = source.to("cpu")
        assert torch.equal(on_cpu.pixels, source.pixels)

    @pytest.mark.parametrize("odd", [(8, 7), (65, 65)])
    def test_one_image_of_another_size_suffices_to_read_from_files(self, tmp_path, odd):
        class_folders(tmp_path / "set" / "train")
        class_folders(tmp_path / "set" / "test")
        write_image(tmp_path / "set" / "train" / "red" / "odd.png", size=odd)
        source = open_source(section(tmp_path / "set"), "train")
        assert source.pixels is None
        assert len(source.sizes.unique(dim=0)) == 2
        assert source.to("cpu") is source

    def test_files_and_processes_see_the_same_image(self, tmp_path):
        class_folders(tmp_path / "set" / "train", size=(70, 66))
        source = open_source(section(tmp_path / "set"), "train")
        copy = pickle.loads(pickle.dumps(source))
        assert np.asarray(copy.image(3)).tobytes() == np.asarray(source.image(3)).tobytes()

    @pytest.mark.parametrize("orientation", [1, 6])
    @pytest.mark.parametrize("augment", [Augment(crop="none"), Augment(crop_scale=(0.5, 1.0))])
    def test_photographs_decoded_smaller_show_the_same(self, tmp_path, orientation, augment):
        y, x = np.mgrid[:301, :403]
        waves = 128 + 60 * np.sin(x / 20)[:, :, None] + 60 * np.cos(y / 30)[:, :, None]
        photo = Image.fromarray(waves.repeat(3, 2).astype(np.uint8))
        tags = Image.Exif()
        tags[0x0112] = orientation
        (tmp_path / "set").mkdir()
        for kind in ("png", "jpg"):
            for k in range(2):
                options = {"quality": 98} if kind == "jpg" else {}
                photo.save(tmp_path / "set" / f"{k}.{kind}", exif=tags, **options)
        source = open_source(section(tmp_path / "set"), "train")
        assert len({source.image(k, shrink=4).size for k in range(len(source))}) == 2
        index = torch.arange(len(source))
        sizes = source.sizes.numpy()
        same = np.zeros(len(source), dtype=np.int64)
        draws = draw(augment, sizes, 0, same, same)
        view = View("image", (40, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
        shown = render(source, index, view, draws, augment)
        assert (shown - shown[:1]).abs().max() < 0.03

    def test_a_source_gives_the_views_that_targets_prepare_from(self, tmp_path):
        class_folders(tmp_path / "set" / "train", size=(20, 70))
        source: Images = open_source(section(tmp_path / "set"), "train")
        view = View("small", (6, 5))
        assert source.view(torch.tensor([3, 0]), view).shape == (2, 3, 6, 5)
        assert len(source.fingerprint) == 64


class TestCache:
    def make(self, tmp_path, **values):
        class_folders(tmp_path / "set" / "train")
        class_folders(tmp_path / "set" / "test")
        return section(tmp_path / "set", **values)

    def test_the_second_time_no_image_is_decoded(self, tmp_path, monkeypatch):
        data = self.make(tmp_path)
        first = open_source(data, "train")
        monkeypatch.setattr(survey, "look_at", lambda *_, **__: pytest.fail("decoded again"))
        second = open_source(data, "train")
        assert torch.equal(first.pixels, second.pixels)
        assert first.fingerprint == second.fingerprint

    @pytest.mark.parametrize("name", ["pixels.bin", "survey.npz"])
    @pytest.mark.parametrize("keep", [0.0, 0.5])
    def test_a_truncated_file_is_noticed_and_made_again(self, tmp_path, name, keep):
        data = self.make(tmp_path)
        first = open_source(data, "train").pixels.clone()
        for path in cache_folder().rglob(name):
            content = path.read_bytes()
            path.write_bytes(content[: int(keep * len(content))])
        assert torch.equal(open_source(data, "train").pixels, first)
        sizes = {path.stat().st_size for path in cache_folder().rglob("pixels.bin")}
        assert sizes == {12 * 3 * 8 * 8}

    def test_a_changed_file_is_seen(self, tmp_path):
        data = self.make(tmp_path)
        before = open_source(data, "train")
        write_image(tmp_path / "set" / "train" / "red" / "2.png", 777)
        after = open_source(data, "train")
        assert not torch.equal(before.pixels, after.pixels)
        assert before.fingerprint != after.fingerprint

    def test_writing_to_pixels_does_not_reach_the_cache(self, tmp_path):
        data = self.make(tmp_path)
        source = open_source(data, "train")
        untouched = source.pixels.clone()
        source.pixels.zero_()
        assert torch.equal(open_source(data, "train").pixels, untouched)

    @pytest.mark.slow
    def test_processes_may_open_at_the_same_time(self, tmp_path):
        data = self.make(tmp_path)
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            found = pool.starmap(fingerprint_of, [(data, "train")] * 2)
        assert set(found) == {open_source(data, "train").fingerprint}

    def test_many_images_are_looked_at_by_several_processes(self, tmp_path, monkeypatch):
        data = self.make(tmp_path)
        alone = open_source(data, "train")
        monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "other"))
        monkeypatch.setattr(survey, "_MANY", 2)
        monkeypatch.setattr(survey, "_CHUNK", 5)
        state = torch.get_rng_state()
        together = open_source(data, "train")
        assert torch.equal(torch.get_rng_state(), state)
        assert together.fingerprint == alone.fingerprint
        assert torch.equal(together.pixels, alone.pixels)

    def test_a_cache_that_cannot_be_written_is_a_clear_error(self, tmp_path, monkeypatch):
        data = self.make(tmp_path)
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "file"))
        with pytest.raises(DataError, match="Name another folder with MIMKIT_CACHE"):
            open_source(data, "train")


def fingerprint_of(data, split):
    return open_source(data, split).fingerprint


class TestFingerprint:
    def opened(self, tmp_path, name, numbers, labels):
        root = tmp_path / name
        write_parquet(root / "train-00000-of-00001.parquet", numbers, labels)
        write_parquet(root / "test-00000-of-00001.parquet", [1])
        return open_source(section(root), "train").fingerprint

    def test_it_follows_images_labels_and_order(self, tmp_path):
        one = self.opened(tmp_path, "one", [1, 2, 3], [0, 1, 2])
        assert self.opened(tmp_path, "same", [1, 2, 3], [0, 1, 2]) == one
        assert self.opened(tmp_path, "image", [1, 2, 4], [0, 1, 2]) != one
        assert self.opened(tmp_path, "label", [1, 2, 3], [0, 1, 1]) != one
        assert self.opened(tmp_path, "order", [2, 1, 3], [0, 1, 2]) != one


class TestParquet:
    def test_the_layout_of_the_hub(self, tmp_path):
        root = tmp_path / "set"
        write_parquet(root / "data" / "train-00000-of-00002.parquet", range(5))
        write_parquet(root / "data" / "train-00001-of-00002.parquet", range(5, 9))
        write_parquet(root / "data" / "validation-00000-of-00001-ab12.parquet", range(3))
        train, test = (open_source(section(root), split) for split in ("train", "test"))
        assert (len(train), len(test)) == (9, 3)
        assert train.labels.tolist() == [0, 1, 2] * 3
        assert train.classes == COLORS
        assert np.asarray(train.image(7)).tobytes() == Image.open(BytesIO(encoded(7))).tobytes()
        assert (train.note, train.origin) == ("", str(root / "data"))

    def test_the_layout_of_the_hubs_own_conversion(self, tmp_path):
        write_parquet(tmp_path / "set" / "train" / "0000.parquet", range(6))
        write_parquet(tmp_path / "set" / "test" / "0000.parquet", range(2))
        assert len(open_source(section(tmp_path / "set"), "test")) == 2

    @pytest.mark.parametrize("pattern", ["{}", "{}/*.parquet", "{}/all.parquet"])
    def test_a_file_a_pattern_or_a_folder_without_parts_is_split_by_row(self, tmp_path, pattern):
        write_parquet(tmp_path / "set" / "all.parquet", range(60))
        name = pattern.format(tmp_path / "set")
        train, test = (open_source(section(name), split) for split in ("train", "test"))
        assert (len(train), len(test)) == (54, 6)
        assert "one row of 10" in test.note
        images = {
            np.asarray(source.image(k)).tobytes()
            for source in (train, test)
            for k in range(len(source))
        }
        assert len(images) == 60

    def test_a_relative_name_is_found_from_here_and_below_data_path(self, tmp_path, monkeypatch):
        write_parquet(tmp_path / "place" / "all.parquet", range(6))
        assert len(open_source(section("place/all.parquet"), "train")) == 5
        source = open_source(section("all.parquet", path=str(tmp_path / "place")), "train")
        assert len(source) == 5
        monkeypatch.setenv("MIMKIT_DATA", str(tmp_path / "place"))
        assert len(open_source(section("all.parquet"), "train")) == 5

    def test_columns_are_found_without_the_hubs_notes(self, tmp_path):
        write_parquet(tmp_path / "a.parquet", range(6), image="picture", names=False)
        source = open_source(section("a.parquet"), "train")
        assert source.classes == ("0", "1", "2")
        table = pa.table({"id": [1, 2, 3], "jpg": [encoded(k) for k in range(3)]})
        pq.write_table(table, tmp_path / "b.parquet")
        source = open_source(section("b.parquet"), "train")
        assert len(source) == 2
        assert source.labels is None

    def test_rows_without_a_label_are_marked(self, tmp_path):
        write_parquet(tmp_path / "set" / "train.parquet", range(4), labels=[0, None, -1, 2])
        write_parquet(tmp_path / "set" / "test.parquet", range(3), labels=[-1, -1, -1])
        assert open_source(section("set"), "train").labels.tolist() == [0, -1, -1, 2]
        assert open_source(section("set"), "test").labels is None

    def test_broken_rows_are_listed(self, tmp_path):
        images = [{"bytes": encoded(1), "path": "a.png"}, {"bytes": b"x", "path": "b.png"}]
        images += [{"bytes": None, "path": "nowhere/c.png"}, {"bytes": encoded(2), "path": None}]
        pq.write_table(pa.table({"image": images * 2}), tmp_path / "all.parquet")
        train, test = (open_source(section("all.parquet"), split) for split in ("train", "test"))
        assert len(train) + len(test) == 4
        described = {item.path: item.reason for item in train.skipped + test.skipped}
        assert "row 1 (b.png)" in described or "row 0 (b.png)" in described
        assert described["nowhere/c.png"].startswith("cannot be read")

    def test_a_missing_file_of_a_series_is_noticed(self, tmp_path):
        write_parquet(tmp_path / "set" / "train-00001-of-00003.parquet", range(3))
        write_parquet(tmp_path / "set" / "test-00000-of-00001.parquet", range(3))
        with pytest.raises(DataError, match="'train' must be 3 parquet files, but 2 are missing"):
            open_source(section("set"), "train")

    def test_several_sets_in_one_folder_are_not_mixed(self, tmp_path):
        for name in ("cats", "dogs"):
            write_parquet(tmp_path / "set" / name / "train-00000-of-00001.parquet", range(3))
        with pytest.raises(DataError, match="must lie in one folder, but they lie in cats, dogs"):
            open_source(section("set"), "train")

    def test_a_damaged_file_is_named(self, tmp_path):
        path = write_parquet(tmp_path / "all.parquet", range(9))
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(DataError, match="1 parquet files must be readable"):
            open_source(section("all.parquet"), "train")

    def test_a_file_without_images_is_refused(self, tmp_path):
        pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "all.parquet")
        with pytest.raises(DataError, match="none of text, label does"):
            open_source(section("all.parquet"), "train")

    def test_a_rewritten_file_is_read_again(self, tmp_path):
        write_parquet(tmp_path / "all.parquet", range(8), size=(70, 70))
        before = open_source(section("all.parquet"), "train")
        write_parquet(tmp_path / "all.parquet", range(20, 28), size=(70, 70))
        after = open_source(section("all.parquet"), "train")
        assert np.asarray(before.image(0)).tobytes() != np.asarray(after.image(0)).tobytes()


class TestRegistered:
    def write_cifar(self, root, name="cifar10", classes=10):
        names = [str(k) for k in range(classes)]
        for split, numbers in (("train", range(6)), ("test", range(6, 9))):
            path = root / name / "plain_text" / f"{split}-00000-of-00001.parquet"
            write_parquet(path, numbers, image="img", size=(32, 32), names=names)

    def test_it_is_found_below_data_path_first_and_then_in_the_environment(
        self, tmp_path, monkeypatch
    ):
        self.write_cifar(tmp_path / "one")
        self.write_cifar(tmp_path / "two")
        monkeypatch.setenv("MIMKIT_DATA", str(tmp_path / "one"))
        assert str(tmp_path / "one") in open_source(section("cifar10"), "train").origin
        here = section("cifar10", path=str(tmp_path / "two"))
        source = open_source(here, "train")
        assert str(tmp_path / "two") in source.origin
        assert source.pixels.shape == (6, 3, 32, 32)
        assert source.mean == (0.4914, 0.4822, 0.4465)
        assert source.classes == tuple("0123456789")

    def test_data_path_may_be_its_folder_itself(self, tmp_path):
        self.write_cifar(tmp_path)
        for path in (tmp_path / "cifar10", tmp_path / "cifar10" / "plain_text"):
            assert len(open_source(section("cifar10", path=str(path)), "test")) == 3

    def test_another_set_in_its_place_is_noticed(self, tmp_path):
        self.write_cifar(tmp_path, classes=7)
        with pytest.raises(DataError, match="cifar10 has 10 classes, but this file has 7"):
            open_source(section("cifar10", path=str(tmp_path)), "train")
        path = tmp_path / "cifar10" / "plain_text"
        with pytest.raises(DataError, match="must be in a column 'fine_label'"):
            open_source(section("cifar100", path=str(path)), "train")

    def test_unlabelled_images_of_stl10_follow_the_labelled_ones(self, tmp_path):
        names = [str(k) for k in range(10)]
        data = tmp_path / "stl10" / "data"
        for split, labels in (("train", [0, 1, 2]), ("unlabeled", [-1] * 4), ("test", [5])):
            path = data / f"{split}-00000-of-00001.parquet"
            write_parquet(path, range(len(labels)), labels=labels, size=(96, 96), names=names)
        write_parquet(data / "train_9-00000-of-00001.parquet", range(9), names=names)
        source = open_source(section("stl10", path=str(tmp_path)), "train")
        assert source.labels.tolist() == [0, 1, 2, -1, -1, -1, -1]

    @pytest.mark.parametrize("path", ["{}", "{}/in224-part"])
    def test_in224_is_a_folder_of_classes(self, tmp_path, path):
        class_folders(tmp_path / "in224-part" / "train", size=(70, 80))
        class_folders(tmp_path / "in224-part" / "val", size=(70, 80))
        for name in ("in224", "in224-part"):
            if name == "in224" or path == "{}":
                source = open_source(section(name, path=path.format(tmp_path)), "test")
                assert len(source) == 12
                assert source.labels is not None

    def test_statistics_of_the_recipe_come_first(self, tmp_path):
        class_folders(tmp_path / "set")
        source = open_source(section("set"), "train")
        assert source.mean == (0.485, 0.456, 0.406)
        source = open_source(section("set", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0)), "train")
        assert (source.mean, source.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))

    def test_every_registered_set_says_where_it_is_from(self):
        names = ["CIFAR10", "CIFAR100", "STL10", "TINY_IMAGENET", "IN32", "IN224", "SHAPES"]
        for name in names:
            dataset = getattr(registered, name)
            assert dataset.name == name.lower()
            assert dataset.splits.keys() == {"train", "test"}
            assert len(dataset.mean) == len(dataset.std) == 3
            assert (dataset.hub is None) == (name == "SHAPES")
            with pytest.raises(dataclasses.FrozenInstanceError):
                dataset.name = "other"


class TestShapes:
    def test_small_pictures_are_pixels_and_large_ones_are_drawn_when_asked_for(self):
        values = {"patch_size": 16, "num_images": 30, "num_test_images": 20}
        small = open_source(DataSection(name="shapes", image_size=32, **values), "train")
        large = open_source(DataSection(name="shapes", image_size=96, **values), "train")
        assert small.pixels.shape == (30, 3, 32, 32)
        assert large.pixels is None
        assert large.image(3).size == (96, 96)
        assert torch.equal(small.labels, large.labels)
        assert small.labels.bincount().tolist() == [3] * 10
        assert small.fingerprint != large.fingerprint
        shrunk = large.image(3).bands[0].resize((32, 32), Image.Resampling.BOX)
        difference = np.asarray(shrunk).astype(int) - np.asarray(small.image(3))
        assert np.abs(difference).mean() < 12

    def test_the_two_splits_differ(self):
        data = DataSection(name="shapes", image_size=16, patch_size=4, num_images=20)
        train, test = open_source(data, "train"), open_source(data, "test")
        assert len(test) == 2000
        assert train.fingerprint != test.fingerprint

    def test_pictures_too_small_to_tell_apart_are_refused(self):
        with pytest.raises(DataError, match="image_size: must be at least 16 for 'shapes'"):
            open_source(section("shapes"), "train")


class TestOffline:
    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch):
        def refuse(*_, **__):
            raise OSError("no network here")

        monkeypatch.setattr("socket.getaddrinfo", refuse)

    @pytest.mark.parametrize("name", ["cifar10", "someone/some-images"])
    def test_one_message_gives_the_three_ways(self, name, tmp_path):
        with pytest.raises(DataError) as caught:
            open_source(section(name, path=str(tmp_path)), "train")
        message = str(caught.value)
        assert f"'{name}' must be found or downloaded" in message
        assert str(tmp_path) in message
        for way in (
            "1. --data FOLDER",
            "2. MIMKIT_DATA=FOLDER",
            "3. on a machine with network: hf ",
        ):
            assert way in message

    def test_a_name_that_is_nothing_is_corrected(self):
        with pytest.raises(
            DataError, match=r"no registered name and no path. Did you mean 'cifar10'"
        ):
            open_source(section("cifra10"), "train")

    def test_a_data_path_that_does_not_exist_is_not_passed_over(self, tmp_path):
        with pytest.raises(DataError, match=r"--data\): must be an existing folder"):
            open_source(section("cifar10", path=str(tmp_path / "nowhere")), "train")

    def test_an_earlier_download_is_used(self, tmp_path, monkeypatch):
        def downloaded(hub, **options):
            assert hub == "someone/some-images"
            assert options["repo_type"] == "dataset"
            assert "*.parquet" in options["allow_patterns"]
            write_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet", range(4))
            write_parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", range(2))
            return str(tmp_path / "hub")

        monkeypatch.setattr("huggingface_hub.snapshot_download", downloaded)
        assert len(open_source(section("someone/some-images"), "train")) == 4


@pytest.mark.skipif(
    not REAL_DATA or not Path(REAL_DATA, "cifar10").is_dir(), reason="MIMKIT_DATA has no cifar10"
)
@pytest.mark.slow
def test_the_statistics_of_cifar10_are_those_of_its_pixels():
    data = DataSection(name="cifar10", path=REAL_DATA, image_size=32, patch_size=8)
    source = open_source(data, "test")
    assert len(source) == 10_000
    assert source.labels.bincount().tolist() == [1000] * 10
    pixels = source.pixels.double() / 255
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(source.mean).double(), atol=0.01)
    assert torch.allclose(pixels.std((0, 2, 3)), torch.tensor(source.std).double(), atol=0.01)


def test_splits_that_are_alike_share_a_line_and_others_do_not():
    section = DataSection(name="shapes", image_size=16, patch_size=4, num_images=20)
    train, test = open_sources(section)
    (line,) = described(train, test)
    assert line.startswith(
        f"shapes: 20 train and {len(test):,} test images of 16 x 16 px, 10 classes"
    )
    lines = described(train, dataclasses.replace(test, name="others"))
    assert lines == [train.describe(), dataclasses.replace(test, name="others").describe()]
