"""A run as a user sees it: a command, a folder, kills, damage, signals."""

import html
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from mimkit.builtin.losses import MSE
from mimkit.errors import DataError, RecipeError, TrainingError
from mimkit.evaluate.base import Result
from mimkit.parts.loss import Loss
from mimkit.pipeline.run import run
from mimkit.recipe import registry
from mimkit.recipe.schema import load
from mimkit.train.loop import Loop
from mimkit.train.signals import Interrupted

LAST = "checkpoints/step_00000012.safetensors"


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "mimkit",
        "run",
        str(recipe),
        "--out",
        str(out),
        "--device",
        "cpu",
        *more,
    ]


def start(arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def finish(arguments: list[str], code: int = 0) -> str:
    process = start(arguments)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


def here(recipe: Path, out: Path, **options):
    return run(
        load(str(recipe), overrides=options.pop("overrides", ())), out=out, device="cpu", **options
    )


def steps_logged(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = (json.loads(line) for line in path.read_text().splitlines() if line.endswith("}"))
    return [row["step"] for row in rows if "loss/total" in row]


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = load_file(one / LAST), load_file(other / LAST)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def test_a_run_leaves_everything_behind_and_its_recipe_gives_the_same_run(tiny, tmp_path):
    folder = here(tiny, tmp_path / "a", command="mimkit run tiny.toml")
    for name in ("metrics.jsonl", "results.json", "ledger.json", "report.html", "encoder.json"):
        assert (folder / name).stat().st_size > 0, name
    assert steps_logged(folder) == [2, 4, 6, 8, 10, 12]
    ledger = json.loads((folder / "ledger.json").read_text())
    assert (ledger["steps"], ledger["images_seen"]) == (12, 96)
    assert ledger["command"] == "mimkit run tiny.toml"
    assert ledger["flops_per_image"] > 0
    again = here(folder / "recipe.toml", tmp_path / "b")
    assert_same_weights(folder, again)


def test_it_ends_with_the_sentence_of_its_report_and_a_command_that_exists(tiny, tmp_path, capsys):
    judged = '[{part = "finetune", label_fractions = [0.5], seeds = 2, total_steps = 2, '
    judged += 'batch_size = 4, lrs = [0.1]}, {part = "knn"}]'
    folder = here(tiny, tmp_path, overrides=[f"evaluate={judged}"])
    said = capsys.readouterr().out.splitlines()
    page = html.unescape((folder / "report.html").read_text())
    quoted = re.search('<p class="answer">(.*?)</p>', page, re.DOTALL).group(1)
    assert any(line.startswith(quoted.strip()) for line in said)
    for row in json.loads((folder / "results.json").read_text())["results"]:
        if row["evaluator"] == "knn":
            (line,) = [line for line in said if line.startswith("k-NN accuracy")]
            assert f"{100 * row['value']:.1f}" in line
    compare = shlex.split(said[-1])
    assert compare[:2] == ["mimkit", "compare"]
    assert load(compare[2]).name == "tiny"
    assert compare[-1] == "finetune,knn"


def test_heldout_loss_is_logged_from_step_0_on(tiny, tmp_path):
    folder = here(tiny, tmp_path)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    heldout = {row["step"]: row for row in rows if "heldout/loss/pixels" in row}
    assert sorted(heldout) == [0, 6, 12]


def test_accumulation_and_workers_do_not_change_what_is_seen(tiny, tmp_path):
    overrides = ["encoder.drop_path=0.0"]
    whole = here(tiny, tmp_path / "a", overrides=overrides)
    pieces = here(
        tiny, tmp_path / "b", overrides=[*overrides, "train.accumulate=2", "data.workers=2"]
    )
    a, b = load_file(whole / LAST), load_file(pieces / LAST)
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_a_random_step_it_ends_with_the_same_weights(tiny, tmp_path, workers):
    settings = [f"data.workers={workers}"]
    whole = here(tiny, tmp_path / "whole", overrides=settings)
    folder = tmp_path / "killed" / "tiny" / "0"
    process = start(command(tiny, tmp_path / "killed", "--set", *settings))
    last = random.choice([2, 4, 6, 8])
    while process.poll() is None and (steps_logged(folder) or [0])[-1] < last:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    here(tiny, tmp_path / "killed", overrides=settings)
    assert steps_logged(folder) == [2, 4, 6, 8, 10, 12]
    assert_same_weights(whole, folder)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_ends_the_step_and_the_same_command_goes_on(tiny, tmp_path, number, code):
    arguments = command(tiny, tmp_path, "--set", "train.total_steps=4000")
    folder = tmp_path / "tiny" / "0"
    process = start(arguments)
    while process.poll() is None and not steps_logged(folder):
        time.sleep(0.005)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert "To go on: mimkit run" in output
    newest = sorted((folder / "checkpoints").glob("*.json"))[-1]
    step = json.loads(newest.read_text())["step"]
    assert f"after step {step}" in output


def test_a_signal_while_the_last_checkpoint_is_written_is_heard(tiny, tmp_path, monkeypatch):
    save = Loop.save

    def save_and_ask(loop):
        save(loop)
        if loop.progress.step == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Loop, "save", save_and_ask)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 12"):
        here(tiny, tmp_path)


@pytest.mark.slow
def test_two_processes_see_what_one_sees(tiny, tmp_path):
    settings = ["--set", "encoder.drop_path=0.0"]
    finish(command(tiny, tmp_path / "one", *settings))
    arguments = command(tiny, tmp_path / "two", *settings)
    finish(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            *arguments[1:],
        ]
    )
    a = load_file(tmp_path / "one/tiny/0" / LAST)
    b = load_file(tmp_path / "two/tiny/0" / LAST)
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_a_recipe_of_two_processes_starts_them_itself(tiny, tmp_path):
    settings = ["--set", "encoder.drop_path=0.0"]
    finish(command(tiny, tmp_path / "one", *settings))
    arguments = command(tiny, tmp_path / "two", *settings, "--set", "train.processes=2")
    process = start(arguments)
    folder = tmp_path / "two/tiny/0"
    while process.poll() is None and not steps_logged(folder):
        time.sleep(0.01)
    became = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
    assert "torch.distributed.run" in became
    assert "--nproc-per-node=2" in became
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    a = load_file(tmp_path / "one/tiny/0" / LAST)
    b = load_file(folder / LAST)
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_two_processes_stop_at_a_signal_and_the_same_command_goes_on(tiny, tmp_path):
    settings = ["--set", "train.processes=2", "--set", "train.total_steps=4000"]
    process = start(command(tiny, tmp_path, *settings))
    folder = tmp_path / "tiny" / "0"
    while process.poll() is None and not steps_logged(folder):
        time.sleep(0.01)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    newest = sorted((folder / "checkpoints").glob("*.json"))[-1]
    step = json.loads(newest.read_text())["step"]
    assert f"stopped by SIGTERM after step {step}" in output


