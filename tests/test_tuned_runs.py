"""A tuned comparison of real runs: it goes on after kills, and no test label has a say."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY
from rich.console import Console

from mimkit import Mask, Masker
from mimkit.data.opening import open_sources
from mimkit.launch.base import Ended
from mimkit.launch.local import LocalLauncher
from mimkit.pipeline import assemble
from mimkit.pipeline.run import run
from mimkit.recipe import registry
from mimkit.recipe.schema import load
from mimkit.study import measuring
from mimkit.study.budget import parse_budget
from mimkit.study.conduct import conduct
from mimkit.study.question import Asked, Question
from mimkit.study.records import Trial

QUIET = Console(quiet=True)
SMALL = ("data.num_images=200", "data.num_test_images=40")
COMMAND = ("--tune", "2", "--seeds", "1", "--evaluate", "knn", "--device", "cpu", "--jobs", "1")


class Rows(Masker):
    """Every other row of the grid, in each image; nothing about it is worth a search."""

    def __init__(self, geometry):
        self.grid = geometry.grid

    def sample(self, batch_size, generator):
        masked = torch.arange(self.grid.num_patches) // self.grid.cols % 2 == 0
        return Mask.drop(masked.expand(batch_size, -1), self.grid)


class Here(LocalLauncher):
    """Makes each run in this process."""

    def __init__(self):
        super().__init__()
        self.made = []

    def submit(self, task):
        words = task.command
        recipe = load(words[4], seed=int(words[words.index("--seed") + 1]))
        run(recipe, out=Path(words[words.index("--out") + 1]), device="cpu", console=QUIET)
        self.made.append((recipe.name, recipe.seed))
        task.log.parent.mkdir(parents=True, exist_ok=True)
        task.log.touch()
        return str(task.log)

    def poll(self, job):
        return Ended(0)


@pytest.fixture
def here(monkeypatch):
    """Lets a comparison measure in this process too, and registers a masker of somebody else."""

    class Gauge:
        def __init__(self, *_):
            pass

        def measure(self, recipe, label):
            found = measuring.measure(recipe, "cpu", QUIET)
            return Trial(**found.pop("trial")), found

        def map(self, do, methods):
            return [do(method) for method in methods]

    installed = registry._entry_points
    point = registry.Point("rows", f"{__name__}:Rows", "mimkit-other", "1.0")
    more = {"mimkit.maskers": [point]}
    monkeypatch.setattr(registry, "_entry_points", lambda g: [*installed(g), *more.get(g, [])])
    monkeypatch.setattr("mimkit.study.conduct.Thorough", Gauge)


def asking(*methods, **changes):
    values = {
        "methods": methods,
        "recipes": Asked("shapes", overrides=SMALL),
        "budget": parse_budget("images=400"),
        "seeds": 1,
        "evaluate": ("knn",),
        "device": "cpu",
        "jobs": 1,
        "command": "mimkit compare --tune 2",
        "tune": 2,
    }
    return Question(**{**values, **changes})


@pytest.mark.slow
def test_methods_of_plugins_and_a_masker_of_somebody_else_are_tuned_alike(here, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text('base = "mae_shapes"\nname = "other"\n[masker]\npart = "rows"\n')
    question, launcher = asking("mae", "selfie", str(other)), Here()
    out = tmp_path / "out"
    study = conduct(question, out, launcher, console=QUIET)
    assert len(launcher.made) == 3 * 2 + 3
    assert {one.method: one.options.keys() for one in study.tuning.tried} == {
        "mae": {"mask_ratio"},
        "selfie": {"mask_ratio"},
        "other": set(),
    }
    assert study.tuning.num_images == 20
    for arm in study.arms:
        best = next(one for one in study.tuning.tried if one.method == arm.label and one.chosen)
        trial = load(str(out / f"tuning/recipes/{arm.label}-{best.number}.toml"))
        final = load(str(arm.recipe))
        assert final.masker.options == trial.masker.options
        assert final.train.lr == pytest.approx(best.lr * (final.train.batch_size / 64) ** 0.5)
        assert final.train.total_steps * final.train.batch_size <= 320
        assert trial.train.total_steps * trial.train.batch_size <= 40
    page = (out / "report.html").read_text()
    assert "What was tried first" in page
    assert "Of other the learning rate alone was tried" in page
    assert "| other | 2 |" in (out / "results.md").read_text()
    assert len(json.loads((out / "results.json").read_text())["tuning"]["tried"]) == 6
    again = Here()
    assert conduct(question, out, again, console=QUIET).tuning == study.tuning
    assert again.made == []


@pytest.mark.slow
def test_labels_of_test_images_have_no_say_in_a_choice(here, tmp_path, monkeypatch, tiny):
    small = Asked(None, overrides=SMALL)
    question = asking(str(tiny), recipes=small, evaluate=("linear_probe", "knn"), tune=3)
    choices = []
    for number, scrambled in enumerate((False, True)):
        with monkeypatch.context() as patch:
            if scrambled:
                patch.setattr(assemble, "open_sources", scrambling)
            study = conduct(question, tmp_path / str(number), Here(), console=QUIET)
        choices.append(study.tuning)
        scores = [one["value"] for one in study.outcomes[0].results if one["evaluator"] == "knn"]
        choices.append(scores)
    assert choices[0] == choices[2]
    assert choices[0].evaluator == "linear_probe"
    assert isinstance(choices[0].protocol["label_fraction"], float)
    assert choices[1] != choices[3]  # the runs are judged by test images


def scrambling(data, found=None):
    """Both splits, the labels of the test images being others."""
    train, test = open_sources(data, found)
    return train, dataclasses.replace(test, labels=test.labels.roll(1))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_tuned_comparison_that_is_killed_goes_on_and_ends_as_if_nothing_had_been(tmp_path):
    folders = [tmp_path / name for name in ("undisturbed", "killed")]
    for folder in folders:
        folder.mkdir()
        (folder / "tiny.toml").write_text(TINY.replace("total_steps = 12", "total_steps = 120"))
    assert start(folders[0]).wait(timeout=900) == 0
    killed = folders[1]
    for mark in ("tuning/runs/tiny-1/*/checkpoints/*", "tuning/runs/tiny-2/*", "runs/*/*"):
        process = start(killed)
        while not list((killed / "out").glob(mark)):
            assert process.poll() is None, (killed / "said.txt").read_text()
            time.sleep(0.05)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert start(killed).wait(timeout=900) == 0
    for name in ("tuning/chosen.json", "results.csv"):
        one, other = ((folder / "out" / name).read_text() for folder in folders)
        assert one == other, name
    for trial in ("tuning/runs/tiny-1", "tuning/runs/tiny-2", "runs/tiny"):
        one, other = (
            next((folder / "out" / trial).glob("*/encoder.safetensors")).read_bytes()
            for folder in folders
        )
        assert one == other, trial


def start(folder):
    words = ["tiny.toml", "--budget", "images=960", "--out", "out", *COMMAND]
    with (folder / "said.txt").open("a") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "mimkit", "compare", *words],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=said,
            stderr=said,
        )
