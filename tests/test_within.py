"""Choosing preset and budget by time, with methods whose cost is known."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from mimkit.errors import RecipeError
from mimkit.recipe.schema import load, presets
from mimkit.study import within
from mimkit.study.budget import parse_budget, parse_within
from mimkit.study.outlook import seconds_of
from mimkit.study.plan import make_plan
from mimkit.study.question import Asked, Question
from mimkit.study.records import Budget, Trial

PRESETS = """
[presets.narrow]
encoder.embed_dim = 8
[presets.wide]
encoder.embed_dim = 64
[presets.fewer]
data.num_images = 24
encoder.embed_dim = 8
[presets.coarse]
data.patch_size = 8
encoder.embed_dim = 8
"""
SECONDS = {8: 1e-4, 16: 4e-4, 64: 64e-4}
"""Of one image, by width."""


class Known:
    """Knows what every method costs: as its width says, and for judging half as much again."""

    def __init__(self, *, owed=0.0, judging=1.5):
        self.owed = owed
        self.judging = judging
        self.measured = []

    def measure(self, recipe, label):
        width, train = recipe.encoder.options["embed_dim"], recipe.train
        self.measured.append((label, width, train.total_steps))
        seconds = train.batch_size * SECONDS[width]
        owed = {"one tokenizer": self.owed} if self.owed else {}
        trial = Trial(
            seconds,
            1e6 * width,
            width * 2**20,
            0.0,
            {},
            {"trainable": 9},
            0.0,
            0.0,
            "x",
            48,
            "CPU",
            owed=owed,
        )
        steps = next((t.options["total_steps"] for t in recipe.evaluate if t.name == "finetune"), 0)
        by_evaluator = {"knn": 0.1 * self.judging * train.total_steps * seconds}
        by_evaluator["finetune"] = steps * self.judging * 500 * SECONDS[width]
        facts = {"has_cls": False, "evaluate_seconds": by_evaluator, "disk_bytes": 1}
        return trial, facts

    def map(self, do: Callable, methods):
        return [do(method) for method in methods]


@pytest.fixture
def pair(tiny, tmp_path):
    files = []
    for name in ("one", "two"):
        file = tmp_path / f"{name}.toml"
        text = tiny.read_text().replace('"tiny"', f'"{name}"')
        text = text.replace("total_steps = 12", "total_steps = 100_000")
        file.write_text(text + PRESETS)
        files.append(str(file))
    return files


def asking(files, seconds, **changes):
    values = {
        "methods": tuple(files),
        "recipes": Asked(None),
        "budget": None,
        "seeds": 2,
        "evaluate": None,
        "device": "cpu",
        "jobs": 1,
        "command": "mimkit compare",
        "within": seconds,
    }
    return Question(**{**values, **changes})


def choose(asked, tmp_path, gauge=None):
    said = Console(record=True, width=200)
    chosen = within.chosen(asked, tmp_path / "out", said, gauge or Known())
    plan = make_plan(chosen, tmp_path / "out", Console(quiet=True), gauge or Known(), keep=False)
    return chosen, plan, said.export_text()


def test_presets_are_listed_with_what_they_change_of_the_data(pair):
    found = presets(pair[0])
    assert set(found) == {"narrow", "wide", "fewer", "coarse"}
    assert found["narrow"] == frozenset()
    assert found["fewer"] == {"num_images"}
    assert found["coarse"] == {"patch_size"}


@pytest.mark.parametrize("owed", [0.0, 60.0])
@pytest.mark.parametrize("seconds", [200.0, 600.0, 2_000.0, 20_000.0])
def test_what_is_chosen_fits_and_uses_the_time(pair, tmp_path, seconds, owed):
    chosen, plan, _ = choose(asking(pair, seconds), tmp_path, Known(owed=owed))
    taken = seconds_of(plan, 1)
    assert taken <= seconds
    most = 100_000 * 8  # what the recipes themselves would see
    assert taken > 0.8 * seconds or chosen.budget.amount >= 0.9 * most


def test_the_largest_network_that_sees_enough_is_chosen(pair, tmp_path):
    """Against a search over all: 2 methods, 2 seeds, judging as long as training at most."""
    for seconds in (100.0, 300.0, 1_500.0, 8_000.0):
        chosen, _, _ = choose(asking(pair, seconds), tmp_path)
        able = {
            name: seconds / (2 * 2 * 2 * SECONDS[width])
            for name, width in ((None, 16), ("narrow", 8), ("wide", 64), ("coarse", 8))
        }
        enough = [name for name in ("wide", None, "narrow", "coarse") if able[name] >= 100_000]
        expected = {enough[0]} if enough else {"narrow", "coarse"}
        if enough[:1] == ["narrow"]:
            expected = {"narrow", "coarse"}  # equally large
        assert chosen.recipes.preset in expected, (seconds, able)


def test_presets_with_other_images_are_left_out(pair, tmp_path):
    gauge = Known()
    choose(asking(pair, 600.0), tmp_path, gauge)
    question = asking(pair, 600.0)
    assert within._names(question) == [None, "narrow", "wide", "coarse"]


def test_a_preset_that_one_method_lacks_is_left_out(pair, tmp_path):
    with open(pair[1]) as file:
        text = file.read().replace("[presets.wide]", "[presets.broad]")
    with open(pair[1], "w") as file:
        file.write(text)
    assert within._names(asking(pair, 600.0)) == [None, "narrow", "coarse"]


def test_what_does_not_fit_into_memory_is_left_out(pair, tmp_path, monkeypatch):
    asked = asking(pair, 20_000.0, jobs=2)
    assert choose(asked, tmp_path)[0].recipes.preset == "wide"
    # Known says 1 MiB for each of two runs, times the width.
    monkeypatch.setattr("mimkit.study.within.machine_bytes", lambda: 50 * 2**20)
    assert choose(asked, tmp_path)[0].recipes.preset is None


def test_a_named_preset_is_kept(pair, tmp_path):
    asked = asking(pair, 2_000.0, recipes=Asked(None, preset="wide"))
    chosen, plan, _ = choose(asked, tmp_path)
    assert chosen.recipes.preset == "wide"
    assert seconds_of(plan, 1) <= 2_000
    with pytest.raises(RecipeError, match="must be enough for 1,000 images"):
        choose(replace(asked, within=600.0), tmp_path)  # its judging alone takes 960 s


def test_it_says_what_more_time_would_allow(pair, tmp_path):
    _, _, said = choose(asking(pair, 600.0), tmp_path)
    assert "chosen: " in said
    assert "twice the time would allow" in said
    assert "ten times the time would allow" in said


def test_too_short_a_time_is_refused_with_what_would_do(pair, tmp_path):
    with pytest.raises(RecipeError, match=r"--within .*1,000 images a run.*Give more time"):
        choose(asking(pair, 0.1), tmp_path)


def test_a_budget_and_a_time_are_refused(pair, tmp_path):
    asked = asking(pair, 600.0, budget=parse_budget("images=5k"))
    with pytest.raises(RecipeError, match="--budget must be left out"):
        choose(asked, tmp_path)


def test_a_comparison_that_goes_on_keeps_what_it_chose(pair, tmp_path):
    asked, folder = asking(pair, 600.0), tmp_path / "out"
    first, _, _ = choose(asked, tmp_path)
    make_plan(first, folder, Console(quiet=True), Known(), keep=True)
    again = within.chosen(replace(asked, seeds=5), folder, Console(quiet=True), None)
    assert (again.recipes.preset, again.budget) == (first.recipes.preset, first.budget)
    assert again.seeds == 5


def test_judging_takes_no_longer_than_training(pair, tmp_path):
    question = replace(asking(pair, None), budget=Budget("images", 100_000))
    for judging in (0.1, 1.0, 3.0, 8.0):
        plan = make_plan(
            question, tmp_path / "out", Console(quiet=True), Known(judging=judging), keep=False
        )
        training = sum(m.pretrain_seconds for m in plan.methods)
        judged = sum(m.evaluate_seconds for m in plan.methods)
        assert judged <= 1.01 * training or plan.sizes["steps"] == 50, judging


def test_named_evaluations_are_made_as_large_as_they_are(pair, tmp_path):
    question = replace(asking(pair, None), budget=Budget("images", 100_000), evaluate=("finetune",))
    plan = make_plan(question, tmp_path / "out", Console(quiet=True), Known(judging=9), keep=False)
    assert plan.sizes["steps"] == 200


def test_the_shortened_trainings_stand_in_the_recipes(pair, tmp_path):
    question = replace(asking(pair, None), budget=Budget("images", 100_000))
    plan = make_plan(question, tmp_path / "out", Console(quiet=True), Known(judging=3))
    assert 50 <= plan.sizes["steps"] < 200
    recipe = load(str(tmp_path / "out" / "recipes" / "one.toml"))
    (steps,) = [t.options["total_steps"] for t in recipe.evaluate if t.name == "finetune"]
    assert steps == plan.sizes["steps"]


def test_a_long_plan_names_what_would_be_shorter(pair, tmp_path):
    question = replace(asking(pair, None), budget=Budget("images", 100_000))
    plan = make_plan(question, tmp_path / "out", Console(quiet=True), Known(), keep=False)
    lines = within.suggestions(question, plan, Known())
    assert [line.split(":")[0] for line in lines] == [
        "with --preset narrow",
        "with --preset coarse",
    ]


@pytest.mark.parametrize(
    ("text", "seconds"), [("1h", 3600), ("30m", 1800), ("90", 90), ("2d", 172800)]
)
def test_times_are_read(text, seconds):
    assert parse_within(text, None) == seconds


def test_auto_is_an_hour():
    assert parse_within(None, "auto") == 3600
    assert parse_within(None, "small") is None
    assert parse_within("2h", "auto") == 7200
    with pytest.raises(RecipeError, match="--within an hour: must be a number above 0"):
        parse_within("an hour", None)
