"""A file given as data: archives and tables are opened, all others are named for what they are."""

import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from mimkit.cli import app
from mimkit.data.intake.locate import Wanted, labels_key, locate
from mimkit.data.opening import open_labelled, open_sources
from mimkit.errors import DataError
from mimkit.recipe.sections import DataSection


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def png(number=0):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 1, 2)).save(file, "PNG")
    return file.getvalue()


FILES = {
    f"{split}/{name}/{k}.png": png(k)
    for split in ("train", "val")
    for name in "ab"
    for k in range(3)
}


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def write_gz(path, files):
    return write_tar(path, files, "w:gz")


def opened(name, **options):
    listings = locate(Wanted("data.name", str(name), None, None, cache=Path("cache"), **options))
    return {split: listing.read(Path("cache")) for split, listing in listings.items()}


@pytest.mark.parametrize(
    ("name", "make"), [("a.zip", write_zip), ("a.tar", write_tar), ("a.tar.gz", write_gz)]
)
@pytest.mark.parametrize("top", ["", "pictures/"])
def test_archives_are_unpacked_once_and_read_as_folders(tmp_path, capfd, name, make, top):
    make(tmp_path / name, {top + path: content for path, content in FILES.items()})
    for time in range(2):
        found = opened(name)
        assert {split: len(table) for split, table in found.items()} == {"train": 6, "test": 6}
        assert found["train"].classes == ("a", "b")
        assert np.bincount(found["test"].labels).tolist() == [3, 3]
        said = capfd.readouterr().err
        assert ("unpacking 12 files" in said) == (time == 0)


def test_what_leads_out_of_an_archive_is_left_in_it(tmp_path):
    bad = {"../out.png": png(), "/abs.png": png(), "a/../../up.png": png()}
    write_zip(tmp_path / "a.zip", {**FILES, **bad})
    with tarfile.open(write_tar(tmp_path / "a.tar", {**FILES, **bad}), "a") as file:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"train/a/link{kind.decode()}.png")
            link.type, link.linkname = kind, "/etc/passwd"
            file.addfile(link)
    for name in ("a.zip", "a.tar"):
        assert {split: len(table) for split, table in opened(name).items()} == {
            "train": 6,
            "test": 6,
        }
    made = {path.name for path in tmp_path.rglob("*.png")}
    assert made == {"0.png", "1.png", "2.png"}
    assert not Path("/abs.png").exists()


def test_a_link_in_a_zip_is_no_image(tmp_path):
    with zipfile.ZipFile(write_zip(tmp_path / "a.zip", FILES), "a") as file:
        link = zipfile.ZipInfo("train/a/link.png")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    assert len(opened("a.zip")["train"]) == 6


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": b"x", "b.heic": b"x"}, "must hold images or parquet files, but its 2 files"),
        ({}, "its 0 files are none"),
    ],
)
def test_an_archive_without_images_is_refused(tmp_path, files, message):
    write_zip(tmp_path / "a.zip", files)
    with pytest.raises(DataError, match=message):
        opened("a.zip")
    assert [*(tmp_path / "cache" / "unpacked").iterdir()] == []


def test_a_damaged_archive_is_named_and_leaves_nothing(tmp_path):
    path = write_zip(tmp_path / "a.zip", FILES)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"a\.zip: must be an archive that can be unpacked"):
        opened("a.zip")
    content = bytearray(write_zip(tmp_path / "b.zip", FILES).read_bytes())
    content[60:80] = b"\0" * 20
    (tmp_path / "b.zip").write_bytes(content)
    with pytest.raises(DataError, match="must be an archive that can be unpacked"):
        opened("b.zip")
    assert [*(tmp_path / "cache" / "unpacked").iterdir()] == []


def test_a_cache_that_is_too_small_is_told_before_anything_is_written(tmp_path, monkeypatch):
    write_zip(tmp_path / "a.zip", FILES)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(DataError, match=r"the cache has only 0\.0 GiB left.*MIMKIT_CACHE"):
        opened("a.zip")


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    write_zip(tmp_path / "a.zip", FILES)
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(DataError, match=r"must be unpacked into .* MIMKIT_CACHE"):
        opened("a.zip")


def write_heic(path):
    path.write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 100)


