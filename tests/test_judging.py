"""A finished run is judged once more: on its own data or others, one run or many, killed or not."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from equality import QUICK, RECIPES, miniature
from page_text import Elements
from PIL import Image
from scipy.spatial.distance import cdist
from typer.testing import CliRunner

import mimkit
from mimkit import DataError, RecipeError
from mimkit.cli import app
from mimkit.evaluate import cells, knn
from mimkit.pipeline import judge
from mimkit.pipeline import run as pipeline
from mimkit.report import of_run

KNN = '{part = "knn", k = 5}'
OTHER = "pictures"
IMAGES = {"train": 8, "test": 5}
"""Of each class."""
HOLD = (
    "import sys, time; from pathlib import Path; from mimkit import locks\n"
    "file = locks.take(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)
    return tmp_path


@pytest.fixture
def run(here, tiny):
    """A finished run, which has judged itself by its own task alone."""
    return pretrained(tiny)


def pretrained(recipe, *settings, **options):
    return mimkit.run(recipe, settings=["train.total_steps=4", *settings], device="cpu", **options)


def draw(folder, classes=3, size=16, seed=0):
    """Writes a labelled folder of noisy squares, whose place tells the class."""
    random = np.random.default_rng(seed)
    for split, count in IMAGES.items():
        for label in range(classes):
            (folder / split / f"class{label}").mkdir(parents=True)
            for number in range(count):
                image = random.integers(0, 120, (size, size, 3), dtype=np.uint8)
                at = label * size // (2 * classes)
                image[at : at + size // 2, at : at + size // 2] += np.uint8(100)
                file = folder / split / f"class{label}" / f"{number}.png"
                Image.fromarray(image).save(file)
    return folder


def results(run):
    return json.loads((run / "results.json").read_text())


def numbers(entries, evaluator="knn"):
    return {
        (one["init"], one["seed"], json.dumps(one["protocol"])): one["value"]
        for one in entries
        if one["evaluator"] == evaluator
    }


def evaluate(run, **options):
    return mimkit.evaluate(run, device="cpu", **options)


def test_on_its_own_data_it_equals_what_the_run_would_have_measured(run, tiny):
    extra = '{part = "linear_probe", label_fractions = [1.0], num_test_images = 10}'
    tables = f"evaluate=[{KNN}, {extra}]"
    evaluate(run, settings=[tables])
    at_once = results(pretrained(tiny, tables, out="at once"))["results"]
    later = results(run)["judgements"]["shapes"]["results"]
    for name in ("knn", "linear_probe"):
        assert numbers(later, name) == numbers(at_once, name) != {}
        scores = [one["image_scores"] for one in later if one["evaluator"] == name]
        assert scores == [one["image_scores"] for one in at_once if one["evaluator"] == name]


def brute_force(model, folder, k, temperature):
    """k-NN on features that are made of the files without anything of mimkit's evaluation."""

    def features(split):
        images, labels = [], []
        for file in sorted((folder / split).rglob("*.png")):
            images.append(np.asarray(Image.open(file)).transpose(2, 0, 1) / 255)
            labels.append(int(file.parent.name.removeprefix("class")))
        with torch.no_grad():
            found = model(torch.from_numpy(np.stack(images)).float())
        return found.numpy(), np.array(labels)

    (train, known), (test, true) = features("train"), features("test")
    distance = cdist(test, train, "cosine")
    right = []
    for row, label in zip(distance, true, strict=True):
        near = np.argsort(row)[:k]
        votes = np.bincount(known[near], np.exp(-row[near] / temperature))
        right.append(votes.argmax() == label)
    return np.mean(right)


@pytest.mark.parametrize("k", [1, 7])
def test_on_other_data_it_equals_brute_force_on_features_of_ones_own(run, here, k):
    draw(here / OTHER)
    found = evaluate(run, dataset=OTHER, settings=[f"evaluate=[{{part = 'knn', k = {k}}}]"])
    value = numbers(found.outcomes[0].results)
    (pretrained,) = [one for (init, *_), one in value.items() if init == "pretrained"]
    assert pretrained == brute_force(mimkit.load_encoder(run), here / OTHER, k, 0.07)
    assert found.dataset == OTHER


