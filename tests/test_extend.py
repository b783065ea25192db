"""A finished run goes on to more steps by a stated schedule, bit for bit after a kill."""

import itertools
import json
import shutil
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretraining import assert_same_weights
from typer.testing import CliRunner

import mimkit
from mimkit import DataError, RecipeError
from mimkit.cli import app
from mimkit.recipe.schema import load
from mimkit.train.optim import learning_rate

SHORT = ("train.total_steps=6", "train.warmup_steps=1", "train.min_lr=1e-5", "evaluate=[]")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def finished(tiny, **options):
    return mimkit.run(tiny, settings=SHORT, device="cpu", **options)


def rates(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["lr"] for row in rows if "lr" in row}


def train_of(run):
    return tomllib.loads((run / "recipe.toml").read_text())["train"]


def test_it_goes_on_from_its_last_step_and_writes_down_how(here, tiny):
    run = finished(tiny)
    before = rates(run)
    said = CliRunner().invoke(app, ["run", str(run), "--extend", "12", "--device", "cpu"])
    assert said.exit_code == 0, said.output
    assert "going on at step 6 of 12" in said.output
    ledger = json.loads((run / "ledger.json").read_text())
    assert ledger["steps"] == 12
    assert "evaluate" in ledger["seconds"]
    assert {k: train_of(run)[k] for k in ("total_steps", "extended")} == {
        "total_steps": 12,
        "extended": [6],
    }
    after = rates(run)
    assert {step: after[step] for step in before} == before
    assert after[8] > before[6]  # it warms up again
    assert after[12] < after[8]
    again = CliRunner().invoke(app, ["run", str(run), "--extend", "12", "--device", "cpu"])
    assert again.exit_code == 0, again.output
    assert rates(run) == after
    mimkit.run(run, extend=14, device="cpu")
    assert train_of(run)["extended"] == [6, 12]


def test_killed_amid_the_extension_it_ends_with_the_same_weights(here, tiny, monkeypatch):
    whole = finished(tiny, out="whole")
    shutil.copytree(whole, here / "killed")
    mimkit.run(whole, extend=12, device="cpu")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        advance = "mimkit.train.loop.Loop.advance"
        original = mimkit.train.loop.Loop.advance
        patch.setattr(
            advance, lambda self, step, *a: killed() if step == 9 else original(self, step, *a)
        )
        with pytest.raises(KeyboardInterrupt):
            mimkit.run(here / "killed", extend=12, device="cpu")
    assert train_of(here / "killed")["extended"] == [6]
    with pytest.raises(DataError, match="To finish it: mimkit run"):
        mimkit.run(here / "killed", extend=20, device="cpu")
    mimkit.run(here / "killed", extend=12, device="cpu")
    assert_same_weights(whole, here / "killed")


@pytest.mark.parametrize(
    ("change", "steps", "reason"),
    [
        (None, 6, "must be more than the 6 steps"),
        (None, 3, "must be more than the 6 steps"),
        ("unfinished", 12, "was not trained and evaluated to its end"),
        ("no checkpoint", 12, "must hold the checkpoint of the last step, 6"),
    ],
)
def test_what_cannot_be_extended_is_left_as_it_is(here, tiny, change, steps, reason):
    run = finished(tiny)
    if change == "unfinished":
        (run / "ledger.json").write_text('{"steps": 4, "seconds": {}}')
    if change == "no checkpoint":
        shutil.rmtree(run / "checkpoints")
    before = (run / "recipe.toml").read_text()
    with pytest.raises((DataError, RecipeError), match=reason):
        mimkit.run(run, extend=steps, device="cpu")
    assert (run / "recipe.toml").read_text() == before


def test_more_steps_by_a_setting_are_refused_with_the_command_that_does_it(here, tiny):
    run = finished(tiny)
    with pytest.raises(DataError, match=f"goes on to more steps by: mimkit run {run} --extend"):
        mimkit.run(tiny, settings=[*SHORT, "train.total_steps=12"], device="cpu")


def test_another_change_beside_the_steps_is_another_run(here, tiny):
    run = finished(tiny)
    with pytest.raises(DataError, match="another recipe"):
        mimkit.run(run, settings=["train.lr=0.5"], extend=12, device="cpu")


def test_an_extension_that_does_not_ascend_is_refused(tiny):
    with pytest.raises(RecipeError, match="must ascend to below total_steps"):
        load(str(tiny), overrides=["train.extended=[12]"])


@given(
    first=st.integers(2, 500),
    more=st.lists(st.integers(1, 500), max_size=3),
    share=st.floats(0, 0.5),
    floor=st.floats(0, 0.5),
)
def test_every_extension_rises_from_the_last_rate_and_falls_to_the_floor(first, more, share, floor):
    ends = list(itertools.accumulate([first, *more]))
    warmup = round(share * first)

    def rate(step, until):
        return learning_rate(
            step, total=ends[until], warmup=warmup, peak=1.0, floor=floor, ends=ends[:until]
        )

    last = len(ends) - 1
    for step in range(ends[last]):
        value = rate(step, last)
        assert 0 <= value <= 1
        if step < first:  # what was trained before stays what it was
            assert value == learning_rate(step, total=first, warmup=warmup, peak=1.0, floor=floor)
    for start, stop in itertools.pairwise(ends):
        values = [rate(step, last) for step in range(start, stop)]
        top = values.index(max(values))
        assert all(a <= b for a, b in itertools.pairwise(values[: top + 1]))
        assert all(a >= b for a, b in itertools.pairwise(values[top:]))
        assert values[0] >= floor
        assert top <= 0.5 * (stop - start) + 1
