"""Folders that an earlier version of mimkit wrote are read, told and gone on with as they were.

``earlier/`` holds a run and a comparison of version 0.1.0 as of November 2026, without pictures,
reports and, in the comparison, weights.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import mimkit
from mimkit.cli import app

EARLIER = Path(__file__).parent / "earlier"
TABLES = ("results.csv", "results.md", "results.json")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Copies of them, beside the recipes that were compared."""
    shutil.copytree(EARLIER, tmp_path, dirs_exist_ok=True)
    for name in ("one", "two"):
        shutil.copy(EARLIER / "recipes" / f"{name}.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["mimkit", *words])  # what a report repeats
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_a_run_is_told_again_and_nothing_is_trained(folder, monkeypatch):
    before = json.loads((folder / "run/results.json").read_text())["results"]
    said = call(monkeypatch, "run", "run", "--device", "cpu")
    assert "step 6" not in said
    after = json.loads((folder / "run/results.json").read_text())["results"]
    assert [(one["evaluator"], one["init"], one["seed"], one["num_images"]) for one in before] == [
        (one["evaluator"], one["init"], one["seed"], one["num_images"]) for one in after
    ]
    assert "in fine-tuning accuracy at 100 % of the labels" in said
    assert (folder / "run/report.html").is_file()


def test_a_run_gives_its_encoder(folder, monkeypatch):
    images = torch.zeros(2, 3, 16, 16)
    assert mimkit.load_encoder(folder / "run")(images).shape == (2, 16)
    call(monkeypatch, "export", "run", "--format", "safetensors", "--out", "encoder.safetensors")
    assert (folder / "encoder.safetensors").is_file()


def test_a_comparison_gives_the_same_tables(folder, monkeypatch):
    said = call(
        monkeypatch,
        *("compare", "one.toml", "two.toml", "--budget", "steps=6", "--seeds", "2"),
        *("--evaluate", "knn,linear_probe", "--device", "cpu", "--jobs", "1"),
        *("--out", "comparison"),
    )
    for table in TABLES:
        kept = (EARLIER / "comparison" / table).read_text(encoding="utf-8")
        assert (folder / "comparison" / table).read_text(encoding="utf-8") == kept, table
    assert (
        "in linear probe accuracy at 100 % of the labels, one and two cannot be told apart" in said
    )
    assert (folder / "comparison/report.html").is_file()


def test_an_edited_recipe_is_no_longer_the_comparisons(folder):
    recipe = folder / "one.toml"
    recipe.write_text(recipe.read_text().replace("lr = 1e-3", "lr = 2e-3"))
    words = ("compare", "one.toml", "two.toml", "--budget", "steps=6", "--seeds", "2")
    words += (
        "--evaluate",
        "knn,linear_probe",
        "--device",
        "cpu",
        "--jobs",
        "1",
        "--out",
        "comparison",
    )
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "is another one than when the comparison" in " ".join(result.output.split())
