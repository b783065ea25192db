"""Trackers of a third party, some of them broken: what they are told, and that runs go on."""

import io
import json
import re
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mimkit import api, locks
from mimkit.cli import app
from mimkit.conformance.examine import examine
from mimkit.errors import PluginError, RecipeError
from mimkit.pipeline.run import run
from mimkit.recipe.schema import load
from mimkit.track import follow
from mimkit.track.base import named
from mimkit.track.process import Log
from mimkit.track.sent import Sent, own_folder, state_file
from mimkit.train.loop import Loop

CODE = '''
import json, os, signal, time
from mimkit import Tracker


class Recorder(Tracker):
    """Writes down what it is told."""

    def __init__(self, run):
        self.id = run.id or "first"
        self.file = run.folder / "told.jsonl"
        self.tell("begin", self.id, run.title, run.recipe["train"]["lr"])

    def log(self, step, values):
        self.tell("log", step, dict(values))

    def picture(self, step, path):
        self.tell("picture", step, path.name)

    def keep(self, path):
        self.tell("keep", path.name)

    def finish(self, whole):
        self.tell("finish", whole)

    def tell(self, *what):
        with self.file.open("a") as file:
            file.write(json.dumps(what) + "\\n")


class NotAtStart(Recorder):
    def __init__(self, run):
        raise ConnectionError("nobody answers")


class NotInLog(Recorder):
    def log(self, step, values):
        raise ConnectionError("nobody answers")


class NotAtEnd(Recorder):
    def finish(self, whole):
        raise ConnectionError("nobody answers")


class Hanging(Recorder):
    def __init__(self, run):
        time.sleep(600)


class Killed(Recorder):
    def log(self, step, values):
        os.kill(os.getpid(), signal.SIGKILL)


class Lacking(Recorder):
    module = "lacking_package"
    install = "lacking-package[all]"
'''
CLASSES = {
    "recorder": "Recorder",
    "not_at_start": "NotAtStart",
    "not_in_log": "NotInLog",
    "not_at_end": "NotAtEnd",
    "hanging": "Hanging",
    "killed": "Killed",
    "lacking": "Lacking",
}
STEPS = [2, 4, 6, 8, 10, 12]


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """A distribution with trackers, for this process and those that it starts."""
    site = tmp_path / "site"
    info = site / "mimkit_recorder-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "mimkit_recorder.py").write_text(CODE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mimkit-recorder\nVersion: 1.0\n")
    lines = [f"{name} = mimkit_recorder:{cls}" for name, cls in CLASSES.items()]
    (info / "entry_points.txt").write_text("\n".join(["[mimkit.trackers]", *lines]))
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    yield
    sys.modules.pop("mimkit_recorder", None)


def here(recipe, out, *track, settings=()):
    """A run in this process: its folder, and what it said."""
    said = Console(record=True, width=10_000, file=io.StringIO())
    chosen = load(str(recipe), overrides=["train.checkpoint_every_steps=4", *settings])
    folder = run(chosen, out=out, device="cpu", track=track, console=said)
    return folder, said.export_text()


def told(folder, name="recorder"):
    file = own_folder(folder, name) / "told.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def logged(folder, *, name="loss/total"):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row[name]) for row in rows if name in row]


def numbers(folder, key="loss/total"):
    entries = [entry for entry in told(folder) if entry[0] == "log"]
    return [(step, values[key]) for _, step, values in entries if key in values]


def interrupted(recipe, out, *track, settings=()):
    """A run that stops in its eighth step as if killed: what follows the fourth is thrown away."""
    with pytest.MonkeyPatch.context() as patch:
        advance = Loop.advance

        def until(self, step, *rest):
            if step == 7:
                raise KeyboardInterrupt
            return advance(self, step, *rest)

        patch.setattr(Loop, "advance", until)
        with pytest.raises(KeyboardInterrupt):
            here(recipe, out, *track, settings=settings)
    return out / "tiny" / "0"