def test_images_of_another_size_and_number_of_classes_are_fitted_to_the_encoder(run, here):
    draw(here / OTHER, classes=5, size=40)
    evaluate(run, dataset=OTHER, evaluate=["knn", "linear_probe", "knn_consistency"])
    found = results(run)["judgements"][OTHER]
    assert {one["evaluator"] for one in found["results"]} == {
        "knn",
        "linear_probe",
        "knn_consistency",
    }
    assert {one["num_images"] for one in found["results"]} == {25}
    assert found["summaries"]
    record = json.loads((run / "encoder.json").read_text())
    kept = of_run.read_recipe(run / found["folder"] / "recipe.toml")["data"]
    assert (kept["image_size"], kept["patch_size"]) == ([16, 16], 4)
    assert (kept["mean"], kept["std"]) == (record["mean"], record["std"])
    assert "num_images" not in kept  # the limit of the run's own data


def test_what_was_known_stays_and_the_report_has_a_section_for_each_data(run, here):
    before = results(run)
    draw(here / OTHER)
    draw(here / "elsewhere" / OTHER, seed=1)
    evaluate(run, dataset=OTHER, evaluate=["knn"])
    evaluate(run, dataset=f"elsewhere/{OTHER}", evaluate=["knn"])
    evaluate(run, evaluate=["knn"])
    after = results(run)
    assert {name: after[name] for name in before} == before
    assert list(after["judgements"]) == [OTHER, f"{OTHER} (2)", "shapes"]
    page = (run / "report.html").read_text()
    Elements(page)
    assert re.findall(r"<h2>On (.*?)</h2>", page) == [OTHER, f"{OTHER} (2)"]
    main = page[: page.index("<h2>On")]
    assert "k-NN accuracy" in main  # what was judged on the run's own data is one of its results


def test_the_same_evaluation_with_other_options_stands_beside_the_first(here, tiny):
    run = pretrained(tiny, f"evaluate=[{KNN}]")
    own = numbers(results(run)["results"])
    found = evaluate(run, settings=["evaluate=[{part = 'knn', k = 3}]"])
    assert numbers(results(run)["results"]) == own
    rows = {one.row.protocol["k"]: one for one in found.verdicts}
    assert rows.keys() == {3, 5}
    assert all(len(one.row.values["pre-training"]["pretrained"]) == 1 for one in rows.values())


def test_names_take_the_runs_own_options_or_those_of_a_comparison(here, tiny):
    run = pretrained(tiny, f"evaluate=[{KNN}]")
    draw(here / OTHER)
    evaluate(run, dataset=OTHER, evaluate=["knn", "linear_probe"])
    knn_, probe = of_run.read_recipe(run / "judgements/1-pictures/recipe.toml")["evaluate"]
    assert knn_["k"] == 5
    assert (probe["layers"], probe["pools"]) == ("all", ["mean", "cls"])


def test_repeating_repeats_nothing(run, here, monkeypatch):
    draw(here / OTHER)
    for wish in ({"dataset": OTHER}, {}):
        evaluate(run, evaluate=["knn", "heldout"], **wish)
    before, report = results(run), (run / "report.html").read_bytes()
    monkeypatch.setattr(knn, "extract", fails)
    monkeypatch.setattr(judge, "judge_by", fails)
    for wish in ({"dataset": OTHER}, {}):
        found = evaluate(run, evaluate=["knn", "heldout"], **wish)
        assert {one.row.evaluator for one in found.verdicts} == {"knn", "heldout"}
    assert results(run) == before
    assert (run / "report.html").read_bytes() == report


def fails(*_, **__):
    raise AssertionError("this was measured before")


