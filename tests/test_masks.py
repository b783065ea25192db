"""Masks beside images: which is whose, what ids become, what cannot be used and is told."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mimkit import run
from mimkit.data.intake.pairs import pair
from mimkit.data.intake.walk import walk
from mimkit.data.objects import OBJECTS, annotate
from mimkit.data.opening import open_sources
from mimkit.data.truth.ids import number, read_ids
from mimkit.data.truth.records import IGNORED
from mimkit.errors import DataError
from mimkit.recipe.schema import load, resolved
from mimkit.recipe.sections import DataSection

GENERATOR = np.random.default_rng(0)


def photograph(path, size=(90, 70)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = GENERATOR.integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def mask(path, ids, *, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(ids, dtype=np.uint8))
    if palette:
        image = image.convert("P") if image.mode != "P" else image
        image = Image.fromarray(np.asarray(ids, dtype=np.uint8), "P")
        image.putpalette([7 * k % 256 for k in range(768)])
    image.save(path)


def bands(classes, size=(90, 70)):
    """A mask whose rows count up through the classes."""
    ids = np.zeros(size, dtype=np.uint8)
    for place, each in enumerate(classes):
        ids[place * size[0] // len(classes) :] = each
    return ids


@pytest.fixture
def street(tmp_path, monkeypatch):
    """Twelve images, three of them for testing, each with a mask of ids 0, 2 and 5."""
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "street"
    for split, count in (("train", 9), ("val", 3)):
        for k in range(count):
            photograph(root / split / "images" / f"{k}.jpg")
            mask(root / split / "masks" / f"{k}.png", bands([0, 2, 5]), palette=k % 2 == 0)
    return root


def opened(root, **keys):
    section = DataSection(name=str(root), image_size=32, patch_size=8, **keys)
    return open_sources(section)


def test_each_image_gets_its_mask_and_each_id_its_class(street):
    for source in opened(street):
        assert source.masks.classes == ("0", "2", "5")
        assert source.masks.usable().tolist() == list(range(len(source)))
        for index in range(len(source)):
            np.testing.assert_array_equal(source.masks(index), bands([0, 1, 2]))
        (line,) = [line for line in source.oddities if "  masks of" in line]
        assert f"masks of {len(source)} images, 3 classes (0, 2, 5)" in line


def test_masks_follow_images_that_are_drawn_or_broken(street):
    (street / "train" / "images" / "4.jpg").write_bytes(b"no image")
    for k in range(9):
        mask(street / "train" / "masks" / f"{k}.png", np.full((90, 70), k))
    train, _ = opened(street, num_images=5)
    table = train.reader.table
    for index in range(5):
        name = table.where(int(train.rows[index])).rpartition("/")[2].removesuffix(".jpg")
        names = [train.masks.classes[each] for each in np.unique(train.masks(index))]
        assert names == [name]


def test_a_list_of_names_numbers_the_classes_and_others_are_told(street):
    (street / "classes.txt").write_text("road\ncar\nsky\n")
    train, _ = opened(street)
    assert train.masks.classes == ("road", "car", "sky")
    ids = bands([0, 2, 5]).astype(int)
    np.testing.assert_array_equal(train.masks(0), np.where(ids == 5, IGNORED, ids))
    assert any("id 5 of 9 masks (33 % of the pixels) have no name" in x for x in train.oddities)
    ignoring, _ = opened(street, mask_ignore=(5,))
    assert not ignoring.masks.note
    assert "id 5 not judged" in ignoring.masks.kind


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp1252"])
def test_the_file_of_names_is_read_as_windows_writes_it_and_not_told_as_unused(street, encoding):
    (street / "classes.txt").write_text("Straße\r\n\r\ncar\r\nsky\r\n", encoding=encoding)
    train, test = opened(street)
    assert train.masks.classes == ("Straße", "car", "sky")
    assert not [x for x in (*train.oddities, *test.oddities) if "classes.txt" in x]


def test_masks_in_jpeg_are_refused_with_the_reason(street):
    for path in street.glob("*/masks/*.png"):
        Image.open(path).convert("L").save(path.with_suffix(".jpg"))
        path.unlink()
    train, test = opened(street)
    assert train.masks is None
    assert test.masks is None
    told = "\n".join(train.oddities)
    assert "9 images not used: as masks they hold no ids, since JPEG blurs; take PNG" in told


@pytest.mark.parametrize(
    ("ids", "said"),
    [(7, "masks of 1 image, 1 class (7), "), (255, "masks of 0 images, id 255 not judged, ")],
)
def test_one_mask_or_none_is_told_as_such(tmp_path, monkeypatch, ids, said):
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    for k in range(2):
        photograph(tmp_path / "pair" / "images" / f"{k}.jpg")
        mask(tmp_path / "pair" / "masks" / f"{k}.png", np.full((90, 70), ids))
    assert opened(tmp_path / "pair")[0].masks.kind == f"{said}masks/"


def test_two_names_are_those_of_masks_painted_in_black_and_white(street):
    (street / "classes.txt").write_text("background\nleaf\n")
    for split, count in (("train", 9), ("val", 3)):
        for k in range(count):
            mask(street / split / "masks" / f"{k}.png", bands([0, 255]))
    for source in opened(street):
        assert source.masks.classes == ("background", "leaf")
        np.testing.assert_array_equal(source.masks(0), bands([0, 1]))
    (ignoring, _) = opened(street, mask_ignore=(255,))
    assert set(np.unique(ignoring.masks(0))) == {0, IGNORED}


def test_ids_to_ignore_are_no_classes(street):
    train, test = opened(street, mask_ignore=(0,))
    assert train.masks.classes == test.masks.classes == ("2", "5")
    np.testing.assert_array_equal(train.masks(0), bands([0, 1, 2]).astype(int) - 1)
    assert (train.masks(0) == IGNORED).mean() == pytest.approx(1 / 3, abs=0.02)


def test_both_splits_share_the_classes(street):
    for k in range(3):
        mask(street / "val" / "masks" / f"{k}.png", bands([2, 9]))
    train, test = opened(street)
    assert train.masks.classes == test.masks.classes == ("0", "2", "5", "9")
    assert set(np.unique(test.masks(0))) == {1, 3}


def test_what_cannot_be_used_is_counted_and_listed(street):
    masks = street / "train" / "masks"
    (masks / "0.png").unlink()
    (masks / "1.png").write_bytes(b"no image")
    mask(masks / "2.png", bands([0, 2], size=(40, 30)))
    mask(masks / "3.png", np.full((90, 70), 255))
    Image.fromarray(GENERATOR.integers(0, 256, (90, 70, 3), dtype=np.uint8)).save(masks / "4.png")
    Image.fromarray(np.full((90, 70), 700, dtype=np.uint16)).save(masks / "5.png")
    train, _ = opened(street)
    assert len(train) == 9
    assert len(train.masks.usable()) == 3
    reasons = {item.path.rpartition("/")[2]: item.reason for item in train.masks.skipped}
    assert reasons["0.jpg"] == "has no mask"
    assert "cannot be decoded" in reasons["1.png"]
    assert reasons["2.png"] == "mask is of 30 x 40 px, but its image of 70 x 90"
    assert reasons["3.png"] == "mask without a pixel that is judged"
    assert "colours" in reasons["4.png"]
    assert "ids up to 700" in reasons["5.png"]
    assert any("6 masks cannot be used" in line for line in train.oddities)


def test_what_was_found_is_found_again_and_a_changed_mask_is_seen(street):
    before = opened(street)[0].masks.fingerprint
    assert opened(street)[0].masks.fingerprint == before
    mask(street / "train" / "masks" / "0.png", bands([5, 2, 0]))
    assert opened(street)[0].masks.fingerprint != before


def test_grey_in_three_channels_and_one_bit_are_ids(street):
    masks = street / "train" / "masks"
    Image.fromarray(bands([0, 2, 5])).convert("RGB").save(masks / "0.png")
    Image.fromarray(bands([0, 1]).astype(bool)).save(masks / "1.png")
    train, _ = opened(street)
    assert train.masks.classes == ("0", "1", "2", "5")
    assert len(train.masks.usable()) == 9


def test_black_and_white_is_two_classes(street):
    for split, count in (("train", 9), ("val", 3)):
        for k in range(count):
            mask(street / split / "masks" / f"{k}.png", bands([0, 255]))
    train, _ = opened(street)
    assert train.masks.classes == ("0", "255")


def test_another_folder_is_named_and_none_is_possible(street):
    for k in range(9):
        mask(street / "train" / "coarse" / f"{k}.png", bands([1, 3]))
    for k in range(3):
        mask(street / "val" / "coarse" / f"{k}.png", bands([1, 3]))
    train, _ = opened(street, masks="coarse")
    assert train.masks.classes == ("1", "3")
    assert len(train) == 9
    assert opened(street, masks="none")[0].masks is None
    with pytest.raises(DataError, match=r"data\.masks: must name folders .* 'fine' does not"):
        opened(street, masks="fine")


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["a/images/1.jpg", "a/images/2.jpg"], ["a/masks/1.png", "a/masks/2.png"]),
        (["images/train/x/1.jpg"], ["annotations/train/x/1.png"]),
        (["train/1.jpg", "train/2.jpg"], ["train_masks/1_mask.gif", "train_masks/2_mask.gif"]),
        (["img/b_7.png", "img/b_71.png"], ["gt/b_7_L.png", "gt/b_71_L.png"]),
        (["img/1.jpg", "img/11.jpg"], ["gt/mask_1.png", "gt/mask_11.png"]),
        (["img/1.jpg", "img/2.jpg"], ["gt/v1_1.png", "gt/v1_2.png"]),
    ],
)
def test_masks_are_called_as_their_images(tmp_path, images, masks):
    for name in images + masks:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    folders = walk(str(tmp_path)).folders
    tops = {name.rpartition("/")[0] for name in images}
    found = pair(
        [each for each in folders if each.name in tops],
        [each for each in folders if each.name not in tops],
    )
    assert [found.of(name) for name in images] == masks
    assert found.of("elsewhere/1.jpg") is None


def test_a_column_of_masks_in_parquet(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    rows = []
    for k in range(20):
        photograph(tmp_path / "image.png")
        mask(tmp_path / "mask.png", bands([k % 3, 3]))
        rows.append(
            {
                kind: {"bytes": (tmp_path / f"{kind}.png").read_bytes(), "path": f"{kind}{k}.png"}
                for kind in ("mask", "image")  # masks come first
            }
        )
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "all.parquet")
    train, test = opened(folder)
    assert (len(train), len(test)) == (18, 2)
    assert train.masks.classes == ("0", "1", "2", "3")
    for source in (train, test):
        table = source.reader.table
        for index in range(len(source)):
            k = int(table.rows[source.rows[index]])
            np.testing.assert_array_equal(source.masks(index), bands([k % 3, 3]))
    with pytest.raises(DataError, match=r"data\.masks = 'msk' .*Did you mean 'mask'\?"):
        opened(folder, masks="msk")


@given(
    occurs=st.sets(st.integers(0, 255), min_size=1),
    names=st.none() | st.lists(st.text("abc", min_size=1), min_size=1, max_size=30, unique=True),
    ignore=st.none() | st.lists(st.integers(0, 255), max_size=3),
)
def test_every_id_is_one_class_or_none(occurs, names, ignore):
    found = number(np.isin(np.arange(256), list(occurs)), names, ignore)
    given_to = found.codes[found.codes >= 0]
    assert given_to.tolist() == list(range(len(found.classes)))
    assert all(found.codes[each] == IGNORED for each in found.ignored)
    assert {each for each in occurs if found.codes[each] == IGNORED} == set(found.ignored)
    if names is None and ignore:
        assert not set(map(str, ignore)) & set(found.classes)


def test_the_embedded_objects_show_the_squares_of_their_parts():
    train, _ = open_sources(
        DataSection(name="objects", image_size=48, patch_size=8, num_images=40, num_test_images=10)
    )
    found = annotate(np.arange(40), image_size=48)
    assert train.masks.classes == ("ground", *OBJECTS.kinds)
    for index in range(40):
        kinds = np.concatenate([[0], found.kinds[index]])
        np.testing.assert_array_equal(train.masks(index), kinds[found.regions[index]])


def test_read_ids_keeps_the_ids_of_every_palette(tmp_path):
    ids = GENERATOR.integers(0, 256, (30, 20), dtype=np.uint8)
    mask(tmp_path / "p.png", ids, palette=True)
    np.testing.assert_array_equal(read_ids((tmp_path / "p.png").read_bytes()), ids)


def test_the_ledger_lists_masks_that_cannot_be_used(street, tiny, tmp_path):
    (street / "train" / "masks" / "0.png").unlink()
    here = [f"data.name={json.dumps(str(street))}", "data.num_images=9", "data.num_test_images=3"]
    folder = run(tiny, settings=[*here, "train.total_steps=1"], out=tmp_path / "runs")
    ledger = json.loads((folder / "ledger.json").read_text())
    assert [item["reason"] for item in ledger["dataset"]["masks"][0]["skipped"]] == ["has no mask"]


@pytest.mark.parametrize("key", ["label_column", "masks", "objects"])
def test_none_is_said_of_labels_and_masks_not_left_open(tiny, key):
    assert getattr(load(str(tiny)).data, key) is None
    said = load(str(tiny), overrides=[f"data.{key}=none"])
    assert getattr(said.data, key) == "none"
    again = tiny.parent / "again.toml"
    again.write_text(resolved(said))
    assert load(str(again)).same_as(said)
