"""Data that changed between two calls are refused and named; data that were moved are not."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mimkit.data.cache import folder as cache_folder
from mimkit.data.opening import open_sources
from mimkit.errors import DataError
from mimkit.folder import RunFolder
from mimkit.pipeline.identity import splits, write_data
from mimkit.pipeline.run import run
from mimkit.recipe.schema import load
from mimkit.study.refusals import DATA, is_on_other_data
from mimkit.train.signals import Interrupted

COLORS = ("blue", "green", "red")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """No data, no cache, no network, whatever this machine has."""
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def write(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


@pytest.fixture
def data(tmp_path):
    """Twenty images; two of them are held out."""
    for number in range(20):
        write(tmp_path / "set" / f"{number}.png", number)
    return tmp_path / "set"


def recipe(tiny, name, *settings, steps=4):
    tiny.write_text(tiny.read_text().replace("num_images = 48\nnum_test_images = 16\n", ""))
    overrides = [f'data.name="{name}"', f"train.total_steps={steps}", "train.batch_size=4"]
    return load(str(tiny), overrides=[*overrides, "evaluate=[]", *settings])


def go(tiny, name, folder, *settings, **options):
    steps = options.pop("steps", 4)
    return run(
        recipe(tiny, name, *settings, steps=steps),
        folder=folder,
        console=Console(quiet=True),
        **options,
    )


def everything(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def add(data):
    for number in range(100, 110):
        write(data / f"{number}.png", number)


def take_away(data):
    (data / "3.png").unlink()
    (data / "4.png").unlink()


def change(data):
    write(data / "7.png", 777)


def rename(data):
    (data / "7.png").rename(data / "new.png")


CHANGES = {
    add: [" added (", "train had 18 images and has 27", "test had 2 images and has 3"],
    take_away: ["gone (", "train had 18 images and has 17"],
    change: ["1 changed (7.png)"],
    rename: ["1 added (new.png)", "1 gone (7.png)"],
}


@pytest.mark.parametrize(
    ("happens", "survey"),
    [
        *((each, True) for each in CHANGES),
        (change, False),
        pytest.param(add, False, marks=pytest.mark.slow),
    ],
)
def test_a_finished_run_is_left_as_it_is_and_what_changed_is_named(
    tiny, tmp_path, data, happens, survey
):
    settings = () if survey else ("data.survey=false",)
    folder = go(tiny, data, tmp_path / "run", *settings)
    before = everything(folder)
    trained = json.loads((folder / "data.json").read_text())["train"]["fingerprint"]
    assert trained == RunFolder(folder).read_ledger()["dataset"]["fingerprint"]
    happens(data)
    with pytest.raises(DataError, match="must be those that this run was begun with") as refused:
        go(tiny, data, folder, *settings)
    said = str(refused.value)
    expected = CHANGES[happens] if survey or happens is add else ["no name is new, none is gone"]
    assert all(words in said for words in expected)
    assert "--out" in said
    assert "--fresh" in said
    assert everything(folder) == before
    go(tiny, data, folder, *settings, fresh=True)
    ledger = RunFolder(folder).read_ledger()
    assert ledger["steps"] == 4
    assert ledger["dataset"]["fingerprint"] != trained


def test_an_interrupted_run_does_not_go_on_with_other_images(tiny, tmp_path, data):
    folder = go(tiny, data, tmp_path / "run")
    (folder / "encoder.safetensors").unlink()  # as where a kill came before the end
    (folder / "encoder.json").unlink()
    (folder / "results.json").unlink(missing_ok=True)
    (folder / "ledger.json").unlink()
    add(data)
    with pytest.raises(DataError, match="train had 18 images and has 27"):
        go(tiny, data, folder)
    assert not (folder / "results.json").exists()


def test_data_that_were_moved_are_the_same(tiny, tmp_path, data):
    folder = go(tiny, data, tmp_path / "run")
    results = RunFolder(folder).read_results()
    shutil.move(data, tmp_path / "elsewhere" / "set")
    go(tiny, tmp_path / "elsewhere" / "set", folder)
    assert RunFolder(folder).read_results() == results
    assert load(str(folder / "recipe.toml")).data.name == str(tmp_path / "elsewhere" / "set")
    add(tmp_path / "elsewhere" / "set")
    with pytest.raises(DataError, match=r"10 added \("):  # the names are still known
        go(tiny, tmp_path / "elsewhere" / "set", folder)


def test_without_a_cache_only_the_numbers_are_known(tiny, tmp_path, data):
    folder = go(tiny, data, tmp_path / "run")
    shutil.rmtree(cache_folder())
    add(data)
    with pytest.raises(DataError, match=r"train had 18 images and has 27; test had 2 .* has 3\. N"):
        go(tiny, data, folder)


def test_the_ledger_tells_of_runs_that_are_older_than_this_rule(tiny, tmp_path, data):
    folder = go(tiny, data, tmp_path / "run")
    (folder / "data.json").unlink()
    go(tiny, data, folder)
    assert (folder / "data.json").is_file()
    (folder / "data.json").unlink()
    add(data)
    with pytest.raises(DataError, match="train had 18 images and has 27"):
        go(tiny, data, folder)


def test_a_folder_in_which_nothing_was_trained_is_in_nobodys_way(tiny, tmp_path, data, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("mimkit.pipeline.run.pretrain", _interrupted)
        with pytest.raises(Interrupted):
            go(tiny, data, tmp_path / "run")
    assert (tmp_path / "run" / "data.json").is_file()
    add(data)
    folder = go(tiny, data, tmp_path / "run")
    assert json.loads((folder / "data.json").read_text())["train"]["images"] == 27


def _interrupted(*_):
    raise Interrupted(2, "at step 0")


def test_labelled_images_must_stay_what_they_were_too(tiny, tmp_path, data):
    for number in range(60):
        write(tmp_path / "few" / COLORS[number % 3] / f"{number}.png", 100 + number)
    settings = (f'data.labelled="{tmp_path / "few"}"', 'evaluate=[{part = "knn", k = 3}]')
    folder = go(tiny, data, tmp_path / "run", *settings)
    before = everything(folder)
    write(tmp_path / "few" / "red" / "new.png", 1)
    with pytest.raises(DataError, match=r"labelled (train|test) had \d+ .*1 added \(red/new.png\)"):
        go(tiny, data, folder, *settings)
    assert everything(folder) == before


def test_other_labels_of_the_same_images_are_other_data(tiny, tmp_path):
    for number in range(40):
        write(tmp_path / "set" / COLORS[number % 2] / f"{number}.png", number)
    folder = go(tiny, tmp_path / "set", tmp_path / "run")
    (tmp_path / "set" / "blue" / "0.png").rename(tmp_path / "set" / "green" / "0.png")
    with pytest.raises(DataError, match=r"added \(.*green/0.png"):
        go(tiny, tmp_path / "set", folder)


def test_a_comparison_whose_data_changed_is_refused_once_a_run_has_trained(tiny, tmp_path, data):
    def now():
        section = recipe(tiny, data).data
        return {f"mae {name}": each for name, each in splits(*open_sources(section), None).items()}

    folder = tmp_path / "comparison"
    write_data(folder / DATA, now())
    assert not is_on_other_data(now(), folder)
    take_away(data)
    assert is_on_other_data(now(), folder)  # nothing was trained: it is planned anew
    (folder / "runs" / "mae" / "0").mkdir(parents=True)
    (folder / "runs" / "mae" / "0" / "results.json").write_text("{}")
    with pytest.raises(DataError, match=r"this comparison was begun with, but mae .*gone \("):
        is_on_other_data(now(), folder)
