"""Equal tuning: which settings are tried, what each trial may spend, and what is chosen by them."""

import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

import mimkit
from mimkit import Mask, Masker, RecipeError
from mimkit.errors import DataError
from mimkit.launch.base import Ended
from mimkit.launch.local import LocalLauncher
from mimkit.recipe import registry
from mimkit.recipe.schema import load
from mimkit.report import tuned as told
from mimkit.study.budget import parse_budget
from mimkit.study.execute import execute
from mimkit.study.matrix import choose_sizes, evaluations, for_trials
from mimkit.study.methods import find_methods
from mimkit.study.plan import TRIAL_SEED, make_plan
from mimkit.study.question import Asked, Question
from mimkit.study.records import Trial
from mimkit.study.trials import choose, plan_trials, runs_after, tuning_of
from mimkit.study.tuning import _placed, settings, tables_of, trial_of

QUIET = Console(quiet=True)


class Stripes(Masker):
    """Every other row: nothing about it is worth a search."""

    hides = True

    def __init__(self, geometry, *, first: int = 0):
        self.grid, self.first = geometry.grid, first

    def sample(self, batch_size, generator):
        masked = torch.arange(self.grid.num_patches) // self.grid.cols % 2 == self.first
        return Mask.replace(masked.expand(batch_size, -1), self.grid)


@pytest.fixture
def also(monkeypatch):
    """Registers a part beside all that is installed."""
    installed = registry._entry_points

    def add(kind, name, cls):
        point = registry.Point(name, f"{cls.__module__}:{cls.__qualname__}", "mimkit-other", "1.0")
        monkeypatch.setattr(
            registry,
            "_entry_points",
            lambda group: [*installed(group), *([point] if group == f"mimkit.{kind}" else [])],
        )

    return add


class Measured:
    """A gauge that measures nothing: every step costs the more, the less is masked."""

    def measure(self, recipe, label):
        seconds = 1.0 - recipe.masker.options.get("mask_ratio", 0.5) / 2
        counts = {"trainable": 1, "encoder": 1}
        trial = Trial(seconds, 1e6, 2**20, 0.0, {}, counts, 0.1, 0.1, PRINT, 48, "CPU")
        return trial, {"has_cls": False, "evaluate_seconds": {"knn": 1.0}, "disk_bytes": 1}

    def map(self, do, methods):
        return [do(method) for method in methods]


class Pretending(LocalLauncher):
    """Finishes each run at once, with a score that a function gives for its recipe."""

    def __init__(self, score):
        super().__init__()
        self.score = score
        self.recipes = []

    def submit(self, task):
        words = task.command
        recipe = tomllib.loads(Path(words[4]).read_text())
        seed = int(words[words.index("--seed") + 1])
        self.recipes.append(recipe)
        folder = Path(words[words.index("--out") + 1]) / recipe["name"] / str(seed)
        folder.mkdir(parents=True)
        score = self.score(recipe)
        train = recipe["train"]
        ledger = {
            "mimkit": mimkit.__version__,
            "dataset": {"name": "shapes", "fingerprint": PRINT},
            "steps": train["total_steps"],
            "images_seen": train["total_steps"] * train["batch_size"],
            "seconds": {"train": 1.0, "evaluate": 1.0},
        }
        if score is None:
            ledger["seconds"] = {"train": 1.0}
            ledger["skipped_steps"] = [{"step": n, "index": []} for n in range(3)]
        elif isinstance(score, float):
            result = mimkit.Result("knn", "accuracy", score, 5, seed, "pretrained", {"k": 20})
            (folder / "results.json").write_text(json.dumps({"results": [result.record]}))
        if not isinstance(score, str):
            (folder / "ledger.json").write_text(json.dumps(ledger))
        task.log.parent.mkdir(parents=True, exist_ok=True)
        task.log.write_text(score if isinstance(score, str) else "")
        self.code = 0 if isinstance(score, float) else 2
        return str(task.log)

    def poll(self, job):
        return Ended(self.code)


@pytest.fixture
def recipes(tmp_path, also):
    """Two methods: one masks a share of the patches, the other always the same ones."""
    also("maskers", "stripes", Stripes)
    files = {"share": TINY, "fixed": TINY.replace(SHARE, 'part = "stripes"')}
    for name, text in files.items():
        named = text.replace('name = "tiny"', f'name = "{name}"').replace("1e-3", "4e-3")
        (tmp_path / f"{name}.toml").write_text(named)
    return [str(tmp_path / f"{name}.toml") for name in files]


SHARE = 'part = "random"\nmask_ratio = 0.5\nmode = "replace"'
PRINT = "of the images"


def asking(methods, **changes):
    values = {
        "methods": tuple(methods),
        "recipes": Asked(None),
        "budget": parse_budget("images=800"),
        "seeds": 2,
        "evaluate": ("knn",),
        "device": "cpu",
        "jobs": 1,
        "command": "mimkit compare --tune",
        "tune": 4,
    }
    return Question(**{**values, **changes})


