"""Planning a comparison: budgets, the recipe of a method, its evaluations, measured trials."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from torchvision.transforms.functional import to_pil_image

from mimkit.data.opening import open_source
from mimkit.errors import DataError, MimkitError, RecipeError
from mimkit.recipe.schema import load
from mimkit.study.budget import describe, images_of, parse_budget
from mimkit.study.gauge import Thorough, threads
from mimkit.study.matrix import choose_sizes, evaluations
from mimkit.study.methods import find_methods, fitted_batch, schedule
from mimkit.study.outlook import table, warnings
from mimkit.study.plan import make_plan, read_plan
from mimkit.study.question import Asked, Question
from mimkit.study.records import Budget, Method, Plan, Trial

RECIPE = """
name = "{name}"
[data]
name = "shapes"
image_size = 16
patch_size = 4
num_images = 400
num_test_images = 100
[masker]
part = "random"
mask_ratio = 0.5
mode = "replace"
[encoder]
part = "vit"
embed_dim = 16
depth = {depth}
mask_token = true
num_heads = 2
[targets.pixels]
part = "pixels"
[head]
part = "linear"
[losses.pixels]
part = "mse"
[train]
total_steps = 100
batch_size = 32
optimizer = "adamw"
lr = 1e-3
warmup_steps = 10
"""
TRIAL = Trial(0.5, 1e9, 2**30, 10.0, {"a tokenizer": 10.0}, {}, 0.01, 0.02, "print", 100, "CPU")


@pytest.fixture
def recipes(tmp_path):
    files = []
    for name, depth in (("one", 1), ("two", 2)):
        file = tmp_path / f"{name}.toml"
        file.write_text(RECIPE.format(name=name, depth=depth))
        files.append(str(file))
    return files


def question(methods, budget="images=640", **changes):
    values = {
        "methods": tuple(methods),
        "recipes": Asked(None),
        "budget": None if budget is None else parse_budget(budget),
        "seeds": 2,
        "evaluate": ("knn",),
        "device": "cpu",
        "jobs": 1,
        "command": "mimkit compare",
    }
    return Question(**{**values, **changes})


def planned(asked, folder):
    console = Console(quiet=True)
    return make_plan(asked, folder, console, Thorough(folder, "cpu", 1, console))


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("steps=400", "steps", 400),
        ("images=20k", "images", 20_000),
        ("images=1.5M", "images", 1_500_000),
        ("time=30m", "time", 1800),
        ("time=90", "time", 90),
        ("time=2h", "time", 7200),
        ("flops=1e17", "flops", 1e17),
        ("flops=3P", "flops", 3e15),
    ],
)
def test_a_budget_is_read_with_its_unit(text, unit, amount):
    assert parse_budget(text) == Budget(unit, amount)
    assert describe(parse_budget(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image=20k", "Did you mean 'images'"),
        ("images", "must be a number above 0"),
        ("images=0", "must be a number above 0"),
        ("images=-3", "must be a number above 0"),
        ("images=1.2.3", "must be a number above 0"),
        ("images=20m", "units k, M, G"),
        ("time=30 minutes", "such as time=30m"),
    ],
)
def test_a_wrong_budget_is_refused_with_what_would_do(text, message):
    with pytest.raises(RecipeError, match=message):
        parse_budget(text)


def test_a_time_budget_pays_for_the_tokenizer_first():
    assert images_of(Budget("time", 60.0), 8, TRIAL) == pytest.approx((60 - 10) / 0.5 * 8)
    assert images_of(Budget("flops", 5e12), 8, TRIAL) == pytest.approx(5000)
    owing = replace(TRIAL, prepare_flops=2e12)  # a tokenizer's training
    assert images_of(Budget("flops", 5e12), 8, owing) == pytest.approx(3000)
    assert images_of(Budget("steps", 7), 8, None) == 56
    assert images_of(Budget("images", 100), 8, None) == 100


def test_a_method_is_the_recipe_of_that_name_for_the_data_set():
    (found,) = find_methods(["beit"], Asked("shapes"))
    assert (found.label, found.source, found.notes) == ("beit", "beit_shapes", ())
    (found,) = find_methods(["beit"], Asked("cifar10", preset="small"))
    assert found.source == "beit_cifar"  # made for cifar10, whatever it is called
    assert found.recipe.encoder.options["embed_dim"] == 96


def test_a_recipe_stands_for_itself(recipes):
    found = find_methods(recipes, Asked(None))
    assert [one.label for one in found] == ["one", "two"]
    assert find_methods(["selfie_cifar"], Asked(None))[0].label == "selfie_cifar"


def test_for_other_data_the_nearest_recipe_is_fitted_and_says_so(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for label in ("a", "b"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = torch.rand(3, 40, 30, generator=generator)
                to_pil_image(pixels).save(folder / f"{number}.png")
    (found,) = find_methods(["cae"], Asked(str(tmp_path / "data")))
    assert found.recipe.data.name == str(tmp_path / "data")
    assert found.recipe.data.image_size == (32, 32)
    assert "is replaced by" in found.notes[0]


def test_how_many_images_a_recipe_takes_of_its_own_data_says_nothing_of_others(tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        (tmp_path / split).mkdir()
        for number in range(count):
            Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / split / f"{number}.png")
    asked = Asked(str(tmp_path))
    (found,) = find_methods(["mae_shapes"], asked)
    assert load("mae_shapes").data.num_images == 8_000
    assert found.recipe.data.num_images is None
    (found,) = find_methods(["mae_shapes"], replace(asked, overrides=("data.num_images=3",)))
    assert found.recipe.data.num_images == 3


def test_a_data_set_of_one_small_size_keeps_its_pixels_and_the_grid(monkeypatch):
    monkeypatch.setattr("mimkit.study.methods._side", lambda source: 64.0)
    monkeypatch.setattr("mimkit.study.methods._open", lambda asked, recipe: None)
    (found,) = find_methods(["cae"], Asked("tiny_imagenet"))
    assert found.recipe.data.patch_size == 8
    assert found.recipe.data.image_size == (64, 64)
    assert "patches of 4 px become 8 px" in found.notes[1]


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(RecipeError, match="Did you mean 'selfie'"):
        find_methods(["selfi"], Asked("shapes"))
    with pytest.raises(RecipeError, match="the data must be named: --dataset"):
        find_methods(["selfie"], Asked(None))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [("few.csv", ("few.csv", None)), ("few", (None, "few")), ("cifar10", (None, "cifar10"))],
)
def test_labels_are_a_table_or_a_labelled_set(recipes, labels, expected):
    (found, *_) = find_methods(recipes, Asked(None, labels=labels))
    assert (found.recipe.data.labels, found.recipe.data.labelled) == expected


def test_one_method_cannot_be_named_twice(recipes):
    with pytest.raises(RecipeError, match="named once, but two are called 'one'"):
        find_methods([recipes[0], recipes[0]], Asked(None))


def test_a_batch_that_is_too_large_for_the_budget_shrinks_with_its_learning_rate(recipes):
    recipe = load(recipes[0])
    assert fitted_batch(recipe, 50 * 32, 400) == ({}, [])
    tables, notes = fitted_batch(recipe, 1000, 400)
    assert tables["batch_size"] == 16
    assert tables["lr"] == pytest.approx(1e-3 / 2**0.5)
    assert "batches of 32 become 16, for at least 50 steps; the learning rate" in notes[0]
    assert fitted_batch(recipe, 10, 400)[0]["batch_size"] == 8


@pytest.mark.parametrize("images", [100, 399, 400, 1000, 1599, 10_000])
@pytest.mark.parametrize("num_images", [4, 12, 31, 400])
def test_at_least_50_steps_are_promised_only_where_they_come(recipes, images, num_images):
    tables, notes = fitted_batch(load(recipes[0]), images, num_images)
    told = " ".join(notes)
    steps = images / tables.get("batch_size", 32)
    if "at least 50 steps" in told:
        assert steps >= 50
    elif steps < 50:
        assert f"the budget is {int(steps)} steps" in told or f"{num_images} training" in told


def test_the_warm_up_keeps_its_share(recipes):
    assert schedule(load(recipes[0]), 50, 400)["warmup_steps"] == 5
    epochs = load("beit_cifar", preset="small")  # 0.3 of 3 epochs
    assert schedule(epochs, 1000, 50_000)["warmup_steps"] == 100


def test_all_methods_get_the_same_evaluations_but_for_the_class_token(recipes):
    few = open_source(load(recipes[0]).data, "train")
    assert choose_sizes(20_000, few).fractions == (1.0,)  # of 40 a class 10 % are 4
    more = open_source(load(recipes[0], overrides=["data.num_images=800"]).data, "train")
    sizes = choose_sizes(20_000, more)
    assert sizes.fractions == (0.1, 1.0)
    with_cls = evaluations(None, sizes, has_cls=True, total_steps=100)
    without = evaluations(None, sizes, has_cls=False, total_steps=100)
    parts = ["heldout", "knn", "linear_probe", "attentive_probe", "finetune"]
    assert [one["part"] for one in with_cls] == parts
    differ = [a["part"] for a, b in zip(with_cls, without, strict=True) if a != b]
    assert differ == ["linear_probe"]


def test_without_labels_only_what_needs_none_is_asked_for():
    sizes = choose_sizes(20_000, None)
    found = evaluations(None, sizes, has_cls=False, total_steps=10)
    assert [one["part"] for one in found] == ["heldout", "knn_consistency"]
    with pytest.raises(RecipeError, match=r"needs labels.*--labels"):
        evaluations(("finetune",), sizes, has_cls=False, total_steps=10)
    with pytest.raises(RecipeError, match="Did you mean 'knn'"):
        evaluations(("kn",), sizes, has_cls=False, total_steps=10)


def test_jobs_share_the_cores():
    assert threads(10_000) == 1


@pytest.mark.slow
def test_a_plan_is_measured_written_down_and_found_again(recipes, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    plan = planned(question(recipes), folder)
    one, two = plan.methods
    assert one.total_steps * one.batch_size == two.total_steps * two.batch_size == 640
    assert two.trial.flops_per_image > 1.5 * one.trial.flops_per_image
    assert one.trial.seconds_per_step > 0
    assert one.evaluate_seconds > 0
    assert [str(cell) for cell in plan.cells] == [
        "one, seed 0",
        "two, seed 0",
        "one, seed 1",
        "two, seed 1",
    ]
    recipe = load(str(folder / "recipes" / "one.toml"))
    assert (recipe.name, recipe.train.total_steps) == ("one", one.total_steps)
    assert read_plan(folder) == plan
    Console(quiet=True).print(table(plan, jobs=2))

    def refuse(*args, **options):
        raise AssertionError("nothing must be measured again")

    monkeypatch.setattr("mimkit.study.gauge.subprocess.run", refuse)
    again = planned(question(recipes, seeds=3), folder)
    assert again.methods == plan.methods
    assert again.seeds == (0, 1, 2)
    for label in ("one", "two"):
        (folder / "runs" / label / "0").mkdir(parents=True)
        (folder / "runs" / label / "0" / "results.json").write_text("{}")
    text = Path(recipes[1]).read_text()
    Path(recipes[1]).write_text(text.replace("depth = 2", "depth = 3"))
    with pytest.raises(DataError, match=r"two\.toml: this recipe.* is another one than when"):
        planned(question(recipes), folder)
    Path(recipes[1]).write_text(text + "# a comment changes nothing\n")
    assert planned(question(recipes, seeds=3), folder) == again
    with pytest.raises(DataError, match=r"another comparison.*budget"):
        planned(question(recipes, "images=64"), folder)
    tree = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**tree, "mimkit": "0.0.1"}))
    with pytest.raises(DataError, match=r"begun with mimkit 0\.0\.1"):
        planned(question(recipes), folder)
    (folder / "plan.json").write_text("{")
    with pytest.raises(DataError, match="must be the plan of a comparison"):
        planned(question(recipes), folder)


def test_methods_on_other_numbers_of_images_are_refused_with_both_numbers(recipes, tmp_path):
    file = Path(recipes[1])
    file.write_text(file.read_text().replace("num_images = 400", "num_images = 300"))
    with pytest.raises(
        RecipeError, match=r"one has 400 of shapes, .* two 300 of shapes, the first"
    ):
        planned(question(recipes), tmp_path / "out")


def test_what_the_machine_may_lack_is_said(tmp_path, monkeypatch):
    trial = replace(TRIAL, peak_memory_bytes=2 * 2**30)
    large = replace(trial, peak_memory_bytes=5 * 2**30)
    methods = tuple(
        Method(name, name, name, 8, 10, (), one, 1.0, disk_bytes=10 * 2**20)
        for name, one in (("one", trial), ("two", large))
    )
    plan = Plan("", "shapes", Budget("steps", 10), (0, 1), methods, "0.1.0")
    monkeypatch.setattr("mimkit.study.outlook.machine_bytes", lambda: 11 * 2**30)
    assert warnings(plan, 2, tmp_path) == []
    assert warnings(plan, 0, tmp_path) == []
    (said,) = warnings(plan, 3, tmp_path)
    assert re.match(r"3 runs at once may need 12\.0\sGiB of memory, .* has 11\.0\sGiB", said)
    monkeypatch.setattr("mimkit.study.outlook._free_disk", lambda _: 39 * 2**20)
    assert warnings(plan, 1, tmp_path) == ["The disk may be too small for all runs."]


def test_a_recipe_that_cannot_run_is_refused_by_its_name(tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text(RECIPE.format(name="bad", depth=1).replace("num_heads = 2", "num_heads = 3"))
    with pytest.raises(MimkitError, match="num_heads"):
        planned(question([str(file)]), tmp_path / "out")


def test_masks_and_objects_are_judged_by_what_reads_them():
    section = load("mae_objects", overrides=["data.num_images=100"]).data
    both = choose_sizes(20_000, open_source(section, "train"))
    assert both.dense == ("segmentation", "detection")
    by_default = evaluations(None, both, has_cls=False, total_steps=10)
    assert "segmentation" not in [one["part"] for one in by_default]  # they have labels
    asked = evaluations(("segmentation", "detection"), both, has_cls=False, total_steps=10)
    assert [one["part"] for one in asked] == ["heldout", "segmentation", "detection"]
    unlabelled = replace(both, fractions=())
    parts = [one["part"] for one in evaluations(None, unlabelled, has_cls=False, total_steps=10)]
    assert parts == ["heldout", "knn_consistency", "segmentation", "detection"]
    neither = choose_sizes(20_000, open_source(load("mae_shapes").data, "train"))
    for name, what in (("segmentation", "needs masks"), ("detection", "needs objects")):
        with pytest.raises(RecipeError, match=what):
            evaluations((name,), neither, has_cls=False, total_steps=10)
    longer = evaluations(("segmentation",), replace(both, steps=900), has_cls=False, total_steps=10)
    assert longer[1]["total_steps"] * longer[1]["batch_size"] == 900 * 64