def test_a_tracker_is_told_what_the_run_folder_holds(tiny, tmp_path):
    folder, said = here(tiny, tmp_path / "runs", "recorder")
    assert "tracker '" not in said
    begun, *rest, ended = told(folder)
    assert begun == ["begin", "first", "tiny-0", 1e-3]
    assert ended == ["finish", True]
    assert numbers(folder) == logged(folder)
    assert [step for step, _ in numbers(folder)] == STEPS
    assert numbers(folder, "heldout/loss/pixels") == logged(folder, name="heldout/loss/pixels")
    assert [entry[2] for entry in rest if entry[0] == "picture"] == ["predictions.png"]
    kept = [entry[1] for entry in rest if entry[0] == "keep"]
    assert kept == ["recipe.toml", "results.json", "ledger.json", "report.html"]
    results = json.loads((folder / "results.json").read_text())
    ((step, mean),) = numbers(folder, "results/heldout/loss/pixels/pretrained")
    assert (step, mean) == (12, results["summaries"][0]["mean"])
    assert numbers(folder, "ledger/images_seen") == [(12, 96)]


def test_the_same_command_tells_nothing_twice(tiny, tmp_path):
    folder, _ = here(tiny, tmp_path / "runs", "recorder")
    before = told(folder)
    here(tiny, tmp_path / "runs", "recorder")
    again = told(folder)[len(before) :]
    assert again[0] == ["begin", "first", "tiny-0", 1e-3]
    # The ledger of the second call is another file; no number, no picture comes again.
    assert {entry[0] for entry in again[1:]} <= {"keep", "finish"}


def test_a_run_that_goes_on_continues_the_curve_without_doubled_steps(tiny, tmp_path):
    folder = interrupted(tiny, tmp_path / "runs", "recorder")
    assert told(folder)[-1] == ["finish", False]
    assert [step for step, _ in numbers(folder)] == [2, 4, 6]  # 6 lies behind the checkpoint
    here(tiny, tmp_path / "runs", "recorder")
    assert [entry[1] for entry in told(folder) if entry[0] == "begin"] == ["first", "first"]
    assert numbers(folder) == logged(folder)
    assert [step for step, _ in numbers(folder)] == STEPS


