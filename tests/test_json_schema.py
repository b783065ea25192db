"""The schema of recipes for editors."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest

from mimkit.recipe.describe.json_schema import json_schema

RECIPES = sorted((Path(__file__).parent.parent / "recipes").rglob("*.toml"))


@pytest.fixture(scope="module")
def validator():
    tree = json_schema()
    jsonschema.Draft7Validator.check_schema(tree)
    return jsonschema.Draft7Validator(tree)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_shipped_recipe_is_valid(validator, file):
    tree = tomllib.loads(file.read_text())
    assert [error.message for error in validator.iter_errors(tree)] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mask_ratio = 0.5", 'mask_ratio = "half"'),
        ("mask_ratio = 0.5", "mask_ration = 0.5"),
        ('part = "vit"', 'part = "vot"'),
        ("batch_size = 8", 'batch_size = "8"'),
        ('crop = "pad"', 'crop = "padd"'),
        ("[train]", "[training]"),
        ("drop_path = 0.2", "drop_path = true"),
    ],
)
def test_mistakes_are_found(validator, tiny, old, new):
    text = tiny.read_text()
    assert not list(validator.iter_errors(tomllib.loads(text)))
    assert old in text
    assert list(validator.iter_errors(tomllib.loads(text.replace(old, new, 1))))


def test_a_preset_is_checked_like_a_recipe(validator, tiny):
    tree = tomllib.loads(tiny.read_text())
    tree["presets"] = {"quick": {"train": {"total_steps": 3}, "masker": {"mask_ratio": 0.25}}}
    assert not list(validator.iter_errors(tree))
    tree["presets"]["quick"]["train"] = {"total_step": 3}
    assert list(validator.iter_errors(tree))


@pytest.mark.slow
def test_the_command_prints_it():
    done = subprocess.run(
        [sys.executable, "-m", "mimkit", "list", "--schema"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == json_schema()
