"""The end of a run and of a comparison on the terminal."""

import io
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from mimkit.evaluate.base import Result
from mimkit.folder import RunFolder
from mimkit.report import ending, of_run
from mimkit.report.findings import Outcome, Row
from mimkit.report.verdicts import judge
from mimkit.study.ending import steps, with_seeds
from mimkit.study.gather import study_of
from mimkit.study.records import Budget, Method, Plan, Trial

TRIAL = Trial(2.0, 1e6, 2**20, 0.0, {}, {}, 0.1, 0.1, "f", 10, "CPU")
COMMAND = "mimkit compare a b --dataset shapes --seeds 3"


def comparison(values, *, seeds=3, finished=True):
    """Methods take 5 steps of 2 s and 30 s of judging, as planned."""
    methods = tuple(Method(name, name, name, 2, 5, (), TRIAL, 30.0) for name in values)
    plan = Plan(COMMAND, "shapes", Budget("steps", 5), tuple(range(seeds)), methods, "0.1.0")
    starts = {
        label: {start: dict(enumerate(found)) for start, found in each.items()}
        for label, each in values.items()
    }
    verdicts = (judge(Row("finetune", "accuracy", {"label_fraction": 0.1}, starts)),)
    state = "finished" if finished else "missing"
    done = {
        "seconds": {"train": 10.0, "evaluate": 30.0},
        "images_seen": 10,
        "steps": 5,
        "peak_memory_bytes": 1,
        "parameters": {},
    }
    ledger = done if finished else {}
    outcomes = tuple(Outcome(c, state, Path("r"), "c", ledger=ledger) for c in plan.cells)
    return study_of(plan, Path("x"), outcomes, verdicts)


UNSURE = {
    "a": {"pretrained": [0.50, 0.46, 0.42], "scratch": [0.2, 0.21, 0.2]},
    "b": {"pretrained": [0.48, 0.50, 0.46], "scratch": [0.2, 0.21, 0.2]},
}


def printed(found, *, width=100, terminal=False):
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    ending.show(console, found, Path("x/report.html"), list(steps(found, 2)))
    return console.file.getvalue().replace("\u202f", " ").replace("\u2212", "-")


def test_the_end_holds_the_answer_every_number_the_report_and_the_next_command():
    found = comparison(UNSURE)
    (needed,) = {pair.seeds_needed for pair in found.verdicts[0].pairs}
    text = printed(found, width=1000)
    assert text.split("\n")[1] == found.answer.replace("\u202f", " ").replace("\u2212", "-")
    assert "pre-trained" in text
    assert "46.0 %" in text
    assert "report x/report.html" in text
    seconds = (needed - 3) * 2 * 40 / 2
    assert f"next to tell a from b, about {round(seconds / 60)} min:" in text
    assert f"\n  mimkit compare a b --dataset shapes --seeds {needed}\n" in text


def test_commands_and_paths_stay_whole_on_a_narrow_terminal_and_the_table_fits():
    text = printed(comparison(UNSURE), width=60, terminal=True)
    assert "  mimkit compare a b --dataset shapes --seeds" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("  mimkit")) <= 60


def test_where_all_is_settled_nothing_is_proposed():
    values = {
        "a": {"pretrained": [0.50, 0.53, 0.52], "scratch": [0.2, 0.21, 0.2]},
        "b": {"pretrained": [0.70, 0.73, 0.71], "scratch": [0.2, 0.21, 0.2]},
    }
    assert list(steps(comparison(values), 1)) == []


def test_one_seed_asks_for_three():
    one = {"a": {"pretrained": [0.5], "scratch": [0.4]}}
    (step,) = steps(comparison(one, seeds=1), 1)
    assert step.command == "mimkit compare a b --dataset shapes --seeds 3"
    assert step.seconds == pytest.approx(2 * 40)


def test_what_is_unfinished_comes_first():
    (step,) = steps(comparison(UNSURE, finished=False), 2)
    assert (step.what, step.command) == ("6 unfinished runs", COMMAND)


def test_equal_numbers_are_settled_by_no_number_of_seeds():
    same = {name: {"pretrained": [0.5, 0.5, 0.5]} for name in ("a", "b")}
    (step,) = steps(comparison(same), 1)
    assert step.command == ""
    assert "would not settle it" in step.what


@pytest.mark.parametrize("given", ["--seeds 3", "--seeds=3", ""])
def test_the_number_of_seeds_is_replaced_and_nothing_else(given):
    command = f"mimkit compare a {given} --data 'my folder'"
    assert with_seeds(command, 9) == "mimkit compare a --data 'my folder' --seeds 9"


def test_a_run_ends_with_its_own_task_and_one_line_for_each_evaluation(tmp_path):
    results = [
        Result("knn", "accuracy", value, 100, 0, init)
        for init, value in (("pretrained", 0.5), ("random", 0.4))
    ]
    results += [
        Result("heldout", f"metric/patches/{name}", 0.4, 100, 0) for name in ("accuracy", "chance")
    ]
    folder = RunFolder(tmp_path)
    folder.results.write_text(json.dumps({"results": [asdict(result) for result in results]}))
    study = of_run.study(folder)
    shown = [(line.title, line.by_start, line.difference) for line in ending.lines(study)]
    narrow = "\u202f"
    assert shown == [
        ("k-NN accuracy", {"pretrained": f"50.0{narrow}%", "random": f"40.0{narrow}%"}, "+10.0"),
        ("its own task: accuracy of patches", {"pretrained": f"40.0{narrow}%"}, ""),
    ]
