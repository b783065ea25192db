"""A packed data set is the data set: the same images, labels, classes, masks and splits."""

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from mimkit.cli import app
from mimkit.data.cache import folder as cache_folder
from mimkit.data.intake.locate import Wanted, locate
from mimkit.data.intake.tar_writer import verify
from mimkit.data.opening import open_sources
from mimkit.data.packing import pack
from mimkit.errors import DataError
from mimkit.recipe.sections import DataSection

MIB = 2**20


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def encoded(number, kind="PNG", mode="RGB"):
    file = io.BytesIO()
    rng = np.random.default_rng(number)
    shape = (20, 16, 3) if mode == "RGB" else (20, 16)
    Image.fromarray(rng.integers(0, 4, shape, dtype=np.uint8), mode).save(file, kind)
    return file.getvalue()


def write_folder(root, *, splits=("train", "val"), each=5, classes=("an ant", "bee.x", "cow")):
    for split in splits:
        for label, name in enumerate(classes):
            for k in range(each):
                number = 100 * label + k + 1000 * splits.index(split)
                kind = ("PNG", "JPEG", "WEBP")[k % 3]
                path = root / split / name / f"{k} é.{kind.lower()}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(number, kind))
    return root


def tables(name):
    listings = locate(Wanted("data.name", str(name), None, None, cache=cache_folder()))
    return {split: listing.read(cache_folder()) for split, listing in listings.items()}


def held(table):
    labels = None if table.labels is None else table.labels.tolist()
    return [table.content(row) for row in range(len(table))], labels, table.classes


def assert_alike(name, other):
    one, two = tables(name), tables(other)
    for split in ("train", "test"):
        assert held(one[split]) == held(two[split])


@pytest.mark.parametrize("splits", [("train", "val"), ("pictures",)])
def test_a_folder_and_its_shards_are_the_same_data_set(tmp_path, splits):
    write_folder(tmp_path / "set", splits=splits)
    shards = pack("set", tmp_path / "out", shard_bytes=8_000)
    assert len(shards) > 3
    if splits == ("train", "val"):
        assert_alike("set", "out")
    else:  # what was held out is so for good
        one, two = tables("set"), tables("out")
        assert held(one["test"])[:2] == held(two["test"])[:2]
        assert held(one["train"]) == held(two["train"])
    # Opened, they cannot be told apart but by their place.
    section = DataSection(name="set", image_size=8, patch_size=4)
    for one, two in zip(
        open_sources(section), open_sources(section.model_copy(update={"name": "out"})), strict=True
    ):
        assert one.fingerprint == two.fingerprint
        assert one.classes == two.classes


def test_parquet_is_packed_with_endings_after_its_contents(tmp_path):
    images = [{"bytes": encoded(k, ("PNG", "JPEG")[k % 2]), "path": None} for k in range(30)]
    table = pa.table({"image": images, "label": [k % 3 for k in range(30)]})
    pq.write_table(table, tmp_path / "train.parquet")
    pack("train.parquet", tmp_path / "out")
    assert_alike("train.parquet", "out")
    names = {Path(tables("out")["train"].where(k)).suffix for k in range(27)}
    assert names == {".png", ".jpeg"}


def test_unlabelled_images_and_those_without_a_label_stay_so(tmp_path):
    write_folder(tmp_path / "set")
    for k in range(3):
        (tmp_path / "set" / "train" / f"stray{k}.png").write_bytes(encoded(50 + k))
    pack("set", tmp_path / "out")
    assert_alike("set", "out")
    assert sum(label < 0 for label in tables("out")["train"].labels) == 3
    for k in range(12):
        (tmp_path / "plain").mkdir(exist_ok=True)
        (tmp_path / "plain" / f"{k}.png").write_bytes(encoded(k))
    pack("plain", tmp_path / "out2")
    assert_alike("plain", "out2")
    assert tables("out2")["train"].labels is None


def test_masks_and_their_names_are_packed(tmp_path):
    for split in ("train", "val"):
        for k in range(4):
            for folder, content in (("images", encoded(k)), ("masks", encoded(k, mode="L"))):
                path = tmp_path / "set" / folder / split / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    (tmp_path / "set" / "classes.txt").write_text("ground\ncat\ndog\nowl\n")
    pack("set", tmp_path / "out")
    section = DataSection(name="set", image_size=8, patch_size=4)
    for one, two in zip(
        open_sources(section), open_sources(section.model_copy(update={"name": "out"})), strict=True
    ):
        assert one.masks.classes == two.masks.classes == ("ground", "cat", "dog", "owl")
        for k in range(4):
            assert np.array_equal(one.masks(k), two.masks(k))


def sums(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")
    }


