"""Which run folders stand in the way of a run, and which do not."""

import json
import tomllib

import pytest
from rich.console import Console

from mimkit.errors import DataError, TrainingError
from mimkit.folder import RunFolder
from mimkit.pipeline.run import run
from mimkit.recipe.difference import differences, listed
from mimkit.recipe.schema import load

SHORT = ("train.total_steps=4", "evaluate=[]")


def here(recipe, out, *overrides, **options):
    return run(load(str(recipe), overrides=[*SHORT, *overrides]), out=out, device="cpu", **options)


def lr_of(folder):
    return tomllib.loads((folder / "recipe.toml").read_text())["train"]["lr"]


def test_after_a_mistyped_path_the_right_one_runs(tiny, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        here(tiny, tmp_path, 'data.name="/nowhere/at/all"')
    folder = here(tiny, tmp_path)
    assert (folder / "report.html").is_file()


def test_a_folder_in_which_nothing_was_trained_is_taken(tiny, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mimkit.pipeline.run.pretrain", killed)
        with pytest.raises(KeyboardInterrupt):
            here(tiny, tmp_path)
    assert lr_of(tmp_path / "tiny" / "0") == pytest.approx(1e-3)
    (tmp_path / "tiny" / "0" / "notes.txt").write_text("mine")
    folder = here(tiny, tmp_path, "train.lr=0.5")
    assert lr_of(folder) == pytest.approx(0.5)
    assert (folder / "notes.txt").read_text() == "mine"


def nan_from(step, monkeypatch):
    """Lets every loss from a step on be NaN."""
    monkeypatch.setattr("mimkit.builtin.losses.MSE.forward", _nan_from(step + 5))  # trial: 5 calls


def _nan_from(call):
    calls = []

    def forward(self, prediction, target, valid):
        calls.append(self.training)
        bad = sum(calls) > call
        return (prediction - target).square().mean(-1) * (float("nan") if bad else 1.0)

    return forward


def test_a_run_that_nan_stopped_before_it_learned_anything_is_replaced(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        nan_from(0, patch)
        with pytest.raises(TrainingError):
            here(tiny, tmp_path, "train.lr=9.0", "train.checkpoint_every_steps=1")
    assert list((tmp_path / "tiny" / "0" / "checkpoints").glob("*.json"))
    folder = here(tiny, tmp_path)
    assert [path.name for path in folder.parent.iterdir()] == ["0"]
    assert lr_of(folder) == pytest.approx(1e-3)


def test_a_run_that_nan_stopped_later_is_set_aside_whole(tiny, tmp_path, monkeypatch):
    console = Console(record=True, width=300)
    with monkeypatch.context() as patch:
        nan_from(3, patch)
        with pytest.raises(TrainingError):
            here(tiny, tmp_path, "train.lr=0.5", "train.total_steps=9")
    trained = {p.name: p.read_bytes() for p in (tmp_path / "tiny/0/checkpoints").iterdir()}
    assert trained
    folder = here(tiny, tmp_path, console=console)
    aside = tmp_path / "tiny" / "0-stopped-1"
    assert f"now lies in {aside}" in console.export_text()
    assert {p.name: p.read_bytes() for p in (aside / "checkpoints").iterdir()} == trained
    assert (lr_of(aside), lr_of(folder)) == (pytest.approx(0.5), pytest.approx(1e-3))
    assert json.loads((folder / "ledger.json").read_text())["skipped_steps"] == []


def test_a_trained_run_is_refused_with_the_keys_that_differ(tiny, tmp_path):
    here(tiny, tmp_path)
    before = (tmp_path / "tiny" / "0" / "encoder.safetensors").read_bytes()
    with pytest.raises(DataError) as refused:
        here(tiny, tmp_path, "train.lr=0.5", "encoder.depth=1", 'evaluate=[{part="knn", k=3}]')
    said = str(refused.value)
    assert "train.lr: 0.001 there, 0.5 here" in said
    assert "encoder.depth: 2 there, 1 here" in said
    assert "evaluate.0.k: not given there, 3 here" in said
    assert "mask_ratio" not in said
    assert "--fresh" in said
    with pytest.raises(DataError, match=r"\(encoder.depth: 2 there, 1 here\)"):
        here(tiny, tmp_path, "encoder.depth=1")
    assert (tmp_path / "tiny" / "0" / "encoder.safetensors").read_bytes() == before


def test_fresh_with_a_mistyped_path_removes_nothing(tiny, tmp_path):
    folder = here(tiny, tmp_path)
    before = (folder / "encoder.safetensors").read_bytes()
    with pytest.raises(DataError, match="nowhere"):
        here(tiny, tmp_path, 'data.name="/nowhere/at/all"', fresh=True)
    assert (folder / "encoder.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("step", "skipped", "expected"), [(0, 0, True), (3, 3, False), (4, 3, True), (100, 2, True)]
)
def test_work_is_a_step_that_changed_a_weight_or_an_import(step, skipped, expected, tmp_path):
    folder = RunFolder(tmp_path)
    assert not folder.holds_work
    folder.checkpoints.mkdir()
    state = {"seconds": 1.0, "skipped": [{"step": n, "index": [0]} for n in range(skipped)]}
    record = folder.checkpoints / f"step_{step:08}.json"
    record.write_text(json.dumps({"step": step, "sha256": "", "state": state}))
    assert folder.holds_work == expected
    record.write_text("{torn")  # not for us to judge
    assert folder.holds_work


def test_differences_are_told_key_by_key(tiny):
    one = load(str(tiny))
    assert differences(one, load(str(tiny))) == []
    asked = ("augment.flip=false", "data.path=/x", "masker.mask_ratio=0.3")
    other = load(str(tiny), overrides=asked)
    found = {each.key: each for each in differences(one, other)}
    assert {key: str(each) for key, each in found.items()} == {
        "augment.flip": "augment.flip: true there, false here",
        "masker.mask_ratio": "masker.mask_ratio: 0.5 there, 0.3 here",
    }
    assert [key for key, each in found.items() if each.is_option] == ["masker.mask_ratio"]
    asked = ("flip=false", "padding=1", "color_jitter=0.1", 'crop="none"', "padding_mode=reflect")
    asked = [f"augment.{key}" for key in asked]
    asked += [f"train.{key}" for key in ("lr=1.0", "min_lr=0.1", "batch_size=16", "optimizer=sgd")]
    assert listed(differences(one, load(str(tiny), overrides=asked))).endswith("; and 1 more")
