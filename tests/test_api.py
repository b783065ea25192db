"""The functions for notebooks: their examples run, and they are what the command line is."""

import doctest

import pytest
import torch
from rich.console import Console

import mimkit
from mimkit import DataError, RecipeError, api


@pytest.mark.parametrize("name", ["run", "compare", "load_encoder", "Features"])
def test_the_examples_are_true(name, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for module in ("mimkit.pipeline.run", "mimkit.comparison.conduct"):
        monkeypatch.setattr(f"{module}.Console", lambda: Console(quiet=True))
    names = {**vars(api), "tiny": str(tiny)}
    (test,) = [
        test
        for test in doctest.DocTestFinder(recurse=False).find(getattr(mimkit, name), name)
        if test.examples
    ]
    test.globs.update(names)
    quiet = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    quiet.run(test, out=lambda text: None)
    found = quiet.summarize(verbose=False)
    assert found.failed == 0, capsys.readouterr().out
    assert found.attempted >= 2


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