def test_what_was_interrupted_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    write_folder(tmp_path / "set", each=12)
    pack("set", tmp_path / "whole", shard_bytes=10_000)
    expected = sums(tmp_path / "whole")
    calls = []

    def interrupted(path, name, digests):
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        verify(path, name, digests)

    monkeypatch.setattr("mimkit.data.packing.verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack("set", tmp_path / "out", shard_bytes=10_000)
    assert len(sums(tmp_path / "out")) == 2
    with (tmp_path / "out" / "shards.jsonl").open("a") as file:
        file.write('{"file": "train-0')  # as a kill may leave it
    pack("set", tmp_path / "out", shard_bytes=10_000)
    assert sums(tmp_path / "out") == expected
    assert len(calls) == 3 + len(expected) - 2
    # What is whole is left alone, what is lost is written again.
    (tmp_path / "out" / "train-000001.tar").unlink()
    pack("set", tmp_path / "out", shard_bytes=10_000)
    assert sums(tmp_path / "out") == expected
    assert len(calls) == 3 + len(expected) - 2 + 1
    listed = (tmp_path / "out" / "SHA256SUMS").read_text().split()
    assert dict(zip(listed[1::2], listed[::2], strict=True)) == expected
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_a_process_that_is_killed_leaves_what_the_next_goes_on_with(tmp_path):
    write_folder(tmp_path / "set", each=12)
    pack("set", tmp_path / "whole", shard_bytes=10_000)
    code = (
        "import os, signal, mimkit.data.packing as p\n"
        "kept = p.verify\n"
        "def verify(path, name, digests):\n"
        "    if name.name == 'train-000002.tar': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    kept(path, name, digests)\n"
        "p.verify = verify\n"
        "p.pack('set', p.Path('out'), shard_bytes=10_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == -9
    pack("set", tmp_path / "out", shard_bytes=10_000)
    assert sums(tmp_path / "out") == sums(tmp_path / "whole")


def test_a_disk_that_writes_other_bytes_is_noticed(tmp_path, monkeypatch):
    write_folder(tmp_path / "set")

    def wrong(path, name, digests):
        content = bytearray(path.read_bytes())
        content[600] ^= 1
        path.write_bytes(content)
        verify(path, name, digests)

    monkeypatch.setattr("mimkit.data.packing.verify", wrong)
    with pytest.raises(DataError, match=r"train-000000\.tar: must read back as it was written"):
        pack("set", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))


def test_other_data_another_size_and_foreign_folders_are_refused(tmp_path):
    write_folder(tmp_path / "set")
    pack("set", tmp_path / "out")
    with pytest.raises(DataError, match="but its shards are of 128 MB"):
        pack("set", tmp_path / "out", shard_bytes=MIB)
    (tmp_path / "set" / "train" / "cow" / "new.png").write_bytes(encoded(9))
    with pytest.raises(DataError, match="but its images or labels have changed"):
        pack("set", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(DataError, match=r"must be empty or made by mimkit pack, but holds thesis"):
        pack("set", tmp_path / "mine")
    with pytest.raises(DataError, match="'shapes' is drawn"):
        pack("shapes", tmp_path / "new")
    (tmp_path / "odd" / "train" / "a\nb").mkdir(parents=True)
    (tmp_path / "odd" / "train" / "c").mkdir()
    for k in range(3):
        for name in ("a\nb", "c"):
            (tmp_path / "odd" / "train" / name / f"{k}.png").write_bytes(encoded(k))
    with pytest.raises(DataError, match="a class is called 'a\\\\nb'"):
        pack("odd/train", tmp_path / "new")


def test_images_that_cannot_be_read_are_told_and_left_out(tmp_path, capsys):
    write_folder(tmp_path / "set")
    (tmp_path / "set" / "train" / "cow" / "gone.png").symlink_to(tmp_path / "nowhere")
    written = pack("set", tmp_path / "out")
    assert "1 image cannot be read and is left out" in capsys.readouterr().out
    assert [Path(path).name for each in written for path in each.unread] == ["gone.png"]
    assert len(tables("out")["train"]) == 15


def test_the_command_says_what_it_made_and_how_to_use_it(tmp_path):
    write_folder(tmp_path / "set")
    found = CliRunner().invoke(app, ["pack", "set", "--out", "out", "--shard-mb", "1"])
    assert found.exit_code == 0, found.output
    assert "packed 15 train and 15 test images in 2 shards" in found.output
    assert "data.name = 'out'" in found.output
    journal = (tmp_path / "out" / "shards.jsonl").read_text()
    entries = [json.loads(line) for line in journal.splitlines()]
    assert [entry.get("file") for entry in entries] == [None, "train-000000.tar", "test-000000.tar"]
    wrong = CliRunner().invoke(app, ["pack", "nowhere", "--out", "out2"])
    assert wrong.exit_code == 2
    assert not (tmp_path / "out2").exists()
