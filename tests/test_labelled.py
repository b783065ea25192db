"""Images without labels to pre-train on, and a few labelled ones to judge by."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from mimkit.builtin.targets import Pixels
from mimkit.data.opening import open_labelled, open_source
from mimkit.errors import DataError
from mimkit.evaluate.fractions import labels_of
from mimkit.folder import RunFolder
from mimkit.pipeline.assemble import open_run
from mimkit.pipeline.current import subject
from mimkit.pipeline.run import run
from mimkit.recipe.schema import load
from mimkit.train.distributed import World

COLORS = ("blue", "green", "red")
KNN = '{part = "knn", k = 3}'
PROBE = '{part = "linear_probe", weight_decays = [0.1]}'
FREE = '{part = "heldout"}, {part = "knn_consistency"}'


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """No data, no cache, no network, whatever this machine has."""
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def write(path, number, channel=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(number).integers(0, 100, (16, 16, 3), dtype=np.uint8)
    if channel is not None:
        values[..., channel] += 150
    Image.fromarray(values).save(path, "PNG")


@pytest.fixture
def unlabelled(tmp_path):
    """A folder of 60 images at any depth."""
    for number in range(60):
        write(tmp_path / "plain" / f"{number % 4}" / f"{number % 3}" / f"{number}.png", number)
    return tmp_path / "plain"


@pytest.fixture
def labelled(tmp_path):
    """A small folder of one folder a class, twenty images each, without a test part."""
    for number in range(60):
        write(tmp_path / "few" / COLORS[number % 3] / f"{number}.png", 100 + number, number % 3)
    return tmp_path / "few"


def recipe(tiny, data, *overrides, labelled=None, evaluate=f"{KNN}, {PROBE}, {FREE}"):
    settings = [f'data.name="{data}"', f"evaluate=[{evaluate}]", "train.total_steps=4"]
    settings += ["data.num_images=40", "data.num_test_images=6", *overrides]
    if labelled is not None:
        settings.append(f'data.labelled="{labelled}"')
    return load(str(tiny), overrides=settings)


def open_(tiny, tmp_path, *arguments, console=None, **options):
    return open_run(
        recipe(tiny, *arguments, **options),
        RunFolder(tmp_path / "run"),
        World(0, 1, torch.device("cpu")),
        console or Console(quiet=True),
    )


def test_evaluators_that_need_labels_get_the_labelled_images(tiny, tmp_path, unlabelled, labelled):
    console = Console(record=True, width=300)
    opened = open_(tiny, tmp_path, unlabelled, labelled=labelled, console=console)
    knn, probe, heldout, consistency = (subject(opened, number) for number in range(4))
    for judged in (knn, probe):
        assert (judged.train.name, judged.test.name) == (str(labelled), str(labelled))
        assert (len(judged.train), len(judged.test)) == (54, 6)  # a tenth is held out
        assert judged.train.classes == judged.test.classes == COLORS
        assert labels_of(judged, "knn").num_classes == 3
    for free in (heldout, consistency):
        assert (len(free.train), len(free.test)) == (40, 6)
        assert free.train.labels is None
    assert knn.views == heldout.views
    said = console.export_text()
    assert f"{labelled}: 54 train and 6 test images of 16 x 16 px, 3 classes" in said
    assert "no test part: 6 of 60 images, chosen by path, are held out" in said


def test_no_image_is_both_labelled_and_judged(tiny, unlabelled, labelled):
    train, test = open_labelled(recipe(tiny, unlabelled, labelled=labelled).data)
    contents = [
        {np.asarray(each.image(k)).tobytes() for k in range(len(each))} for each in (train, test)
    ]
    assert (len(contents[0]), len(contents[1])) == (54, 6)
    assert not contents[0] & contents[1]


def test_labelled_images_are_normalised_as_those_to_pre_train_on(
    tiny, tmp_path, unlabelled, labelled
):
    settings = ("data.mean=[0.25, 0.5, 0.75]", "data.std=[0.1, 0.2, 0.3]")
    judged = subject(open_(tiny, tmp_path, unlabelled, *settings, labelled=labelled), 0)
    assert judged.view.mean == (0.25, 0.5, 0.75)
    of_shapes = subject(open_(tiny, tmp_path, "shapes", labelled=labelled), 0)
    assert of_shapes.view.mean == open_source(recipe(tiny, "shapes").data, "train").mean
    raw = of_shapes.train.pixels[:1] / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in (
        of_shapes.view.mean, of_shapes.view.std
    ))  # fmt: skip
    shown = of_shapes.train.view(torch.tensor([0]), of_shapes.view)
    torch.testing.assert_close(shown, (raw - mean) / std)


def test_a_run_judges_by_the_labelled_images_and_writes_both_sets_down(
    tiny, tmp_path, unlabelled, labelled
):
    asked = recipe(tiny, unlabelled, labelled=labelled)
    folder = run(asked, out=tmp_path / "runs", device="cpu")
    results = json.loads((folder / "results.json").read_text())["results"]
    by_evaluator = {}
    for result in results:
        by_evaluator.setdefault(result["evaluator"], {})[result["init"]] = result
    assert set(by_evaluator) == {"knn", "linear_probe", "heldout", "knn_consistency"}
    for name in ("knn", "linear_probe"):
        assert set(by_evaluator[name]) == {"pretrained", "random", "pixels"}
        assert by_evaluator[name]["pixels"]["num_images"] == 6
        assert by_evaluator[name]["pixels"]["protocol"]["num_labels"] == 54
    assert by_evaluator["linear_probe"]["pixels"]["value"] == 1.0  # each class has its channel
    assert by_evaluator["knn_consistency"]["pretrained"]["num_images"] == 6
    ledger = json.loads((folder / "ledger.json").read_text())
    train, test = open_labelled(asked.data)
    assert ledger["labelled"] == {
        "name": str(labelled),
        "fingerprint": train.fingerprint,
        "train_images": 54,
        "test_images": 6,
        "skipped": [],
        "notes": [train.note, test.note],
    }
    assert ledger["dataset"]["name"] == str(unlabelled)
    assert ledger["dataset"]["fingerprint"] != train.fingerprint
    assert load(str(folder / "recipe.toml")).same_as(asked)


def test_a_run_without_labelled_images_has_none_in_its_ledger(tiny, tmp_path):
    folder = run(recipe(tiny, "shapes", evaluate=""), out=tmp_path / "runs", device="cpu")
    assert "labelled" not in json.loads((folder / "ledger.json").read_text())


def test_an_unlabelled_folder_alone_is_judged_without_labels(tiny, tmp_path, unlabelled):
    folder = run(recipe(tiny, unlabelled, evaluate=FREE), out=tmp_path / "runs", device="cpu")
    results = json.loads((folder / "results.json").read_text())["results"]
    assert {result["evaluator"] for result in results} == {"heldout", "knn_consistency"}
    found = {r["init"]: r["value"] for r in results if r["metric"] == "consistency"}
    assert set(found) == {"pretrained", "random", "pixels"}


@pytest.mark.parametrize("name", ["knn", "linear_probe", "attentive_probe", "finetune"])
def test_what_needs_labels_is_refused_before_targets_prepare(
    tiny, tmp_path, unlabelled, monkeypatch, name
):
    monkeypatch.setattr(Pixels, "prepare", lambda *_, **__: pytest.fail("prepared"))
    with pytest.raises(DataError, match=rf"'{name}' needs labels.*data\.labelled"):
        open_(tiny, tmp_path, unlabelled, evaluate=f'{{part = "{name}"}}')


def test_labelled_images_without_labels_are_refused_in_one_message(tiny, unlabelled, tmp_path):
    with pytest.raises(DataError) as error:
        open_(tiny, tmp_path, "shapes", labelled=unlabelled)
    assert str(error.value).startswith("data.labelled: must name labelled images, but the train")
    assert "one folder a class" in str(error.value)


def test_a_labelled_set_that_is_nowhere_is_told_by_its_own_key(tiny, tmp_path):
    with pytest.raises(DataError) as error:
        open_(tiny, tmp_path, "shapes", labelled="nowhere")
    told = str(error.value)
    assert told.startswith("data.labelled: 'nowhere' must be found or downloaded")
    assert "--set data.labelled=shapes" in told
    assert "--data" not in told


def test_place_and_limits_of_the_data_do_not_hold_for_the_labelled_set(
    tiny, tmp_path, unlabelled, labelled
):
    """The folder of the images to pre-train on is not taken for a registered set."""
    (tmp_path / "plain" / "train").mkdir()
    write(tmp_path / "plain" / "train" / "a.png", 1)
    data = recipe(tiny, unlabelled, f'data.path="{unlabelled}"', labelled="cifar10").data
    with pytest.raises(DataError, match=r"data\.labelled: 'cifar10' must be found"):
        open_labelled(data.model_copy(update={"labelled": "cifar10"}))
    limited = recipe(tiny, unlabelled, "data.num_test_images=2", labelled=labelled).data
    assert [len(source) for source in open_labelled(limited)] == [54, 6]


def test_a_registered_set_gives_labels_too(tiny, tmp_path, unlabelled):
    train, test = open_labelled(recipe(tiny, unlabelled, labelled="shapes").data)
    assert (len(train.classes), len(train), len(test)) == (10, 10_000, 2_000)