def tried_by(file, num_trials, **asked):
    asked = Asked(None, **asked)
    (found,) = find_methods([str(file)], asked)
    return settings(found, asked, num_trials)


def finish(question, folder, score):
    """Makes the trials of a question; returns them and the recipes that were run."""
    launcher = Pretending(score)
    trials = plan_trials(question, folder, QUIET, Measured())
    execute(trials.open, trials.folder, jobs=1, launcher=launcher, device="cpu", console=QUIET)
    choose(trials)
    return trials, launcher.recipes


def by_ratio(recipe):
    """The best is the trial that masks most; of equal masks the one that learns fastest."""
    return recipe["masker"].get("mask_ratio", 0.0) / 2 + recipe["train"]["lr"]


# --- which settings -------------------------------------------------------------------------------


def test_the_first_trial_is_the_recipe_and_the_others_lie_around_it(recipes):
    share = tried_by(recipes[0], 9)
    (found, _) = find_methods(recipes, Asked(None))
    assert tables_of(found.recipe, share[0]) == {}
    assert (share[0].factor, share[0].options) == (1.0, {"mask_ratio": 0.5})
    assert len({(one.factor, *one.options.values()) for one in share}) == 9
    assert all(0.25 <= one.factor <= 4 and 0.1 <= one.options["mask_ratio"] <= 0.9 for one in share)
    for value in ("factor", "mask_ratio"):
        middle = {"factor": 1.0, "mask_ratio": 0.5}[value]
        above = [getattr(one, value, one.options["mask_ratio"]) > middle for one in share[1:]]
        assert sum(above) == 4, value


def test_more_trials_begin_with_those_of_fewer_and_nothing_is_random(recipes):
    assert tried_by(recipes[0], 9)[:4] == tried_by(recipes[0], 4) == tried_by(recipes[0], 4)


def test_a_masker_that_declares_nothing_is_tuned_by_its_learning_rate_alone(recipes):
    fixed = tried_by(recipes[1], 5)
    assert [one.options for one in fixed] == [{}] * 5
    assert len({one.factor for one in fixed}) == 5


def test_what_does_not_fit_the_grid_is_left_out(tmp_path):
    # Of nine squares of a grid of 4 x 4 only one, two or three quarters can be masked.
    (tmp_path / "few.toml").write_text(
        TINY.replace("mask_ratio = 0.5", "mask_ratio = 0.5\nunit = 2")
    )
    tried = tried_by(tmp_path / "few.toml", 9)
    assert min(one.options["mask_ratio"] for one in tried) >= 0.25
    assert len(tried) == 9


def test_a_number_of_patches_gives_way_to_the_ratio_and_numbers_stay_whole(tmp_path):
    block = 'part = "block"\nnum_targets = 8\nexact = true\nmode = "replace"'
    (tmp_path / "block.toml").write_text(TINY.replace(SHARE, block))
    (found,) = find_methods([str(tmp_path / "block.toml")], Asked(None))
    first, second = settings(found, Asked(None), 2)
    assert first.options == {}
    trial = trial_of(found, Asked(None), second).recipe
    assert trial.masker.options["num_targets"] is None
    assert trial.masker.options["mask_ratio"] == second.options["mask_ratio"]
    assert [_placed(place, 5, 1, 8) for place in (0.0, 0.25, 0.5, 0.75, 0.999)] == [1, 3, 5, 6, 8]


@given(
    place=st.floats(0, 1, exclude_max=True),
    own=st.none() | st.floats(0.01, 1),
    ends=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
)
def test_a_place_never_leaves_its_range_but_for_the_recipes_own_value(place, own, ends):
    low, high = ends
    value = _placed(place, own, low, high)
    known = [low, high, *([own] if own is not None else [])]
    assert min(known) * 0.99 <= value <= max(known) * 1.01
    assert _placed(0.5, own, low, high) == pytest.approx(
        (low + high) / 2 if own is None else own, rel=0.01
    )


def test_every_masker_of_ours_can_be_made_at_both_ends_of_what_it_declares():
    for entry in registry.entries("maskers"):
        masker = registry.load(entry)
        for name, ends in masker.tunable.items():
            for value in ends:
                options = masker.tuned(masker.miniature, {name: value})
                masker(mimkit.Geometry(mimkit.Grid(8, 8, 4)), **options)


@pytest.mark.parametrize("setting", ["train.lr=0.1", "masker.mask_ratio=0.4"])
def test_what_is_to_be_chosen_must_not_be_set(recipes, setting):
    with pytest.raises(RecipeError, match=r"--set \w+\.\w+: must be left out with --tune"):
        tried_by(recipes[0], 4, overrides=(setting,))


