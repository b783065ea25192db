"""Images in tar shards, as WebDataset and Hugging Face's `datasets` read them."""

import gzip
import importlib
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mimkit.data.intake.columns import Asked
from mimkit.data.intake.copies import Copies, limit_bytes
from mimkit.data.intake.locate import Wanted, locate
from mimkit.data.intake.shard_names import gaps, grouped_shards
from mimkit.data.intake.tars import index_tar
from mimkit.data.intake.urls import ShardFile, braces, local_file
from mimkit.data.opening import open_sources
from mimkit.errors import DataError
from mimkit.recipe.sections import DataSection


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def png(number, size=8):
    file = io.BytesIO()
    Image.new("RGB", (size, size), (number % 256, number // 256, 2)).save(file, "PNG")
    return file.getvalue()


def number_of(content):
    red, green, _ = Image.open(io.BytesIO(content)).getpixel((0, 0))
    return red + 256 * green


def write_tar(path, files, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as file:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def samples(numbers, **fields):
    """Files of samples: an image, and what ``fields`` make of its number."""
    for number in numbers:
        yield f"{number:06d}.png", png(number)
        for name, make in fields.items():
            yield f"{number:06d}.{name}", make(number)


def cls(number):
    return str(number % 3).encode()


def write_set(folder, *, shards=3, count=4, kind=".tar", mode="w", **fields):
    fields = fields or {"cls": cls}
    for split, first in (("train", 0), ("test", 500)):
        for k in range(shards):
            numbers = range(first + k * count, first + (k + 1) * count)
            write_tar(folder / f"{split}-{k:04d}{kind}", samples(numbers, **fields), mode)
    return folder


def opened(name, **options):
    listings = locate(Wanted("data.name", str(name), None, None, cache=Path("cache"), **options))
    return {split: (listing, listing.read(Path("cache"))) for split, listing in listings.items()}


def numbers_and_labels(table):
    labels = [-1] * len(table) if table.labels is None else table.labels.tolist()
    names = [table.classes[label] if label >= 0 else None for label in labels]
    numbers = [number_of(table.content(row)) for row in range(len(table))]
    return list(zip(numbers, names, strict=True))


@pytest.mark.parametrize(("kind", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_a_folder_of_shards_has_its_splits_images_and_labels(tmp_path, kind, mode):
    write_set(tmp_path / "set", kind=kind, mode=mode)
    for _ in range(2):  # the second time from what is kept
        found = opened("set")
        for split, first in (("train", 0), ("test", 500)):
            listing, table = found[split]
            expected = [(k, str(k % 3)) for k in range(first, first + 12)]
            assert numbers_and_labels(table) == expected
            assert (listing.skipped, listing.note) == ((), "")
            assert table.ends().tolist() == [4, 8, 12]
            assert table.where(5) == f"{tmp_path}/set/{split}-0001{kind}/{first + 5:06d}.png"
    again = pickle.loads(pickle.dumps(table))
    assert again.content(3) == table.content(3)
    assert len(pickle.dumps(table)) < 3_000


def test_samples_are_those_that_datasets_reads(tmp_path):
    files = [
        *(("a/b/01.jpg", png(1)), ("a/b/01.json", b'{"label": "ant", "w": 1}')),
        *(("a/b/02.seg.png", png(2)), ("a/b/02.jpg", png(3)), ("a/b/02.json", b'{"label": "bee"}')),
        *(("c/01.JPG", png(4)), ("c/01.json", b'{"label": "ant", "x": [1]}')),
    ]
    path = write_tar(tmp_path / "set" / "train-0.tar", files)
    builder = datasets.packaged_modules._PACKAGED_DATASETS_MODULES["webdataset"][0]
    builder = importlib.import_module(builder).WebDataset
    with tarfile.open(path) as file:
        pairs = [(info.name, file.extractfile(info)) for info in file]
        theirs = list(builder._get_pipeline_from_tar(str(path), pairs))
    with path.open("rb") as file:
        found = index_tar(file, Asked())
        content = [path.read_bytes()[offset:][:size] for offset, size in found.spans]
    assert [name.rpartition(".")[0] for name in found.names] == [e["__key__"] for e in theirs]
    assert content == [example.get("jpg", example.get("JPG")) for example in theirs]
    assert found.labels["label"] == tuple(example["json"]["label"] for example in theirs)
    assert found.masks[:, 1].tolist() == [-1, len(png(2)), -1]
    assert found.problem == ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it closes no file
def test_samples_and_labels_are_those_that_webdataset_reads(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "train-%03d.tar"), maxcount=5, verbose=0) as sink:
        for k in range(13):
            sink.write({"__key__": f"x/{k:03d}", "png": png(k), "cls": k % 4, "json": {"a": k}})
    shards = sorted(map(str, tmp_path.glob("*.tar")))
    theirs = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    expected = [(number_of(each["png"]), each["cls"].decode()) for each in theirs]
    (_, train), (_, test) = opened(tmp_path).values()
    ours = sorted(numbers_and_labels(train) + numbers_and_labels(test))
    assert ours == expected == [(k, str(k % 4)) for k in range(13)]


def test_labels_are_found_in_json_named_by_key_and_turned_off(tmp_path):
    names = ("ant", "bee", "cow")
    write_set(
        tmp_path / "set",
        json=lambda n: json.dumps({"label": names[n % 3], "kind": n % 2, "url": "x"}).encode(),
        txt=lambda n: f"a caption {n}".encode(),
    )
    found = opened("set")
    assert numbers_and_labels(found["train"][1])[:3] == [(0, "ant"), (1, "bee"), (2, "cow")]
    assert found["train"][0].note == "labels are those of 'label' (data.label_column)"
    assert opened("set", label_column="kind")["train"][1].classes == ("0", "1")
    assert opened("set", label_column="txt")["test"][1].classes[0] == "a caption 0"
    assert opened("set", label_column="none")["train"][1].labels is None
    with pytest.raises(DataError, match=r"'lable' must be a field of samples.*mean 'label'\?"):
        opened("set", label_column="lable")
    with pytest.raises(DataError, match=r"must hold images called 'pngg'.*mean 'png'\?"):
        opened("set", image_column="pngg")
    with pytest.raises(DataError, match="is a shard of images itself"):
        opened("set", labels="labels.csv")


def test_samples_without_a_label_count_as_unlabelled_and_captions_are_told(tmp_path):
    files = [*samples(range(20)), *samples(range(20, 40), cls=cls)]
    write_tar(tmp_path / "set" / "train-0.tar", files)
    write_tar(tmp_path / "set" / "val-0.tar", samples(range(60, 62), txt=lambda _: b"cat"))
    (train, table), (_, test) = opened("set").values()
    assert [label for _, label in numbers_and_labels(table)][18:22] == [None, None, "2", "0"]
    assert test.labels is None
    assert train.note == ""
    write_tar(tmp_path / "other" / "train-0.tar", samples(range(30), txt=lambda _: b"cat"))
    note = opened("other")["train"][0].note
    assert "no labels: samples hold png, txt, none of which" in note
    assert "no test part: one image of 10" in note


def test_names_beside_shards_name_the_classes(tmp_path):
    write_set(tmp_path / "set")
    (tmp_path / "set" / "classes.txt").write_text("red ant\nbee\ncow\n")
    assert opened("set")["test"][1].classes == ("red ant", "bee", "cow")
    (tmp_path / "set" / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(DataError, match=r"must name every class .* holds 2, but names only 2"):
        opened("set")


@pytest.mark.parametrize("pattern", ["set/train-*.tar", "set/train-{0000..0002}.tar"])
def test_patterns_choose_shards(tmp_path, pattern):
    write_set(tmp_path / "set")
    train, test = (table for _, table in opened(pattern).values())
    assert len(train) + len(test) == 12


def test_one_shard_is_read_in_place_and_an_archive_of_folders_is_unpacked(tmp_path):
    write_tar(tmp_path / "one.tar", samples(range(20), cls=cls))
    assert opened("one.tar")["train"][1].classes == ("0", "1", "2")
    assert not (tmp_path / "cache" / "unpacked").exists()
    write_tar(tmp_path / "two.tar", [(f"train/{k % 2}/{k}.png", png(k)) for k in range(20)])
    assert opened("two.tar")["train"][1].classes == ("0", "1")
    assert (tmp_path / "cache" / "unpacked").exists()


def test_missing_cut_and_damaged_shards_are_named_and_the_others_used(tmp_path):
    folder = write_set(tmp_path / "set", shards=6)
    (folder / "train-0002.tar").unlink()
    cut = folder / "train-0001.tar"
    with tarfile.open(cut) as file:
        third = file.getmembers()[4]
    cut.write_bytes(cut.read_bytes()[: third.offset_data + 10])
    damaged = folder / "train-0003.tar"
    content = bytearray(damaged.read_bytes())
    content[third.offset : third.offset + 20] = b"\xff" * 20
    damaged.write_bytes(content)
    (folder / "train-0004.tar").write_bytes(b"")
    listing, table = opened("set")["train"]
    told = {Path(item.path).name: item.reason for item in listing.skipped}
    assert told == {
        "train-0001.tar": "is cut; its 1 images before that are used",
        "train-0002.tar": "is missing",
        "train-0003.tar": "is damaged after 4,096 bytes; its 1 images before that are used",
        "train-0004.tar": "is empty",
    }
    assert [number for number, _ in numbers_and_labels(table)] == [*range(5), 12, *range(20, 24)]
    listing, _ = opened("set/train-{0005..0007}.tar")["train"]
    assert [(Path(i.path).name, i.reason) for i in listing.skipped] == [
        ("train-0006.tar", "is missing"),
        ("train-0007.tar", "is missing"),
    ]


def test_a_packed_shard_that_is_cut_is_used_as_far_as_it_goes(tmp_path):
    content = np.random.default_rng(0).bytes(200_000)
    files = [item for k in range(6) for item in ((f"{k}.png", png(k)), (f"{k}.bin", content))]
    path = write_tar(tmp_path / "set" / "train-0.tar.gz", files, "w:gz")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    listing, table = opened("set")["train"]
    assert 1 <= len(table) <= 3
    assert "is cut; its" in listing.skipped[0].reason


@settings(max_examples=60)
@given(st.integers(0, 20_480), st.binary(min_size=1, max_size=600))
def test_no_damage_raises_or_gives_bytes_of_no_sample(where, noise):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as file:
        for name, content in samples(range(8), cls=cls):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    content = whole.getvalue()
    cut = index_tar(io.BytesIO(content[:where]), Asked())
    assert bool(cut.problem) == (where < 8 * 4 * 512 + 512)  # a block of zeros closes a tar
    for k, (offset, size) in enumerate(cut.spans):
        assert content[offset : offset + size] == png(k)
    damaged = bytearray(content)
    damaged[where : where + len(noise)] = noise
    found = index_tar(io.BytesIO(bytes(damaged[: len(content)])), Asked())
    assert all(offset + size <= len(content) for offset, size in found.spans)


def test_a_shard_that_becomes_shorter_stops_what_reads_it(tmp_path):
    folder = write_set(tmp_path / "set", shards=1)
    table = opened("set")["train"][1]
    with (folder / "train-0000.tar").open("r+b") as file:
        file.truncate(700)
    with pytest.raises(OSError, match="the shard has become shorter"):
        table.content(3)


def test_an_index_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    write_set(tmp_path / "set", shards=8)
    seen = []

    def index(file, asked):
        seen.append(Path(file.name).name)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return index_tar(file, asked)

    monkeypatch.setattr("mimkit.data.intake.shard_sets.index_tar", index)
    with pytest.raises(KeyboardInterrupt):
        opened("set")
    assert len(opened("set")["train"][1]) == 32
    assert len(seen) == 16 + 1  # one was begun twice
    opened("set")
    assert len(seen) == 16 + 1


def test_shards_that_changed_are_looked_at_again(tmp_path):
    folder = write_set(tmp_path / "set")
    before = opened("set")["train"][0].stamp
    write_tar(folder / "train-0000.tar", samples(range(90, 99), cls=cls))
    listing, table = opened("set")["train"]
    assert listing.stamp != before
    assert len(table) == 9 + 8


def test_masks_in_shards_belong_to_their_images(tmp_path):
    def mask(number):
        file = io.BytesIO()
        Image.new("L", (8, 8), number % 3).save(file, "PNG")
        return file.getvalue()

    write_set(tmp_path / "set", **{"mask.png": mask})
    (tmp_path / "set" / "mask-classes.txt").write_text("ground\ncat\ndog\n")
    section = DataSection(name="set", image_size=8, patch_size=4)
    train, test = open_sources(section)
    assert train.masks.classes == test.masks.classes == ("ground", "cat", "dog")
    assert opened("set", masks="none")["train"][1].masks is None


def test_copies_stay_within_their_limit_and_those_in_use_stay_longest(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMKIT_CACHE_GB", "0.00001")  # 10 kB
    copies, made = Copies(tmp_path / "copies"), []

    def path(name):
        def write(to):
            made.append(name)
            to.write_bytes(b"x" * 4_000)

        return copies.path(ShardFile(name, 4_000, ""), "tar", write)

    first = path("a")
    path("b")
    os.utime(path("b"), (1, 1))
    path("c")
    assert first.exists()
    assert made == ["a", "b", "c"]
    held = [each for each in (tmp_path / "copies").iterdir() if each.suffix == ".tar"]
    assert len(held) == 2
    path("b")
    assert made == ["a", "b", "c", "b"]


def test_the_limit_must_be_a_number(tmp_path, monkeypatch):
    monkeypatch.delenv("MIMKIT_CACHE_GB", raising=False)
    assert limit_bytes(tmp_path, 2 * 10**15) > 10**15
    monkeypatch.setenv("MIMKIT_CACHE_GB", "2.5")
    assert limit_bytes(tmp_path, 0) == 2_500_000_000
    for wrong in ("many", "0", "-1", "nan"):
        monkeypatch.setenv("MIMKIT_CACHE_GB", wrong)
        with pytest.raises(DataError, match="MIMKIT_CACHE_GB: must be a number above 0"):
            limit_bytes(tmp_path, 0)


def test_packed_shards_that_do_not_fit_together_are_unpacked_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMKIT_CACHE_GB", "0.000025")  # two shards of 10 kB
    monkeypatch.setattr("mimkit.data.intake.shards._OPEN", 1)
    write_set(tmp_path / "set", shards=6, kind=".tar.gz", mode="w:gz")
    _, table = opened("set")["train"]
    assert [n for n, _ in numbers_and_labels(table)] == list(range(24))
    assert [n for n, _ in numbers_and_labels(table)] == list(range(24))
    copies = tmp_path / "cache" / "shards" / "copies"
    assert sum(each.stat().st_size for each in copies.glob("*.tar")) <= 25_000


def test_braces_are_those_of_braceexpand():
    braceexpand = pytest.importorskip("braceexpand")
    for pattern in ("a-{000..011}.tar", "{8..12}", "{a,b}/{1..2}.tar", "{09..10}x", "plain"):
        assert braces(pattern) == list(braceexpand.braceexpand(pattern))
    for wrong in ("a{0..3", "a}b", "{a,{b,c}}"):
        with pytest.raises(DataError, match="braces must come in pairs"):
            braces(wrong)
    with pytest.raises(DataError, match="at most 1,000,000 files"):
        braces("{0..9999999}")


def file(url):
    return ShardFile(url, 0, "")


def test_shards_are_grouped_by_words_for_splits():
    urls = [
        *("s3://b/x/train/shard-0.tar", "s3://b/x/train/shard-1.tar", "s3://b/x/val/shard-0.tar"),
        *(
            "s3://b/x/imagenet1k-test-00.tar",
            "s3://b/x/dev-00000-of-00002.tar.gz",
            "s3://b/x/7.tar",
        ),
    ]
    groups = grouped_shards([file(url) for url in urls], "s3://b/x")
    assert {name: len(files) for name, files in groups.items()} == {
        **{"train": 2, "val": 1, "imagenet1k-test": 1, "dev": 1, "x": 1}
    }


def test_gaps_in_numbers_are_missing_shards_but_years_are_not():
    def missing(*names):
        return [item.path for item in gaps([file(f"d/{name}.tar") for name in names])]

    assert missing("a-0", "a-1", "a-3") == ["d/a-2.tar"]
    assert missing("a-09", "a-11") == ["d/a-10.tar"]
    assert missing("a-00000-of-00003", "a-00002-of-00003") == ["d/a-00001-of-00003.tar"]
    assert missing("2003", "2007", "2012") == []
    assert missing("a", "b") == []


def test_what_is_no_shard_of_images_is_told(tmp_path):
    write_tar(tmp_path / "set" / "train-0.tar", [("a.flac", b"x"), ("a.cls", b"1")])
    with pytest.raises(DataError, match=r"must hold images \(KEY\.jpg.*but they hold flac, cls"):
        opened("set")
    (tmp_path / "set" / "train-0.tar").write_bytes(gzip.compress(b"no tar"))
    with pytest.raises(DataError, match=r"train-0\.tar is damaged"):
        opened("set")
    assert local_file(tmp_path / "set" / "train-0.tar").size > 0


def test_images_in_shards_train_in_the_order_of_shards_and_small_ones_in_any(tmp_path):
    for size, ends in ((8, ()), (70, (4, 8, 12))):
        for split in ("train", "test"):
            for k in range(3):
                files = [(f"{4 * k + j}.png", png(4 * k + j, size)) for j in range(4)]
                write_tar(tmp_path / str(size) / f"{split}-{k}.tar", files)
        for survey in (True, False):
            section = DataSection(name=str(size), image_size=8, patch_size=4, survey=survey)
            train, test = open_sources(section)
            assert train.shards == (ends if survey else (4, 8, 12))
            assert test.shards == ends
    section = DataSection(name="70", image_size=8, patch_size=4, num_images=7)
    assert open_sources(section)[0].shards[-1] == 7