@pytest.mark.parametrize("killed_at", [1, 4])
def test_what_was_measured_before_a_kill_is_not_measured_again(run, here, monkeypatch, killed_at):
    draw(here / OTHER)
    # Three cells of k-NN, then the layers and starts of a probe.
    wish = {"dataset": OTHER, "evaluate": ["knn", "linear_probe"]}
    copy = here / "copy"
    shutil.copytree(run, copy)
    add, added = cells.Cells.add, []

    def count(self, key, record):
        add(self, key, record)
        added.append(key)
        if len(added) == killed_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(cells.Cells, "add", count)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, **wish)
    kept = results(run).get("judgements", {})
    assert (len(kept[OTHER]["results"]) == 3) if killed_at > 3 else kept == {}
    evaluate(run, **wish)
    assert len(added) == len(set(added))
    monkeypatch.setattr(cells.Cells, "add", add)
    evaluate(copy, **wish)
    assert results(run)["judgements"] == results(copy)["judgements"]


def test_afterwards_the_folder_is_still_that_of_the_run(run, here, tiny):
    draw(here / OTHER)
    evaluate(run, dataset=OTHER, evaluate=["knn"])
    before = results(run)
    assert pretrained(tiny) == run  # nothing to train, all to tell
    assert results(run) == before
    assert f"<h2>On {OTHER}</h2>" in (run / "report.html").read_text()
    said = CliRunner().invoke(app, ["export", str(run), "--format", "safetensors"])
    assert said.exit_code == 0
    assert pretrained(tiny, fresh=True) == run
    assert not (run / "judgements").exists()
    assert "judgements" not in results(run)


def test_runs_that_differ_in_their_seed_are_one_method_of_one_table(here, tiny):
    one = [pretrained(tiny, "evaluate=[]", seed=seed) for seed in (0, 1)]
    two = [
        pretrained(tiny, "evaluate=[]", "name='other'", "encoder.depth=1", seed=seed)
        for seed in (0, 1)
    ]
    draw(here / OTHER)
    said = CliRunner().invoke(
        app, ["evaluate", "runs", "--dataset", OTHER, "--evaluate", "knn", "--device", "cpu"]
    )
    assert said.exit_code == 0, said.output
    found = evaluate("runs", dataset=OTHER, evaluate=["knn"])
    assert found.labels == ["other", "tiny"]
    (row,) = found.verdicts
    for label, runs in {"tiny": one, "other": two}.items():
        for seed, run in enumerate(runs):
            (value,) = [
                each["value"]
                for each in results(run)["judgements"][OTHER]["results"]
                if each["init"] == "pretrained"
            ]
            assert row.row.values[label]["pretrained"][seed] == value
    (pair,) = row.pairs
    assert pair.difference.num_seeds == 2
    assert re.search(r"k-NN accuracy +other .*%", said.output)
    assert all(str(run / "report.html") in said.output for run in (*one, *two))


def test_runs_that_are_judged_together_are_judged_alike(here, tiny, capsys):
    for k in (3, 5):
        table = f"evaluate=[{{part = 'knn', k = {k}}}]"
        pretrained(tiny, table, f"name='k{k}'", f"encoder.depth={k}")
    found = evaluate("runs", evaluate=["knn"], settings=["data.num_images=40"])
    assert "knn: with the options of a comparison" in capsys.readouterr().out
    assert [one.row.protocol["k"] for one in found.verdicts] == [20]
    assert len(found.verdicts[0].pairs) == 1
    alone = evaluate("runs/k3/0", evaluate=["knn"], settings=["data.num_images=40"])
    assert {one.row.protocol["k"] for one in alone.verdicts} == {3, 20}


def test_runs_of_one_name_that_trained_otherwise_are_two_methods(here, tiny):
    pretrained(tiny, "evaluate=[]", out="a")
    mimkit.run(tiny, settings=["train.total_steps=2", "evaluate=[]"], device="cpu", out="b")
    found = evaluate(["a", "b"], evaluate=["knn"])
    assert found.labels == ["tiny", "b/tiny/0"]


