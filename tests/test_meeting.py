"""Images that nobody looked at beforehand: the same batches, whenever and wherever they are met."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from mimkit.data.batches import Batches, stream
from mimkit.data.cache import folder as cache_folder
from mimkit.data.looking import meeting, survey
from mimkit.data.opening import open_source, open_sources
from mimkit.data.pixels.augment import Augment
from mimkit.errors import DataError
from mimkit.folder import RunFolder
from mimkit.parts.masker import Masker
from mimkit.parts.records import Grid, Mask, View
from mimkit.pipeline.run import run
from mimkit.recipe.schema import load
from mimkit.recipe.sections import DataSection

COLORS = ("blue", "green", "red")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """No data, no cache, no network, whatever this machine has."""
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


class NoMasker(Masker):
    def __init__(self):
        pass

    num_targets = 2

    def sample(self, batch_size, generator):
        masked = torch.tensor([[True, True, False, False]]).repeat(batch_size, 1)
        return Mask.drop(masked, Grid(2, 2, 4))


def write(path, number, size=(12, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def data(tmp_path, broken=(), classes=COLORS):
    """Twelve images of several sizes to train on; some cannot be read."""
    for split in ("train", "test"):
        for number in range(12):
            name = classes[number % len(classes)]
            write(tmp_path / "set" / split / name / f"{number}.png", number, (12 + number, 9))
    for number in broken:
        path = tmp_path / "set" / "train" / classes[number % len(classes)] / f"{number}.png"
        path.write_bytes(path.read_bytes()[:60])
    return section(tmp_path)


def section(tmp_path, **values):
    values = {"survey": False, **values}
    return DataSection(name=str(tmp_path / "set"), image_size=8, patch_size=4, **values)


def batches(source, **place):
    return Batches(
        source,
        views=(View("image", (8, 8)),),
        augment=Augment(crop="resized"),
        masker=NoMasker(),
        batch_size=6,
        seed=0,
        **place,
    )


def same(one, two):
    return torch.equal(one.image, two.image) and torch.equal(one.index, two.index)


def test_nothing_is_decoded_before_training_but_the_held_out_images(tmp_path, monkeypatch):
    looked = []
    whole = survey.look_at

    def watch(table, rows, task):
        looked.append(len(table))
        return whole(table, rows, task)

    monkeypatch.setattr(survey, "look_at", watch)
    train, test = open_sources(data(tmp_path))
    assert looked == [12]
    assert train.sizes is None
    assert test.sizes is not None
    assert len(train) == len(test) == 12
    assert "not looked at before they are met" in train.describe()


def test_sound_images_are_seen_as_if_all_had_been_looked_at(tmp_path):
    surveyed = open_source(data(tmp_path).model_copy(update={"survey": True}), "train")
    met = open_source(section(tmp_path), "train")
    assert torch.equal(surveyed.labels, met.labels)
    for step in range(5):
        assert same(batches(surveyed)[step], batches(met)[step])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_does_not_depend_on_when_where_and_after_which_it_is_read(
    tmp_path, monkeypatch, workers
):
    described = data(tmp_path, broken=(0, 4, 7))
    expected = {step: batches(open_source(described, "train"))[step] for step in range(8)}
    for number, order in enumerate(([7, 2, 5, 0], [3], range(7, -1, -1))):
        monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / f"cache{number}"))
        source = open_source(described, "train")
        assert all(same(batches(source)[step], expected[step]) for step in order)
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "new"))
    source = open_source(described, "train")
    found = stream(batches(source), 2, 8, workers=workers, device=torch.device("cpu"))
    for step, batch in zip(range(2, 8), found, strict=True):
        assert same(batch, expected[step])
    shares = [batches(pickle.loads(pickle.dumps(source)), rank=r, world_size=2)[1] for r in (0, 1)]
    assert torch.equal(torch.cat([share.image for share in shares]), expected[1].image)
    assert len(source.unread()) == 3  # also those that loader processes met


def test_the_next_of_its_class_that_can_be_read_stands_in_its_place(tmp_path):
    described = data(tmp_path, broken=(0, 3, 6))  # of blue, only 9 is left
    source = open_source(described, "train")
    left = Image.open(tmp_path / "set" / "train" / "blue" / "9.png").convert("RGB")
    index = torch.tensor([k for k in range(12) if source.labels[k] == 0])
    assert [tuple(size) for size in source.extent(index).tolist()] == [left.size[::-1]] * 4
    assert all(np.asarray(source.image(int(k))).tobytes() == left.tobytes() for k in index)
    reasons = {item.path.rpartition("/")[2]: item.reason for item in source.unread()}
    assert reasons.keys() == {"0.png", "3.png", "6.png"}
    assert all(reason.startswith("cannot be decoded") for reason in reasons.values())
    assert "3 skipped" in source.describe()


def test_without_labels_it_is_the_next_of_all(tmp_path):
    for number in range(10):
        write(tmp_path / "set" / f"{number}.png", number)
    source = open_source(section(tmp_path), "train")
    order = [np.asarray(source.image(k)).tobytes() for k in range(9)]
    path = next(
        path for path in (tmp_path / "set").iterdir()
        if Image.open(path).convert("RGB").tobytes() == order[8]
    )  # fmt: skip
    path.write_bytes(b"broken")
    after = open_source(section(tmp_path), "train")
    assert [np.asarray(after.image(k)).tobytes() for k in range(9)] == [*order[:8], order[0]]


def test_where_none_of_a_class_can_be_read_the_run_ends_and_says_so(tmp_path):
    source = open_source(data(tmp_path, broken=(1, 4, 7, 10)), "train")
    index = int((source.labels == 1).nonzero()[0])
    with pytest.raises(DataError, match="nor can any other image of its class"):
        source.image(index)


def test_a_disk_that_fails_for_a_moment_writes_no_image_off(tmp_path, monkeypatch):
    source = open_source(data(tmp_path), "train")
    monkeypatch.setattr(meeting, "look", lambda *_: (_ for _ in ()).throw(OSError(5, "I/O")))
    with pytest.raises(DataError, match="Repeat the command"):
        source.image(5)
    monkeypatch.undo()
    assert source.unread() == ()
    assert source.image(5)


def test_what_was_met_is_known_to_the_next_run_but_not_after_a_change(tmp_path, monkeypatch):
    described = data(tmp_path, broken=(2,))
    source = open_source(described, "train")
    source.extent(torch.arange(12))
    with monkeypatch.context() as patch:
        patch.setattr(meeting, "look", lambda *_: pytest.fail("looked again"))
        again = open_source(described, "train")
        again.extent(torch.tensor([k for k in range(12) if source.labels[k] != 2]))
    assert again.fingerprint == source.fingerprint
    write(tmp_path / "set" / "train" / "red" / "2.png", 2)
    mended = open_source(described, "train")
    mended.extent(torch.arange(12))
    assert mended.unread() == ()
    assert mended.fingerprint != source.fingerprint


def test_a_run_counts_lists_and_tells_what_it_met(tmp_path, tiny):
    data(tmp_path, broken=(0, 5))
    settings = [f'data.name="{tmp_path / "set"}"', "data.survey=false", "evaluate=[]"]
    text = tiny.read_text().replace("num_images = 48\nnum_test_images = 16\n", "")
    tiny.write_text(text)
    console = Console(record=True, width=300)
    run(load(str(tiny), overrides=settings), folder=tmp_path / "run", console=console)
    skipped = json.loads((tmp_path / "run" / "ledger.json").read_text())["dataset"]["skipped"]
    assert {item["path"].rpartition("/")[2] for item in skipped} == {"0.png", "5.png"}
    said = console.export_text()
    assert "2 training images could not be read, all listed in the ledger" in said
    assert RunFolder(tmp_path / "run").metrics_rows()[-1]["step"] == 12
    assert list(cache_folder().rglob("sizes.bin"))
