"""The four trackers against their real packages, in the modes that need no network.

Each is told of a run that stops between two checkpoints and goes on: steps that were thrown away
are logged once more, and must not stand twice in its curve.
"""

import contextlib
import io
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mimkit.pipeline.run import run
from mimkit.recipe.schema import load
from mimkit.track.base import named
from mimkit.track.sent import Sent, own_folder, state_file
from mimkit.train.loop import Loop

STEPS = [2, 4, 6, 8, 10, 12]
RESULT = "results/heldout/loss/pixels/pretrained"


def part(recipe: Path, out: Path, track: str) -> str:
    """A run of this recipe, as far as it comes, and what it said."""
    named([track])
    said = Console(record=True, width=10_000, file=io.StringIO())
    chosen = load(str(recipe), overrides=["train.checkpoint_every_steps=4"])
    with contextlib.suppress(KeyboardInterrupt):
        run(chosen, out=out, device="cpu", track=[track], console=said)
    return said.export_text()


@pytest.fixture
def tracked(tiny, tmp_path, monkeypatch):
    """Tells a tracker of a run that stops in its eighth step, and goes on from the fourth."""

    def make(track: str) -> Path:
        with monkeypatch.context() as patch:
            advance = Loop.advance

            def until(self, step, *rest):
                if step == 7:
                    raise KeyboardInterrupt
                return advance(self, step, *rest)

            patch.setattr(Loop, "advance", until)
            said = part(tiny, tmp_path / "runs", track)
        said += part(tiny, tmp_path / "runs", track)
        folder = tmp_path / "runs" / "tiny" / "0"
        log = (own_folder(folder, track) / "log.txt").read_text()
        assert "tracker '" not in said, said + log
        return folder

    monkeypatch.chdir(tmp_path)
    return make


def logged(folder: Path, name: str = "loss/total") -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row[name]) for row in rows if name in row]


def result(folder: Path) -> float:
    return json.loads((folder / "results.json").read_text())["summaries"][0]["mean"]


def elsewhere(program: str, *arguments: str) -> list:
    """What a program prints as JSON that uses a tracker's package: that stays out of the tests."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_tensorboard_reads_one_curve_the_pictures_and_the_recipe(tracked):
    pytest.importorskip("tensorboard")
    folder = tracked("tensorboard")
    program = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
found.Reload()
tags = found.Tags()
scalars = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags["scalars"]}
images = {tag: [e.encoded_image_string.hex() for e in found.Images(tag)] for tag in tags["images"]}
texts = {tag: found.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in tags["tensors"]}
print(json.dumps([scalars, images, texts]))
"""
    scalars, images, texts = elsewhere(program, str(own_folder(folder, "tensorboard")))
    assert [step for step, _ in scalars["loss/total"]] == STEPS
    for name in ("loss/total", "lr", "heldout/loss/pixels"):
        assert scalars[name] == [[s, pytest.approx(v, rel=1e-6)] for s, v in logged(folder, name)]
    assert scalars[RESULT] == [[12, pytest.approx(result(folder), rel=1e-6)]]
    assert images == {"predictions": [(folder / "pictures/predictions.png").read_bytes().hex()]}
    recipe = "\n".join(line[4:] for line in texts["recipe.toml"].splitlines())
    assert recipe == (folder / "recipe.toml").read_text().rstrip("\n")
    assert texts.keys() == {"recipe.toml", "results.json", "ledger.json"}


def records(file: Path) -> list[bytes]:
    """The records of a file of wandb: LevelDB's log format, after a head of seven bytes."""
    found, record, data, at = [], b"", file.read_bytes(), 7
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if room < 7 or kind == 0:  # the rest of a block is filled up
            at += room
            continue
        record += data[at + 7 : at + 7 + length]
        if kind in (1, 4):  # whole, or the last piece
            found.append(record)
            record = b""
        at += 7 + length
    return found