def test_unfinished_runs_below_a_folder_are_left_out_and_said(here, tiny, capsys):
    shutil.copytree(pretrained(tiny), here / "runs/tiny/1")
    (here / "runs/tiny/1/ledger.json").write_text('{"steps": 2, "seconds": {}}')
    assert evaluate("runs", evaluate=["knn"]).folder == Path("runs/tiny/0")
    assert "runs/tiny/1: left out, since it is not finished" in capsys.readouterr().out


def test_an_import_is_judged_as_it_is_and_its_numbers_do_not_outlive_its_weights(here, tiny):
    mimkit.run(tiny, settings=["train.total_steps=0", f"evaluate=[{KNN}]"], device="cpu")
    folder = here / "imported"
    shutil.copytree(here / "runs/tiny/0", folder)
    for name in ("ledger.json", "data.json", "results.json", "report.html"):
        (folder / name).unlink()
    text = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(text.replace("total_steps = 0", "total_steps = 4"))
    evaluate(folder)
    judged = results(folder)["judgements"]["shapes"]["results"]
    assert numbers(judged) == numbers(results(here / "runs/tiny/0")["results"])
    assert "k-NN accuracy" in (folder / "report.html").read_text()
    assert CliRunner().invoke(app, ["run", str(folder), "--device", "cpu"]).exit_code == 0
    assert "judgements" not in results(folder)  # those were other weights
    draw(here / OTHER)
    evaluate(folder, dataset=OTHER, evaluate=["knn"])
    assert list(results(folder)["judgements"]) == [OTHER]


def test_a_task_of_pretraining_is_judged_by_targets_of_the_runs_own_images(run, here, monkeypatch):
    draw(here / OTHER)
    prepared = []

    def prepare(self, images, workdir, **_):
        prepared.append(images.fingerprint)

    monkeypatch.setattr("mimkit.builtin.targets.Pixels.prepare", prepare)
    evaluate(run, dataset=OTHER, evaluate=["heldout"])
    assert prepared == [json.loads((run / "data.json").read_text())["train"]["fingerprint"]]
    losses = [one["metric"] for one in results(run)["judgements"][OTHER]["results"]]
    assert "loss/pixels" in losses


def test_without_its_checkpoint_the_encoder_is_judged_and_the_head_is_missed(run, here):
    draw(here / OTHER)
    whole = evaluate(run, dataset=OTHER, evaluate=["knn"]).outcomes[0].results
    shutil.rmtree(run / "judgements")
    shutil.rmtree(run / "checkpoints")
    assert evaluate(run, dataset=OTHER, evaluate=["knn"]).outcomes[0].results == whole
    with pytest.raises(DataError, match="must hold the last checkpoint"):
        evaluate(run, dataset=OTHER, evaluate=["heldout"])


def test_labels_from_elsewhere_are_another_judgement(run, here):
    draw(here / OTHER)
    evaluate(run, labels=OTHER, evaluate=["knn"])
    found = results(run)["judgements"]
    assert list(found) == [OTHER]
    assert {one["num_images"] for one in found[OTHER]["results"]} == {15}