def test_a_killed_run_leaves_nothing_untold(tiny, tmp_path):
    program = """
        import os, signal, sys
        from mimkit.train.loop import Loop
        advance = Loop.advance

        def until(self, step, *rest):
            if step == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            return advance(self, step, *rest)

        Loop.advance = until
        from mimkit.cli import app
        app(sys.argv[1:])
    """
    arguments = ["run", str(tiny), "--out", str(tmp_path / "runs"), "--device", "cpu"]
    arguments += ["--track", "recorder", "--set", "train.checkpoint_every_steps=4"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = tmp_path / "runs" / "tiny" / "0"
    here(tiny, tmp_path / "runs", "recorder")  # waits for the process that still tells the first
    assert numbers(folder) == logged(folder)
    assert [step for step, _ in numbers(folder)] == STEPS
    assert [entry[1] for entry in told(folder) if entry[0] == "finish"] == [False, True]


def test_a_tracker_that_is_named_later_is_told_all(tiny, tmp_path):
    folder = interrupted(tiny, tmp_path / "runs", "not_at_end")
    here(tiny, tmp_path / "runs", "recorder")
    assert numbers(folder) == logged(folder)
    assert [step for step, _ in numbers(folder)] == STEPS


def test_fresh_begins_anew_with_the_tracker_too(tiny, tmp_path):
    folder, _ = here(tiny, tmp_path / "runs", "recorder")
    run(load(str(tiny)), out=tmp_path / "runs", device="cpu", fresh=True)
    assert not (folder / "trackers").exists() or not list((folder / "trackers").iterdir())


@pytest.mark.parametrize("name", ["not_at_start", "not_in_log", "not_at_end"])
def test_a_tracker_that_raises_is_told_in_one_line_and_changes_nothing(name, tiny, tmp_path):
    bare, without = here(tiny, tmp_path / "bare")
    folder, said = here(tiny, tmp_path / "runs", name)
    lines = [line for line in said.splitlines() if "tracker '" in line]
    assert len(lines) == 1, said
    assert lines[0].startswith(f"tracker '{name}': ConnectionError: nobody answers. The run goes")
    assert len(said.splitlines()) == len(without.splitlines()) + 1
    assert "ConnectionError" in (own_folder(folder, name) / "log.txt").read_text()
    assert logged(folder) == logged(bare)
    for file in ("encoder.safetensors", "results.json"):
        assert (folder / file).read_bytes() == (bare / file).read_bytes()


def test_of_several_trackers_those_that_work_go_on(tiny, tmp_path):
    folder, said = here(tiny, tmp_path / "runs", "not_in_log", "recorder")
    assert said.count("tracker '") == 1
    assert numbers(folder) == logged(folder)
    assert told(folder)[-1] == ["finish", True]


def test_a_failure_is_forgotten_where_the_next_call_does_better(tiny, tmp_path):
    folder, _ = here(tiny, tmp_path / "runs", "not_in_log")
    assert Sent.read(state_file(folder, "not_in_log")).failure.startswith("ConnectionError")
    site = tmp_path / "site" / "mimkit_recorder.py"
    site.write_text(
        CODE.replace(
            "class NotInLog(Recorder):\n    def log", "class NotInLog(Recorder):\n    def lg"
        )
    )
    _, said = here(tiny, tmp_path / "runs", "not_in_log")
    assert "tracker '" not in said
    assert Sent.read(state_file(folder, "not_in_log")).failure == ""
    steps = [entry[1] for entry in told(folder, "not_in_log") if "loss/total" in str(entry)]
    assert [step for step in steps if step in STEPS][:6] == STEPS


def test_a_tracker_that_hangs_keeps_no_run_waiting(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "LAST_SECONDS", 0.2)
    start = time.monotonic()
    folder, said = here(tiny, tmp_path / "runs", "hanging")
    assert time.monotonic() - start < 60
    assert said.count("tracker 'hanging': it has not ended within") == 1
    assert (folder / "report.html").is_file()
    assert not locks.is_taken(own_folder(folder, "hanging") / "lock")  # nothing is left of it


def test_a_tracker_that_does_not_begin_is_given_up_while_the_run_trains(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(follow, "START_SECONDS", 0.0)
    _, said = here(tiny, tmp_path / "runs", "hanging")
    assert said.count("tracker 'hanging': it has not begun within 0 s") == 1
    assert said.count("tracker '") == 1


def test_a_tracker_whose_process_is_killed_is_named(tiny, tmp_path):
    _, said = here(tiny, tmp_path / "runs", "killed")
    assert "tracker 'killed': killed by SIGKILL. The run goes on" in said


def test_a_folder_that_cannot_be_made_stops_no_run(tiny, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(follow.subprocess, "Popen", refuse)
    folder, said = here(tiny, tmp_path / "runs", "recorder")
    assert said.count("tracker 'recorder': [Errno 28] No space left on device") == 1
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("command", ["run", "compare"])
def test_what_cannot_work_is_told_before_anything_is_computed(command, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # As wandb leaves one: a folder of the package's name is not the package.
    (tmp_path / "lacking_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for name, message in {
        "lacking": "--track lacking: needs lacking_package, which is not installed. Install it "
        "with: pip install 'lacking-package[all]'",
        "recordr": "tracker 'recordr' is offered by no installed distribution. Did you mean "
        "'recorder'? See: mimkit list trackers",
    }.items():
        done = CliRunner().invoke(app, [command, str(tiny), "--track", f"recorder,{name}"])
        assert done.exit_code == 2
        assert done.output.strip() == message
        assert not (tmp_path / "runs").exists()
        assert not (tmp_path / "comparisons").exists()


def test_names_come_with_commas_or_one_by_one_and_count_once():
    assert named(["recorder,killed", "recorder"]) == ("recorder", "killed")
    with pytest.raises(PluginError):
        named([""])
    with pytest.raises(RecipeError):
        named(["lacking"])


def test_trackers_of_a_package_are_listed_and_checked():
    done = CliRunner().invoke(app, ["list", "trackers"])
    assert "recorder" in done.output
    assert "tensorboard" in done.output
    done = CliRunner().invoke(app, ["list", "trackers", "recorder"])
    assert "Writes down what it is told." in done.output
    verdicts = list(examine("mimkit-recorder"))
    assert {verdict.outcome for verdict in verdicts} == {"passed"}
    assert len(verdicts) == len(CLASSES)


@pytest.mark.slow
def test_runs_of_a_comparison_are_tracked_and_may_go_on_without(tiny, tmp_path):
    asked = {"budget": "steps=4", "seeds": 1, "evaluate": ["knn"], "jobs": 1, "device": "cpu"}
    found = api.compare([tiny], **asked, out=tmp_path / "all", track=["recorder"])
    (outcome,) = found.outcomes
    assert outcome.state == "finished"
    assert numbers(outcome.folder) == logged(outcome.folder)
    assert told(outcome.folder)[-1] == ["finish", True]
    assert "--track recorder" in found.command
    plan = json.loads((tmp_path / "all" / "plan.json").read_text())
    assert "recorder" not in json.dumps([plan["asked"], plan["methods"]])
    again = api.compare([tiny], **asked, out=tmp_path / "all")  # is not another comparison
    assert [each.state for each in again.outcomes] == ["finished"]


def test_a_half_written_line_waits_for_its_rest_and_a_new_log_is_read_from_its_start(tmp_path):
    file = tmp_path / "metrics.jsonl"
    log = Log(file)
    assert list(log.rows()) == []
    file.write_text('{"step": 2, "lr": 0.5, "bad": null}\n{"step": 4, "l')
    assert list(log.rows()) == [(2, {"lr": 0.5})]
    with file.open("a") as more:
        more.write('r": 0.25}\n')
    assert list(log.rows()) == [(4, {"lr": 0.25})]
    (tmp_path / "new").write_text('{"step": 2, "lr": 0.5}\n')
    (tmp_path / "new").replace(file)
    assert list(log.rows()) == [(2, {"lr": 0.5})]


def test_a_process_ends_with_the_run_whatever_its_tracker_does():
    program = (
        "import time; from mimkit.track import process; process.LAST_SECONDS = 0.1; "
        "process.Ending(); time.sleep(600)"
    )
    done = subprocess.run([sys.executable, "-c", program], input=b"", timeout=60, check=False)
    assert done.returncode == 1


def test_the_tracker_of_the_docs_writes_what_it_is_told(tiny, tmp_path):
    page = Path(__file__).parents[1].joinpath("docs", "trackers.md").read_text("utf-8")
    code, points = (
        re.search(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[1]
        for language in ("python", "toml")
    )
    info = tmp_path / "site" / "my_package-1.0.dist-info"
    info.mkdir()
    (tmp_path / "site" / "my_package.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    ((group, entries),) = tomllib.loads(points)["project"]["entry-points"].items()
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
    folder, said = here(tiny, tmp_path / "runs", "lines")
    assert "tracker '" not in said
    written = (own_folder(folder, "lines") / "lines.txt").read_text().splitlines()
    assert [int(line.split()[0]) for line in written if "'loss/total'" in line] == STEPS


@pytest.mark.slow
def test_of_several_processes_the_leading_one_tells_alone(tiny, tmp_path):
    arguments = ["run", str(tiny), "--out", str(tmp_path / "runs"), "--device", "cpu"]
    arguments += ["--track", "recorder", "--set", "train.processes=2"]
    done = subprocess.run(
        [sys.executable, "-m", "mimkit", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs" / "tiny" / "0"
    assert [entry[0] for entry in told(folder)].count("begin") == 1
    assert numbers(folder) == logged(folder)