# --- what they are given --------------------------------------------------------------------------


def test_all_methods_get_the_same_number_of_trials_each_with_a_tenth_of_the_budget(
    recipes, tmp_path
):
    trials, run = finish(asking(recipes), tmp_path / "out", by_ratio)
    assert [one["name"] for one in run] == [
        f"{name}-{number}" for number in range(1, 5) for name in ("share", "fixed")
    ]
    assert {one["train"]["total_steps"] * one["train"]["batch_size"] for one in run} == {80}
    plan = make_plan(asking(recipes), tmp_path / "out", QUIET, Measured(), runs_after(trials))
    assert {method.images for method in plan.methods} == {480}
    assert plan.tune == 4


def test_under_a_time_budget_a_trial_that_masks_more_sees_more_images(recipes, tmp_path):
    trials = plan_trials(
        asking(recipes[:1], budget=parse_budget("time=1000")), tmp_path, QUIET, Measured()
    )
    spent = {
        method.label: method.total_steps * method.trial.seconds_per_step
        for method in trials.methods("share")
    }
    assert list(spent.values()) == pytest.approx([100] * 4, rel=0.02)
    assert len({method.images for method in trials.methods("share")}) > 1


def test_trials_are_judged_by_labels_that_are_held_back_and_by_nothing_else(recipes, tmp_path):
    _, run = finish(asking(recipes, evaluate=("health", "knn")), tmp_path, by_ratio)
    for one in run:
        assert one["data"]["judge"] == "development"
        assert [table["part"] for table in one["evaluate"]] == ["knn"]
    assert all(one.parent.name.startswith(("share-", "fixed-")) for one in runs_in(tmp_path))
    assert {one.name for one in runs_in(tmp_path)} == {str(TRIAL_SEED)}


def runs_in(folder):
    return list((folder / "tuning/runs").glob("*/*"))


def test_fine_tuning_in_a_trial_trains_no_baseline_and_judges_as_many_images_as_ever():
    sizes = for_trials(choose_sizes(2_000, None))
    (table,) = evaluations(
        ("finetune",), replace(sizes, fractions=(0.1,)), has_cls=False, total_steps=50
    )
    assert (table["part"], table["baseline"], table["num_test_images"]) == (
        "finetune",
        False,
        10_000,
    )


# --- what is chosen -------------------------------------------------------------------------------


def test_the_runs_have_the_setting_of_the_best_trial(recipes, tmp_path):
    question = asking(recipes)
    trials, run = finish(question, tmp_path, by_ratio)
    share, fixed = runs_after(trials).found
    most = max(run, key=lambda one: one["masker"].get("mask_ratio", 0.0))
    assert share.recipe.masker.options["mask_ratio"] == most["masker"]["mask_ratio"]
    assert share.recipe.train.lr == most["train"]["lr"]
    assert fixed.recipe.train.lr == 2 * 4e-3
    assert fixed.recipe.data.judge == "test"
    assert fixed.notes[-1] == "tuned: trial 2 of 4, learning rate x 2"
    make_plan(question, tmp_path, QUIET, Measured(), runs_after(trials))
    written = load(str(tmp_path / "recipes/fixed.toml"))
    assert (written.train.lr, written.name) == (8e-3, "fixed")


def test_of_equal_trials_the_recipe_as_it_is(recipes, tmp_path):
    trials, _ = finish(asking(recipes), tmp_path, lambda recipe: 0.5)
    for one in runs_after(trials).found:
        assert ": trial 1 of 4" in one.notes[-1]
        assert one.recipe.train.lr == 4e-3


def test_what_was_chosen_is_not_tried_again_and_another_method_is(recipes, tmp_path):
    finish(asking(recipes[:1]), tmp_path, by_ratio)
    kept = (tmp_path / "tuning/chosen.json").read_text()
    _, again = finish(asking(recipes[:1]), tmp_path, by_ratio)
    assert again == []
    assert (tmp_path / "tuning/chosen.json").read_text() == kept
    _, added = finish(asking(recipes), tmp_path, by_ratio)
    assert [one["name"] for one in added] == [f"fixed-{number}" for number in range(1, 5)]
    assert (
        json.loads((tmp_path / "tuning/chosen.json").read_text())["share"]
        == (json.loads(kept)["share"])
    )


def test_a_trial_that_diverged_counts_and_is_never_chosen(recipes, tmp_path):
    def score(recipe):
        return None if recipe["train"]["lr"] > 4e-3 else by_ratio(recipe)

    finish(asking(recipes), tmp_path, score)
    tuning = tuning_of(tmp_path, ["share", "fixed"], 4)
    assert [one.score is None for one in tuning.tried] == [False, True, False, False] * 2
    assert not any(one.chosen for one in tuning.tried if one.score is None)
    assert "diverged" in next(line for line in told.lines(tuning) if line.cells[0] == "2").cells


