"""What cannot work is refused before a target prepares itself, which may take hours."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import mimkit
from mimkit.builtin.targets import Pixels
from mimkit.errors import DataError, MimkitError
from mimkit.folder import RunFolder
from mimkit.pipeline.assemble import open_run
from mimkit.pipeline.run import run
from mimkit.recipe import registry
from mimkit.recipe.schema import load
from mimkit.study.methods import Found
from mimkit.study.plan import make_plan
from mimkit.study.question import Asked, Question
from mimkit.study.records import Budget, Method, Plan, Trial
from mimkit.study.refusals import is_another, is_edited, is_of_other_version
from mimkit.train.distributed import World

EVALUATORS = {entry.name: entry for entry in registry.entries("evaluators")}
REQUIRED = {
    "linear_probe": "weight_decays = [0.1]",
    "attentive_probe": "lrs = [0.1]",
    "finetune": "lrs = [0.1]",
}
TRIAL = Trial(0.1, 1e6, 2**20, 0.0, {}, {"trainable": 1, "encoder": 1}, 0.1, 0.1, "f", 10, "CPU")


def evaluate(name, *options):
    given = (f'part = "{name}"', *filter(None, [REQUIRED.get(name)]), *options)
    return f"evaluate=[{{{', '.join(given)}}}]"


@pytest.fixture
def prepared(monkeypatch):
    """The processes in which the target was prepared."""
    found = []
    monkeypatch.setattr(Pixels, "prepare", lambda *_, **__: found.append(os.getpid()))
    return found


@pytest.fixture
def unlabelled(tmp_path, monkeypatch):
    """A folder of 20 images without classes."""
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    for number in range(20):
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        values = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(values).save(path)
    return tmp_path / "images"


def refused(tiny, tmp_path, message, *overrides):
    with pytest.raises(MimkitError, match=message):
        run(load(str(tiny), overrides=overrides), out=tmp_path, device="cpu")


@pytest.mark.parametrize("name", EVALUATORS)
def test_every_evaluator_is_asked_before_a_target_is_prepared(
    name, tiny, tmp_path, prepared, monkeypatch
):
    def check(self, subject):
        raise DataError("it cannot work")

    monkeypatch.setattr(registry.load(EVALUATORS[name]), "check", check)
    shows = ['data.name="objects"', "data.image_size=24"]  # labels, masks and objects
    refused(tiny, tmp_path, "it cannot work", *shows, evaluate(name))
    recipe = load(str(tiny), overrides=[*shows, evaluate(name)])
    with pytest.raises(DataError, match="it cannot work"):  # so do bench and compare open a run
        open_run(recipe, RunFolder(tmp_path), World(0, 1, torch.device("cpu")), Console(quiet=True))
    assert prepared == []


@pytest.mark.parametrize(
    "name", [name for name, entry in EVALUATORS.items() if registry.load(entry).needs_labels]
)
def test_missing_labels_are_told_before(name, tiny, tmp_path, prepared, unlabelled):
    refused(tiny, tmp_path, "needs labels", evaluate(name), f'data.name="{unlabelled}"',
            "data.num_images=12", "data.num_test_images=2")  # fmt: skip
    assert prepared == []


NO_CLASS_TOKEN = "encoder.class_token=false"
CANNOT_WORK = {
    "few images": ("at least three held-out images", evaluate("knn_consistency"),
                   "data.num_test_images=2"),
    "one image in all": ("at least two held-out images", evaluate("health"),
                         "data.num_test_images=1"),
    "health of no token": ("class token", evaluate("health", 'pool = "cls"'), NO_CLASS_TOKEN),
    "consistency of no token": ("class token", evaluate("knn_consistency", 'pool = "cls"'),
                                NO_CLASS_TOKEN),
    "knn of no token": ("class token", evaluate("knn", 'pool = "cls"'), NO_CLASS_TOKEN),
    "probe of no token": ("class token", evaluate("linear_probe", 'pools = ["cls"]'),
                          NO_CLASS_TOKEN),
    "fraction": (
        "label_fractions: must be an array of numbers above 0 and at most 1",
        evaluate("linear_probe", "label_fractions = [2.0]"),
    ),
    "heads": ("divide", evaluate("attentive_probe", "num_heads = 3")),
    "one image": ("at least two images", evaluate("attentive_probe", 'batch_norm = "batch"'),
                  "data.num_test_images=1"),
    "pooling": ("'pooled' needs a head", evaluate("finetune", 'network = "pooled"')),
    "size": ("multiple of the patches", evaluate("finetune", "image_size = 15")),
    "processes": ("multiple of the 3 processes", "train.processes=3"),
    "pieces": ("4 pieces", "train.processes=4", "train.accumulate=4"),
    "data": ("must be found", 'data.name="/nowhere/at/all"'),
    "labels": ("must be found", 'data.labelled="/nowhere/at/all"', evaluate("knn")),
}  # fmt: skip


@pytest.mark.parametrize("case", CANNOT_WORK)
def test_what_cannot_work_is_refused_before(case, tiny, tmp_path, prepared):
    message, *settings = CANNOT_WORK[case]
    refused(tiny, tmp_path, message, *settings)
    assert prepared == []
    assert not (tmp_path / "tiny" / "0" / "recipe.toml").exists()


def test_what_can_work_is_prepared(tiny, tmp_path, prepared):
    run(load(str(tiny), overrides=["train.total_steps=1"]), out=tmp_path, device="cpu")
    assert prepared == [os.getpid()]


@pytest.fixture
def recipes(tiny, tmp_path):
    files = []
    for name in ("one", "two"):
        files.append(tmp_path / f"{name}.toml")
        files[-1].write_text(tiny.read_text().replace('name = "tiny"', f'name = "{name}"'))
    return files


def question(*methods, **changes):
    asked = Question(
        methods=tuple(map(str, methods)),
        recipes=Asked(None),
        budget=Budget("steps", 4),
        seeds=1,
        evaluate=("knn",),
        device="cpu",
        jobs=1,
        command="mimkit compare",
    )
    return dataclasses.replace(asked, **changes)


@pytest.mark.parametrize("budget", [Budget("steps", 4), Budget("time", 60)], ids=["steps", "time"])
@pytest.mark.parametrize(
    ("old", "new", "evaluations", "message"),
    [
        ("num_test_images = 16", "num_test_images = 2", ("knn_consistency",),
         "method 'two': .*at least three held-out images"),
        ("num_images = 48", "num_images = 40", ("knn",), "one has 48 of shapes.*two 40 of shapes"),
        ("num_heads = 2", "num_heads = 3", ("knn",), "method 'two': .*num_heads"),
        ('name = "shapes"', 'name = "/nowhere"', ("knn",), "/nowhere"),
        ("batch_size = 8", "batch_size = 8\nprocesses = 3", ("knn",), "of the 3 processes"),
        ("", "", ("nearest",), "--evaluate nearest: must be one of"),
    ],
    ids=["images", "others", "parts", "data", "processes", "name"],
)  # fmt: skip
@pytest.mark.slow
def test_a_comparison_refuses_its_last_method_before_it_measures_the_first(
    old, new, evaluations, message, budget, recipes, tmp_path, monkeypatch
):
    def measure(*_, **__):
        raise AssertionError("a method was measured")

    monkeypatch.setattr("mimkit.study.gauge.subprocess.run", measure)
    recipes[1].write_text(recipes[1].read_text().replace(old, new))
    asked = question(*recipes, evaluate=evaluations, budget=budget)
    with pytest.raises(MimkitError, match=message):
        make_plan(asked, tmp_path / "out", Console(quiet=True))


def planned(question, version=mimkit.__version__):
    methods = (Method("one", "one", "one", 2, 3, (), TRIAL, 1.0, digest="before"),)
    return Plan("", "shapes", Budget("steps", 4), (0,), methods, version, asked=question.fixed())


def work(folder: Path) -> None:
    run_folder = folder / "runs" / "one" / "0"
    run_folder.mkdir(parents=True)
    (run_folder / "results.json").write_text(json.dumps({"results": []}))


def test_a_comparison_of_which_nothing_was_trained_stands_in_nobodys_way(recipes, tmp_path):
    asked = question(recipes[0])
    other = dataclasses.replace(
        asked, budget=Budget("steps", 8), recipes=Asked(None, data_path="/right")
    )
    edited = Found("one", "one", "one.toml", load(str(recipes[0])), {}, ())
    (tmp_path / "runs" / "one" / "0").mkdir(parents=True)
    plan, old = planned(asked), planned(asked, "0.0.1")
    assert not is_another(plan, asked, tmp_path)
    assert is_another(plan, other, tmp_path)
    assert is_edited(plan.methods[0], edited, tmp_path)
    assert is_of_other_version(old, tmp_path)
    (tmp_path / "runs" / "one" / "0").rmdir()
    (tmp_path / "runs" / "one").rmdir()
    (tmp_path / "runs").rmdir()
    work(tmp_path)
    assert not is_another(plan, asked, tmp_path)
    differ = r"its budget 4 optimizer steps, data_path None; asked for: budget 8 .*, data_path /r"
    with pytest.raises(DataError, match=differ):
        is_another(plan, other, tmp_path)
    with pytest.raises(DataError, match=r"one\.toml: this recipe.* is another one than when"):
        is_edited(plan.methods[0], edited, tmp_path)
    with pytest.raises(DataError, match=r"begun with mimkit 0\.0\.1"):
        is_of_other_version(old, tmp_path)