def write_five_bands(path):
    tags = [
        (256, 8),
        (257, 8),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 200),
        (277, 5),
        (278, 8),
        (279, 320),
    ]
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    content = b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 0)
    path.write_bytes(content.ljust(200, b"\0") + bytes(320))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        (
            "a.png",
            lambda path: path.write_bytes(png()),
            r"one image \(PNG, 8 x 8 px, 3 bands\); giv",
        ),
        ("a.heic", write_heic, "a HEIC photograph; convert it to JPEG"),
        ("a.tif", write_five_bands, r"5 bands"),
        ("a.7z", lambda path: path.write_bytes(b"7z\xbc\xaf\x27\x1c" + b"\0" * 50), "unpack it"),
        ("a.npy", lambda path: np.save(path, np.zeros((2, 8, 8, 3))), "one array of numpy"),
        ("a.h5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 50), "an HDF5"),
        ("a.pkl", lambda path: path.write_bytes(b"\x80\x04N."), "pickled Python"),
        ("a.json", lambda path: path.write_text("{}"), "JSON; a table"),
        ("a.bin", lambda path: path.write_bytes(b"12345"), "a file of an unknown kind"),
        ("a.png", lambda path: path.write_bytes(b""), "an empty file"),
    ],
)
def test_a_file_that_is_no_data_set_is_named_for_what_it_is(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(DataError, match=message) as error:
        opened(name)
    assert str(error.value).startswith(f"data.name: '{name}' must be a folder of images")


def test_a_folder_of_other_files_says_what_they_are(tmp_path):
    (tmp_path / "set").mkdir()
    for k in range(3):
        write_heic(tmp_path / "set" / f"{k}.heic")
    with pytest.raises(
        DataError, match=r"holds none. Its files are 3 .heic. A .heic file is a HEIC"
    ):
        opened("set")
    write_zip(tmp_path / "other.zip", FILES)
    (tmp_path / "zipped").mkdir()
    (tmp_path / "other.zip").rename(tmp_path / "zipped" / "a.zip")
    with pytest.raises(DataError, match="Name the archive itself, or unpack it"):
        opened("zipped")


class TestTablesOfLabels:
    @pytest.fixture
    def images(self, tmp_path):
        for k in range(30):
            (tmp_path / "pics").mkdir(exist_ok=True)
            (tmp_path / "pics" / f"{k}.png").write_bytes(png(k))
        rows = [f"pics/{k}.png,{'ab'[k % 2]}" for k in range(20)]
        (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
        return tmp_path

    def labels(self, table):
        known = {
            Path(table.where(k)).stem: table.classes[v]
            for k, v in enumerate(table.labels)
            if v >= 0
        }
        return {int(stem): name for stem, name in known.items()}

    def test_the_table_itself_is_the_data_set(self, images):
        found = opened("labels.csv")
        assert {split: len(table) for split, table in found.items()} == {"train": 18, "test": 2}
        both = self.labels(found["train"]) | self.labels(found["test"])
        assert both == {k: "ab"[k % 2] for k in range(20)}
        wanted = Wanted("data.name", "labels.csv", None, None, cache=Path("cache"))
        assert locate(wanted)["train"].skipped[0].reason.startswith("10 images not used")

    def test_a_labelled_validation_split_beats_an_unlabelled_test_split(self, tmp_path):
        paths = [f"{split}/{k}.png" for split in ("train", "val", "test") for k in range(4)]
        for path in paths:
            (tmp_path / "pics" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "pics" / path).write_bytes(png())
        rows = [f"{path},{'ab'[k % 2]}" for k, path in enumerate(paths[:8])]
        (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
        found = opened("pics", labels="labels.csv")
        assert {Path(found["test"].where(k)).parent.name for k in range(4)} == {"val"}
        assert np.bincount(found["test"].labels).tolist() == [2, 2]

    def test_parquet_that_names_files_is_such_a_table(self, images):
        rows = {"image": [f"pics/{k}.png" for k in range(20)], "label": [k % 2 for k in range(20)]}
        pq.write_table(pa.table(rows), images / "labels.parquet")
        assert sum(map(len, opened("labels.parquet").values())) == 20
        assert labels_key("labels.parquet") == "labels"

    def test_the_recipe_names_it_beside_the_images(self, images):
        data = DataSection(name="pics", labels="labels.csv", image_size=8, patch_size=4)
        train, test = open_sources(data)
        assert (len(train), len(test)) == (27, 3)
        assert train.classes == test.classes == ("a", "b")
        assert int((train.labels >= 0).sum() + (test.labels >= 0).sum()) == 20
        assert "images without a label" in train.describe()
        assert "labels.csv: files in column 'file', labels in 'label'" in train.describe()

    def test_it_may_label_the_labelled_set_alone(self, images):
        data = DataSection(
            name="shapes", labelled="pics", labels="labels.csv", image_size=16, patch_size=4
        )
        assert sum(map(len, open_labelled(data))) == 30
        assert len(open_sources(data)[0].classes) == 10

    def test_one_that_is_nowhere_is_told_by_its_key(self, images):
        data = DataSection(name="pics", labels="none.csv", image_size=8, patch_size=4)
        with pytest.raises(DataError, match=r"data\.labels: .* 'none.csv' is no file"):
            open_sources(data)

    def test_a_table_beside_a_table_is_refused(self, images):
        pq.write_table(pa.table({"image": [png(k) for k in range(5)]}), images / "a.parquet")
        data = DataSection(name="a.parquet", labels="labels.csv", image_size=8, patch_size=4)
        with pytest.raises(DataError, match=r"a.parquet is a table itself.*data\.label_column"):
            open_sources(data)

    @pytest.mark.parametrize(
        ("path", "key"),
        [("x.csv", "labels"), ("x.TSV", "labels"), ("x.jsonl", "labels"), ("folder", "labelled"),
         ("cifar10", "labelled"), ("x.zip", "labelled"), ("x.parquet", "labelled")],
    )  # fmt: skip
    def test_the_option_tells_tables_from_labelled_sets(self, path, key):
        assert labels_key(path) == key

    def test_run_takes_it(self, images, tiny):
        settings = ["data.name=pics", "train.total_steps=0", "evaluate=[{part='knn',k=3}]"]
        settings += ["data.num_images=20", "data.num_test_images=3"]
        arguments = [text for each in settings for text in ("--set", each)]
        command = ["run", str(tiny), *arguments, "--labels", "labels.csv", "--device", "cpu"]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        assert "2 classes (a, b)" in done.output