def test_where_all_diverge_that_is_said(recipes, tmp_path):
    with pytest.raises(DataError, match=r"'share'.*one of its 4 trials must train to the end"):
        finish(asking(recipes), tmp_path, lambda recipe: None)


def test_a_trial_that_failed_is_tried_again_before_anything_is_chosen(recipes, tmp_path):
    def score(recipe):
        return "OSError: no disk" if recipe["name"] == "share-3" else by_ratio(recipe)

    with pytest.raises(DataError, match=r"must get 4 trials, but share-3 has failed: OSError: no"):
        finish(asking(recipes[:1]), tmp_path, score)
    assert not (tmp_path / "tuning/chosen.json").exists()
    shutil.rmtree(tmp_path / "tuning/runs/share-3")  # which the pretended process has left
    _, run = finish(asking(recipes[:1]), tmp_path, by_ratio)
    assert [one["name"] for one in run] == ["share-3"]


# --- what is said, and refused --------------------------------------------------------------------


def test_the_report_says_what_was_tried_and_chosen(recipes, tmp_path):
    finish(asking(recipes), tmp_path, by_ratio)
    tuning = tuning_of(tmp_path, ["share", "fixed"], 4)
    assert told.columns(tuning) == ("trial", "learning rate", "mask_ratio", "k-NN accuracy", "")
    rows = [(line.method, *line.cells) for line in told.lines(tuning)]
    assert rows[0][:2] == ("share", "1")
    assert rows[0][3] == "0.5"
    assert [row[3] for row in rows[4:]] == ["–"] * 4
    assert sum(row[-1] == "chosen" for row in rows) == 2
    said = " ".join(told.explained(tuning))
    assert "4 trials with a tenth of a run's budget each, so that the runs had 6 tenths" in said
    assert "k-NN accuracy of 5 training images whose labels were held back" in said
    assert "Of fixed the learning rate alone was tried" in said
    assert "Of share and fixed the largest or smallest learning rate" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": 1}, "--tune 1: must be 0 for none, or from 2 to 9"),
        ({"tune": 10}, "--tune 10: must be 0 for none, or from 2 to 9"),
        ({"within": 60.0}, "--within: must be left out with --tune"),
        ({"evaluate": ("health",)}, "--evaluate must name one of knn, linear_probe"),
        ({"recipes": Asked(None, overrides=("data.num_images=8",))}, "no class has two labelled"),
    ],
)
def test_what_cannot_be_tuned_is_refused(recipes, tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        plan_trials(asking(recipes, **changes), tmp_path, QUIET, Measured())


def test_without_labels_nothing_can_be_chosen(recipes, tmp_path):
    for split, count in (("train", 30), ("val", 4)):
        (tmp_path / "data" / split).mkdir(parents=True)
        for number in range(count):
            file = tmp_path / "data" / split / f"{number}.png"
            Image.new("RGB", (16, 16), (number, 0, 0)).save(file)
    asked = replace(asking(recipes).recipes, dataset=str(tmp_path / "data"))
    with pytest.raises(RecipeError, match="--tune: needs labels, but the data set has none"):
        plan_trials(asking(recipes, recipes=asked, evaluate=None), tmp_path, QUIET, Measured())


def test_another_number_of_trials_is_another_comparison_once_a_run_was_trained(recipes, tmp_path):
    question = asking(recipes[:1])
    trials, _ = finish(question, tmp_path, by_ratio)
    make_plan(question, tmp_path, QUIET, Measured(), runs_after(trials))
    run = tmp_path / "runs/share/0"
    run.mkdir(parents=True)
    (run / "results.json").write_text("{}")
    for other, said in ((0, "None"), (5, "5")):
        asked = replace(question, tune=other)
        with pytest.raises(DataError, match=rf"its tune 4; asked for: tune {said}\)"):
            make_plan(asked, tmp_path, QUIET, Measured())


def test_a_plan_that_lacks_newer_keys_is_still_that_of_its_question(recipes, tmp_path):
    question = asking(recipes[:1], tune=0)
    make_plan(question, tmp_path, QUIET, Measured())
    run = tmp_path / "runs/share/0"
    run.mkdir(parents=True)
    (run / "results.json").write_text("{}")
    plan = json.loads((tmp_path / "plan.json").read_text())
    kept = {name: value for name, value in plan["asked"].items() if value}
    for asked in (kept, {**plan["asked"], "newer": []}):
        (tmp_path / "plan.json").write_text(json.dumps({**plan, "asked": asked}))
        assert make_plan(question, tmp_path, QUIET, Measured()).methods


def test_a_question_without_trials_is_asked_as_before():
    assert "tune" not in asking([], tune=0).fixed()
    assert asking([]).fixed()["tune"] == 4