def test_wandb_writes_one_run_without_doubled_steps(tracked, monkeypatch):
    pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tracked("wandb")
    own = own_folder(folder, "wandb")
    files = sorted(own.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2  # one a call, under one number
    number = Sent.read(state_file(folder, "wandb")).id
    assert {file.name for file in files} == {f"run-{number}.wandb"}
    (own / "records.json").write_text(
        json.dumps([[one.hex() for one in records(file)] for file in files])
    )
    program = """
import json, sys
from wandb.proto.wandb_internal_pb2 import Record
rows, runs, exits = [], [], []
for file in json.load(open(sys.argv[1])):
    for one in file:
        record = Record.FromString(bytes.fromhex(one))
        if record.HasField("history"):
            items = record.history.item
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
        if record.HasField("run"):
            config = {i.key: json.loads(i.value_json) for i in record.run.config.update}
            runs.append([record.run.display_name, record.run.run_group, record.run.project, config])
        if record.HasField("exit"):
            exits.append(record.exit.exit_code)
print(json.dumps([rows, runs, exits]))
"""
    rows, runs, exits = elsewhere(program, str(own / "records.json"))
    curve = [(row["_step"], row["loss/total"]) for row in rows if "loss/total" in row]
    assert curve == logged(folder)
    assert [step for step, _ in curve] == STEPS
    assert [row[RESULT] for row in rows if RESULT in row] == [result(folder)]
    assert any(row.get("pictures/predictions/_type") == "image-file" for row in rows)
    name, group, project, config = runs[-1]
    assert (name, group, project) == ("tiny-0", "tiny", "mimkit")
    assert config["train"]["lr"] == 1e-3
    assert exits == [1, 0]  # stopped, then whole
    kept = {path.name for path in files[-1].parent.glob("files/*")}
    assert {"recipe.toml", "results.json", "ledger.json", "report.html"} <= kept


@pytest.mark.slow  # making the tables of its database takes seconds
def test_mlflow_keeps_one_run_without_doubled_steps(tracked, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy", reason="mlflow-skinny alone needs a server")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of a test")
    folder = tracked("mlflow")
    program = """
import json
from mlflow import MlflowClient
client = MlflowClient()
(run,) = client.search_runs([client.get_experiment_by_name("of a test").experiment_id])
number = run.info.run_id
curves = {
    name: sorted((m.step, m.value) for m in client.get_metric_history(number, name))
    for name in run.data.metrics
}
files = [f.path for place in (None, "pictures") for f in client.list_artifacts(number, place)]
print(json.dumps([number, run.info.run_name, run.info.status, run.data.params, curves, files]))
"""
    number, name, status, options, curves, files = elsewhere(program)
    assert number == Sent.read(state_file(folder, "mlflow")).id
    assert (name, status) == ("tiny-0", "FINISHED")
    assert options["train.lr"] == "0.001"
    assert curves["loss/total"] == [list(pair) for pair in logged(folder)]
    assert [step for step, _ in curves["loss/total"]] == STEPS
    assert curves[RESULT] == [[12, result(folder)]]
    assert set(files) == {
        *("ledger.json", "pictures", "pictures/predictions.png"),
        *("recipe.toml", "report.html", "results.json"),
    }


def test_trackio_keeps_one_run_without_doubled_steps(tracked, tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    folder = tracked("trackio")
    # Its own tables, as they lie on the disk.
    with sqlite3.connect(tmp_path / "trackio" / "mimkit.db") as database:
        found = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id")
        rows = [(name, step, json.loads(values)) for name, step, values in found]
    assert {name for name, _, _ in rows} == {Sent.read(state_file(folder, "trackio")).id}
    curve = [(step, values["loss/total"]) for _, step, values in rows if "loss/total" in values]
    assert curve == logged(folder)
    assert [step for step, _ in curve] == STEPS
    assert [values[RESULT] for _, _, values in rows if RESULT in values] == [result(folder)]
    (picture,) = [v["pictures/predictions"] for _, _, v in rows if "pictures/predictions" in v]
    assert picture["_type"] == "trackio.image"
    (kept,) = tmp_path.glob("trackio/media/**/*.png")
    assert kept.stat().st_size > 0