def test_data_of_its_own_that_have_changed_are_refused(here, tiny):
    draw(here / OTHER)
    limits = ("data.num_images='none'", "data.num_test_images='none'")
    run = pretrained(tiny, f"data.name='{OTHER}'", *limits, "evaluate=[]")
    evaluate(run, evaluate=["knn"])
    next((here / OTHER / "train").rglob("*.png")).unlink()
    with pytest.raises(DataError, match="train had 24 images and has 23"):
        evaluate(run, evaluate=["knn"])


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"evaluate": ["kn"]}, "Did you mean 'knn'"),
        ({"settings": ["train.lr=1.0"]}, "train.lr: must stay 0.001"),
        ({"settings": ["seed=3"]}, "seed: must stay 0"),
        ({"settings": ["data.image_size=32"]}, r"data.image_size: must stay \[16, 16\]"),
        ({"settings": ["evaluate=[]"]}, "Name some with --evaluate"),
        ({"dataset": OTHER}, "Name some with --evaluate"),  # heldout is the only one of its own
        ({"dataset": "nowhere", "evaluate": ["knn"]}, "must be found or downloaded"),
        ({"dataset": "flat", "evaluate": ["knn"]}, "label"),
    ],
)
def test_what_cannot_be_is_refused_in_one_message(run, here, wish, reason):
    draw(here / OTHER)
    (here / "flat").mkdir()
    for number, file in enumerate((here / OTHER).rglob("*.png")):
        shutil.copy(file, here / "flat" / f"{number}.png")
    before = results(run)
    with pytest.raises(mimkit.MimkitError, match=reason):
        evaluate(run, **wish)
    assert results(run) == before
    assert not (run / "judgements").exists()


def test_what_is_no_finished_run_is_refused_with_what_to_do(run, here, tiny):
    with pytest.raises(DataError, match="there is no such folder"):
        evaluate("nowhere")
    (here / "empty").mkdir()
    with pytest.raises(DataError, match="have such below it, but has none"):
        evaluate("empty")
    command = [sys.executable, "-c", HOLD, str(run / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(DataError, match=f"process {process.pid} is writing into this run"):
            evaluate(run, evaluate=["knn"])
        process.kill()
    (run / "ledger.json").write_text('{"steps": 2, "seconds": {}}')
    with pytest.raises(DataError, match=f"To finish it: mimkit run {run}"):
        evaluate(run, evaluate=["knn"])


def test_a_recipe_that_differs_in_evaluations_alone_is_told_of_this_command(run, tiny):
    with pytest.raises(DataError, match=f"mimkit evaluate {run}"):
        pretrained(tiny, f"evaluate=[{KNN}]")
    with pytest.raises(DataError, match="start anew with --fresh"):
        pretrained(tiny, f"evaluate=[{KNN}]", "train.lr=0.5")


def test_a_folder_that_is_another_projects_is_left_alone(here):
    (here / "mine").mkdir()
    (here / "mine/recipe.toml").write_text("name = 'mine'\n")
    with pytest.raises((DataError, RecipeError)):
        evaluate("mine")
    assert [path.name for path in (here / "mine").iterdir()] == ["recipe.toml"]


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else [pytest.mark.slow])
        for path in RECIPES
    ],
)
def test_the_encoder_of_every_shipped_recipe_can_be_judged_on_other_data(recipe, here):
    small = miniature(recipe)
    none = small.train.model_copy(update={"total_steps": 0, "warmup_steps": None})
    run = pipeline.run(small.model_copy(update={"train": none}), out=here, device="cpu")
    draw(here / OTHER, size=20)
    evaluate(run, dataset=OTHER, evaluate=["knn"])
    found = results(run)["judgements"][OTHER]["results"]
    assert {one["init"] for one in found} == {"pretrained", "random", "pixels"}
    assert all(one["num_images"] == 15 for one in found)


def test_masks_of_other_data_are_found_anew(run, here):
    """What the run's own recipe leaves open is open, not said to be none."""
    for split, count in (("train", 6), ("val", 3)):
        for number in range(count):
            for kind in ("images", "masks"):
                path = here / "streets" / split / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                ids = (np.arange(24 * 24).reshape(24, 24) // 150).astype(np.uint8)
                Image.fromarray(ids * (80 if kind == "images" else 1)).save(path)
    evaluate(
        run,
        dataset="streets",
        settings=['evaluate=[{part="segmentation", total_steps=1, seeds=1, batch_size=4}]'],
    )
    found = results(run)["judgements"]["streets"]["results"]
    assert {(one["metric"], one["init"]) for one in found} >= {
        ("miou", "pretrained"),
        ("miou", "random"),
    }
    assert {"".join(sorted(one["parts"])) for one in found if "parts" in one} == {"0123"}
