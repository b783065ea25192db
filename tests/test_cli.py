import importlib.metadata
import re
import shlex
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mimkit.cli import app
from mimkit.parts.masker import Masker
from mimkit.recipe.describe import listing
from mimkit.recipe.sections import SECTIONS
from mimkit.train.signals import Interrupted

HEAVY = ("torch", "timm", "mimkit_selfie", "datasets", "mimkit.parts")


class Spotted(Masker):
    """Masks spots.

    Args:
        geometry: the grid.
        num_spots: how many spots
            an image has.
        shape: of a spot.

    Source: nowhere,
        page 3.
    """

    def __init__(self, geometry, *, num_spots: int, shape: tuple[int, int] = (1, 2)): ...


def mimkit(*arguments, columns=100):
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(app, list(arguments))


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text("""\
name = "tiny"
[data]
name = "shapes"
image_size = 16
patch_size = 4
[masker]
part = "random"
mask_ratio = 0.5
mode = "replace"
[encoder]
part = "vit"
embed_dim = 16
depth = 1
num_heads = 2
mask_token = true
[targets.pixels]
part = "pixels"
[head]
part = "linear"
[losses.pixels]
part = "mse"
[train]
total_steps = 1200
batch_size = 8
optimizer = "adamw"
lr = 1e-3
[presets.short]
train.total_steps = 7
""")
    return str(path)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["list"], ["list", "heads"], ["list", "recipes"]]
)
def test_help_and_lists_import_neither_torch_nor_any_plugin(arguments):
    script = (
        "import sys\n"
        "from mimkit.cli import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        f"print('loaded', sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.rstrip().endswith("loaded []")


def test_the_module_is_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "mimkit", "list", "maskrs"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Did you mean 'maskers'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_commands_and_options_are_these():
    # An option more or less is a decision: change this list, the docs and the changelog.
    listed = mimkit("--help").output
    commands = ["list", "check", "run", "demo", "bench", "compare"]
    commands += ["evaluate", "import", "export", "push", "pack", "plugin"]
    assert re.findall(r"^│ (\w+) ", listed, re.MULTILINE) == commands
    for command, options in {
        "list": ["--schema"],
        "check": ["--preset", "--set"],
        "compare": [
            *(
                "--dataset",
                "--labels",
                "--against",
                "--from",
                "--budget",
                "--within",
                "--seeds",
                "--tune",
                "--evaluate",
                "--preset",
                "--set",
            ),
            *("--data", "--device", "--jobs", "--launcher", "--slurm"),
            *("--track", "--out", "--dry", "--on"),
        ],
        "evaluate": [
            *("--dataset", "--labels", "--evaluate", "--set", "--data", "--device", "--verbose"),
        ],
        "import": ["--out", "--recipe", "--preset", "--set", "--data"],
        "export": ["--format", "--out"],
        "push": ["--to", "--out", "--license", "--private"],
        "pack": ["--out", "--data", "--labels", "--shard"],
    }.items():
        shown = mimkit(command, "--help").output
        assert [*dict.fromkeys(re.findall(r"--[a-z]+", shown))] == [*options, "--help"], command


def test_all_kinds_are_listed_with_what_offers_them(register):
    register("maskers", "random", "a:A")
    register("heads", "pointer", "b:B", distribution="mimkit-selfie", version="2.1")
    output = mimkit("list").output
    assert "maskers" in output
    assert "pointer" in output
    assert "mimkit-selfie 2.1" in output


def test_a_kind_is_listed_with_its_objects(register):
    register("heads", "pointer", "b:B", distribution="mimkit-selfie", version="2.1")
    assert "b:B" in mimkit("list", "heads").output


def test_a_name_shows_options_source_and_file(register):
    register("maskers", "spotted", Spotted)
    words = " ".join(mimkit("list", "maskers", "spotted", columns=140).output.split())
    for part in (
        "masker spotted Masks spots.",
        "num_spots an integer required how many spots an image has.",
        "shape an array of 2 integers [1, 2] of a spot.",
        "Source: nowhere, page 3.",
        "mimkit-tiny 1.0",
        "test_cli.py",
    ):
        assert part in words


def test_a_data_set_shows_what_is_known_of_it():
    assert "image_size: (32, 32)" in mimkit("list", "datasets", "cifar10").output


def test_a_recipe_shows_its_opening_comment_and_presets(register, tmp_path, monkeypatch):
    (tmp_path / "cli_recipes/recipes").mkdir(parents=True)
    (tmp_path / "cli_recipes/__init__.py").touch()
    (tmp_path / "cli_recipes/recipes/one.toml").write_text("# An idea\n\n[presets.demo]\n")
    monkeypatch.syspath_prepend(tmp_path)
    register("recipes", "all", "cli_recipes")
    output = mimkit("list", "recipes", "one").output
    assert "An idea" in output
    assert "Presets: demo" in output


def test_check_prints_a_summary_and_ok(recipe):
    result = mimkit("check", recipe)
    assert result.exit_code == 0, result.output
    for part in ("4 x 4 patches of 4 px", "1,200 steps", "vit", "vector of 48", "1 x 8 targets"):
        assert part in result.output
    assert result.output.rstrip().endswith("ok")


def test_check_takes_presets_and_settings(recipe):
    assert "7 steps" in mimkit("check", recipe, "--preset", "short").output
    assert "9 steps" in mimkit("check", recipe, "--set", "train.total_steps=9").output
    epochs = mimkit("check", recipe, "--set", "train.total_epochs=2.5").output
    assert "2.5 epochs" in epochs


def test_check_shows_what_settings_have_become(recipe):
    more = ["data.num_images=9", 'evaluate=[{part="knn"}, {part="heldout"}]']
    changed = ["evaluate.0.k=5", "data.num_images=none", "data.path=[/y]"]
    arguments = [word for each in (*more, *changed) for word in ("--set", each)]
    result = mimkit("check", recipe, *arguments)
    assert result.exit_code == 0, result.output
    for line in ("evaluate.0.k = 5", 'data.num_images = "none"', 'data.path = "[/y]"'):
        assert f"set          {line}" in result.output


def test_the_demo_starts_anew_and_tells_how_to_go_on(monkeypatch, tmp_path):
    started = []

    def interrupted(*arguments, **options):
        started.append((arguments, options))
        raise Interrupted(2, "at step 5")

    monkeypatch.setattr("mimkit.pipeline.run.run", interrupted)
    done = mimkit("demo", "--seed", "3", "--out", str(tmp_path / "a b"), columns=20)
    ((recipe,), options) = started[0]
    assert (recipe.name, recipe.seed, options["fresh"]) == ("demo", 3, True)
    assert options["out"] == tmp_path / "a b"
    assert done.exit_code == 130
    *_, again = done.stderr.strip().partition("To go on: ")
    mimkit(*shlex.split(again)[1:])
    assert started[1][0] == (recipe,)
    assert started[1][1]["out"] == options["out"]
    assert not started[1][1]["fresh"]


def test_an_interrupted_evaluation_says_how_to_go_on(monkeypatch):
    def interrupted(_asked):
        raise KeyboardInterrupt

    monkeypatch.setattr("mimkit.study.judging.evaluate", interrupted)
    done = mimkit("evaluate", "run")
    assert done.exit_code == 130
    assert done.stderr.strip() == "Interrupted. To go on, repeat the same command."


def test_the_version_is_told_with_those_of_plugins():
    lines = mimkit("--version").output.splitlines()
    assert lines[0] == f"mimkit {importlib.metadata.version('mimkit')}"
    for name in ("torch", "mimkit-beit", "mimkit-mae"):
        assert f"{name} {importlib.metadata.version(name)}" in lines


def test_a_data_path_with_brackets_in_it_is_told_as_it_is(recipe, tmp_path):
    for out, name in (("one", "[/y]"), ("two", "[old]")):
        settings = ("--set", f"data.name='{tmp_path / name}'", "--out", str(tmp_path / out))
        result = mimkit("run", recipe, *settings)
        assert result.exit_code == 2, result.output
        assert name in result.stderr
        assert "Traceback" not in result.stderr


def test_check_prints_every_problem_on_stderr_and_exits_with_2(recipe):
    result = mimkit("check", recipe, "--set", "masker.mask_ration=1", "--set", "train.lr=x")
    assert result.exit_code == 2
    assert result.stdout == ""
    first, second = result.stderr.rstrip().split("\n")
    assert "Did you mean 'mask_ratio'?" in first
    assert "must be a number" in second


def test_check_refuses_parts_that_cannot_go_together(recipe):
    result = mimkit("check", recipe, "--set", "encoder.mask_token=false")
    assert result.exit_code == 2
    assert "[encoder]: encoder 'vit' must show hidden patches" in result.stderr


def test_debug_shows_the_traceback_and_still_exits_with_2():
    result = mimkit("--debug", "list", "maskrs")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


def test_what_nobody_expected_exits_with_1(monkeypatch):
    def fail(console):
        raise ZeroDivisionError

    monkeypatch.setattr(listing, "show_all", fail)
    assert mimkit("list").exit_code == 1


@pytest.mark.parametrize("table", ["data", "augment", "train"])
def test_the_keys_of_a_table_are_listed_with_their_meaning(table):
    done = CliRunner().invoke(app, ["list", table], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    model = SECTIONS[table]
    assert all(name in done.output for name in model.model_fields)
    assert all(field.description for field in model.model_fields.values())