def test_a_damaged_checkpoint_is_said_and_the_one_before_used(tiny, tmp_path, capsys):
    folder = here(tiny, tmp_path)
    path = folder / LAST
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    here(tiny, tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert "damaged" in said
    assert "going on at step 10 of 12" in said
    assert path.read_bytes() == whole


def test_with_both_checkpoints_damaged_it_stops_and_touches_nothing(tiny, tmp_path, capsys):
    folder = here(tiny, tmp_path)
    files = sorted((folder / "checkpoints").glob("*.safetensors"))
    for path in files:
        path.write_bytes(path.read_bytes()[:-100])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    with pytest.raises(DataError) as caught:
        here(tiny, tmp_path)
    assert all(str(path) in str(caught.value) for path in files)
    assert "--fresh" in str(caught.value)
    assert "the one before" not in capsys.readouterr().out
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after == before


def test_files_half_written_by_a_killed_process_are_swept_when_it_goes_on(tiny, tmp_path):
    folder = here(tiny, tmp_path)
    for name in ("checkpoints/.step_00000012.safetensors.", ".ledger.json."):
        (folder / f"{name}{os.getpid()}.tmp").touch()
    here(tiny, tmp_path)
    assert not list(folder.rglob("*.tmp"))


DIE = """
import os, signal, sys, time
where, last = sys.argv[1], int(sys.argv[2])
from mimkit.folder import RunFolder
from mimkit.train.loop import Loop

def dying(cls, name, step_of):
    whole = getattr(cls, name)
    def partly(self, *arguments):
        result = whole(self, *arguments)
        if step_of(self, *arguments) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(cls, name, partly)

if where == "log":
    dying(RunFolder, "log", lambda self, step, values: step)
elif where == "save":
    dying(Loop, "save", lambda self: self.progress.step)
else:
    dying(Loop, "advance", lambda self, step, *_: step + 1)
advance = Loop.advance
def slow(self, *arguments):
    time.sleep(0.1)
    return advance(self, *arguments)
Loop.advance = slow
from mimkit.cli import main
sys.argv = ["mimkit", *sys.argv[3:]]
main()
"""


def kill(recipe: Path, out: Path, where: str, step: int, settings: list[str]) -> None:
    """Runs slowly, 0.1 s a step, and ends by SIGKILL after this step was logged, saved or done."""
    whole = command(recipe, out, *(word for one in settings for word in ("--set", one)))
    finish([sys.executable, "-c", DIE, where, str(step), *whole[3:]], code=-signal.SIGKILL)


def log_of(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time/step_ms"} for row in rows]


# Logged at 4, 8, 12; saved at 3, 6, 9, 12; judged at 0, 6, 12.
@pytest.mark.parametrize(
    ("where", "step"),
    [
        pytest.param("step", 2, marks=pytest.mark.slow),
        pytest.param("log", 8, marks=pytest.mark.slow),
        ("save", 9),
    ],
)
def test_killed_inside_of_an_interval_it_leaves_the_same_log(tiny, tmp_path, where, step):
    settings = ["train.log_every_steps=4", "train.checkpoint_every_steps=3"]
    whole = here(tiny, tmp_path / "whole", overrides=settings)
    kill(tiny, tmp_path / "killed", where, step, settings)
    folder = tmp_path / "killed" / "tiny" / "0"
    first = json.loads((folder / "ledger.json").read_text())["seconds"]
    here(tiny, tmp_path / "killed", overrides=settings)
    assert log_of(folder) == log_of(whole)
    assert_same_weights(folder, whole)
    ledger = json.loads((folder / "ledger.json").read_text())
    seconds, saved = ledger["seconds"], step // 3 * 3
    assert seconds["train"] > saved * 0.1
    intervals = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = sum(row["time/step_ms"] * 4 / 1000 for row in intervals if "time/step_ms" in row)
    assert logged == pytest.approx(seconds["train"])
    assert seconds["prepare"] >= first["prepare"] > 0
    assert seconds["evaluate"] > first["evaluating"] > 0
    # Of the steps after the last checkpoint, those that were logged are known.
    assert seconds.get("repeated", 0) >= (0.2 if where == "log" else 0)
    assert ("repeated" in seconds) == (where == "log")


def test_a_folder_of_another_recipe_is_refused_and_fresh_replaces_it(tiny, tmp_path):
    here(tiny, tmp_path)
    changed = ["train.lr=0.01"]
    with pytest.raises(DataError, match=r"another recipe .* --fresh"):
        here(tiny, tmp_path, overrides=changed)
    folder = here(tiny, tmp_path, overrides=changed, fresh=True)
    assert load(str(folder / "recipe.toml")).train.lr == pytest.approx(0.01)


def test_an_evaluation_that_cannot_be_made_is_refused_before_training(tiny, tmp_path):
    evaluate = 'evaluate=[{part = "finetune", network = "pooled", lrs = [0.1]}]'
    with pytest.raises(RecipeError, match="'pooled' needs a head"):
        here(tiny, tmp_path, overrides=[evaluate])
    assert not (tmp_path / "tiny/0/metrics.jsonl").exists()


def test_a_result_that_is_not_finite_leaves_json_and_a_report(tiny, tmp_path, monkeypatch):
    def judge(self, subject):
        values = {"pretrained": float("nan"), "random": 0.5}
        return [
            Result("heldout", "accuracy", value, 16, seed, init)
            for init, value in values.items()
            for seed in (0, 1)
        ]

    monkeypatch.setattr("mimkit.evaluate.heldout.HeldOut.run", judge)
    folder = here(tiny, tmp_path, overrides=["train.total_steps=1"])
    for name in ("results.json", "ledger.json"):
        json.loads((folder / name).read_text(), parse_constant=pytest.fail)
    assert "accuracy" in (folder / "report.html").read_text()


class Unsteady(Loss):
    """Mean squared error that is NaN for some calls.

    Args:
        geometry: not needed.
        first: number of the first bad call. last: of the last.
    """

    def __init__(self, geometry, *, first: int, last: int) -> None:
        super().__init__()
        self.bad = range(first, last + 1)
        self.calls = 0

    def forward(self, prediction, target, valid):
        self.calls += self.training
        factor = float("nan") if self.calls in self.bad else 1.0
        return (prediction - target).square().mean(-1) * factor


@pytest.fixture
def unsteady(monkeypatch):
    """Returns overrides that make calls ``first`` to ``last`` of the loss NaN."""
    found = registry.load

    def load_one(entry):
        return Unsteady if entry.name == "mse" else found(entry)

    monkeypatch.setattr(registry, "load", load_one)
    # The trial before the run calls the loss five times.
    return lambda first, last: [
        f"losses.pixels.first={first + 5}",
        f"losses.pixels.last={last + 5}",
    ]


def test_a_step_that_is_not_finite_is_skipped_and_written_down(tiny, tmp_path, unsteady):
    folder = here(tiny, tmp_path, overrides=unsteady(3, 4))
    ledger = json.loads((folder / "ledger.json").read_text())
    assert [item["step"] for item in ledger["skipped_steps"]] == [2, 3]
    assert all(len(item["index"]) == 8 for item in ledger["skipped_steps"])
    tensors = load_file(folder / LAST)
    assert all(torch.isfinite(value).all() for value in tensors.values())


def test_three_bad_steps_in_a_row_stop_the_run_with_advice(tiny, tmp_path, unsteady):
    with pytest.raises(TrainingError, match=r"steps 2 to 4.*lower train\.lr"):
        here(tiny, tmp_path, overrides=unsteady(3, 99))
    ledger = json.loads((tmp_path / "tiny/0/ledger.json").read_text())
    assert [item["step"] for item in ledger["skipped_steps"]] == [2, 3, 4]


class Worried(MSE):
    """Warns as soon as it has a metric."""

    def metrics(self, prediction, target, valid):
        return {"worry": prediction.float().mean() * 0 + 3}

    def warning(self, means):
        return f"worry is {means['worry']:.1f}"


def test_a_loss_may_warn_and_is_heard_once(tiny, tmp_path, monkeypatch):
    console = Console(record=True, width=120)
    real = registry.load
    monkeypatch.setattr(
        "mimkit.recipe.read.validate.registry.load",
        lambda entry: Worried if entry.kind == "losses" else real(entry),
    )
    run(load(str(tiny)), out=tmp_path, device="cpu", console=console)
    text = console.export_text()
    assert text.count("step 2, loss 'pixels': worry is 3.0") == 1
    assert text.count("worry is") == 1
