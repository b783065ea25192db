"""The functions for notebooks: their examples run, and they are what the command line is."""

import doctest
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_origin

import pytest
import torch
from typer.testing import CliRunner

import mimkit
from mimkit import DataError, RecipeError
from mimkit.cli import app
from mimkit.console import make_console

BOUNDS = [name for name in mimkit.__all__ if get_origin(getattr(mimkit, name)) is Annotated]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "compare" else [])
        for name in mimkit.__all__
        if name not in {*BOUNDS, "Stream"}
    ],
)
def test_the_example_in_every_public_docstring_is_true(name, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for module in ("mimkit.pipeline.run", "mimkit.study.conduct", "mimkit.study.judging"):
        monkeypatch.setattr(f"{module}.make_console", lambda: make_console(quiet=True))
    public = {each: getattr(mimkit, each) for each in mimkit.__all__}
    finder = doctest.DocTestFinder(recurse=False)
    (test,) = [test for test in finder.find(public[name], name) if test.examples]
    test.globs.update({**public, "torch": torch, "Path": Path, "tiny": str(tiny)})
    torch.manual_seed(0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    found = runner.run(test)
    assert found.failed == 0, capsys.readouterr().out
    assert found.attempted > 0


def test_features_are_those_of_the_run(tiny, tmp_path):
    folder = mimkit.run(tiny, out=tmp_path, device="cpu", settings=["train.total_steps=2"])
    model = mimkit.load_encoder(folder)
    assert not model.training
    image = torch.rand(2, 3, 16, 16)
    mean, std = model.mean, model.std
    expected = model.encoder((image - mean) / std).patches.mean(1)
    torch.testing.assert_close(model(image), expected)
    assert mean.shape == std.shape == (3, 1, 1)
    assert {parameter.requires_grad for parameter in model.parameters()} == {True}


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(DataError, match="not the folder of a finished run"):
        mimkit.load_encoder(tmp_path)


def test_several_processes_are_left_to_the_command_line(tiny):
    with pytest.raises(RecipeError, match=r"several processes are started by: mimkit run"):
        mimkit.run(tiny, settings=["train.processes=2"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "dataset": "shapes",
            "budget": "images=2k",
            "seeds": 2,
            "evaluate": ["knn", "finetune"],
            "settings": ["train.lr=1e-3", 'data.path="a b"'],
            "data": "/some where",
            "device": "cpu",
            "jobs": 1,
            "out": Path("some/where"),
        },
        {"labels": "labels.csv", "preset": "demo"},
    ],
)
def test_what_a_comparison_says_to_type_asks_the_same(monkeypatch, options):
    asked = []

    def conduct(question, folder, *_, **__):
        asked.append((question, folder))
        return "a comparison"

    monkeypatch.setattr("mimkit.api.conduct", conduct)
    monkeypatch.setattr("mimkit.study.conduct.conduct", conduct)
    mimkit.compare(["one", Path("two.toml")], **options)
    command = asked[0][0].command
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    assert CliRunner().invoke(app, shlex.split(command)[1:]).exit_code == 0
    (ours, here), (typed, there) = asked
    assert typed == replace(ours, command=typed.command)
    assert here == there


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "dataset": "some where",
            "labels": "labels.csv",
            "evaluate": ["knn", "finetune"],
            "settings": ["data.num_images=20"],
            "data": "/there",
            "device": "cpu",
        },
    ],
)
def test_what_a_judgement_says_to_type_asks_the_same(monkeypatch, options):
    asked = []
    monkeypatch.setattr("mimkit.api.judge_runs", asked.append)
    monkeypatch.setattr("mimkit.study.judging.evaluate", asked.append)
    mimkit.evaluate(["one", Path("two words")], **options)
    command = shlex.split(asked[0].command)
    monkeypatch.setattr(sys, "argv", command)
    assert CliRunner().invoke(app, command[1:]).exit_code == 0
    ours, typed = asked
    assert typed == ours


def test_what_a_run_says_to_type_is_the_same_run(tiny, monkeypatch):
    started = []
    monkeypatch.setattr("mimkit.pipeline.run.run", lambda *a, **k: started.append((a, k)))
    mimkit.run(tiny, settings=["train.total_steps=3"], seed=4, device="cpu", out="else where")
    command = started[0][1]["command"]
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    assert CliRunner().invoke(app, shlex.split(command)[1:]).exit_code == 0
    (ours, given), (typed, options) = started
    assert ours == typed
    assert {key: options[key] for key in given} == given
