"""Runs of a comparison on the GPUs of this machine: which, how many, and whether they fit."""

import io
import json
import sys
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from mimkit.launch.base import Needs
from mimkit.launch.devices import Gpus, find
from mimkit.launch.local import LocalLauncher
from mimkit.study.execute import execute
from mimkit.study.folder import is_finished, run_folder
from mimkit.study.records import Budget, Method, Plan, Trial

GIB = 2**30
TRIAL = Trial(
    0.1, 1e6, 20 * GIB, 0.0, {}, {"trainable": 1, "encoder": 1}, 0.1, 0.1, "f", 10, "NVIDIA H100"
)
# Notes which runs are at work on its GPU beside it, and then finishes.
SCRIPT = """
import json, os, pathlib, time
folder = pathlib.Path({folder!r}); here = pathlib.Path({root!r}) / "at_work"
gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
here.mkdir(exist_ok=True); own = here / f"{{gpu}}-{{os.getpid()}}"; own.touch()
time.sleep(0.8); beside = len(list(here.glob(f"{{gpu}}-*"))); own.unlink()
folder.mkdir(parents=True, exist_ok=True)
told = dict(gpu=gpu, beside=beside, shared="MIMKIT_GPU_IS_SHARED" in os.environ)
(folder / "told.json").write_text(json.dumps(told))
(folder / "ledger.json").write_text(json.dumps(dict(seconds=dict(evaluate=1))))
"""


class Scripts(LocalLauncher):
    def __init__(self, root, plan):
        super().__init__()
        self.root = root
        self.cells = iter(plan.cells)
        self.commands = []

    def submit(self, task):
        self.commands.append(task.command)
        folder = str(run_folder(next(self.cells), self.root))
        script = SCRIPT.format(folder=folder, root=str(self.root))
        return super().submit(replace(task, command=[sys.executable, "-S", "-c", script]))


@pytest.fixture
def machine(monkeypatch):
    """Makes a machine of so many GPUs of 80 GiB."""

    def make(count, visible=None):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr("mimkit.launch.devices.gpu_bytes", lambda _: 80 * GIB)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return make


def go(folder, *, jobs, seeds, device=None, peak=20):
    """Runs a plan; returns what each run saw, the commands, and what people saw."""
    (folder / "recipes").mkdir(parents=True)
    (folder / "recipes" / "a.toml").write_text("[train]\n")
    trial = replace(TRIAL, peak_memory_bytes=peak * GIB)
    method = Method("a", "a", "a", 2, 3, (), trial, 1.0)
    plan = Plan("compare", "shapes", Budget("steps", 3), tuple(range(seeds)), (method,), "0.1.0")
    launcher, shown = Scripts(folder, plan), io.StringIO()
    console = Console(file=shown, width=200)
    execute(plan, folder, jobs=jobs, launcher=launcher, device=device, console=console)
    assert all(is_finished(cell, folder) for cell in plan.cells)
    told = [json.loads((run_folder(c, folder) / "told.json").read_text()) for c in plan.cells]
    return told, launcher.commands, shown.getvalue()


def test_more_runs_than_gpus_are_spread_evenly_and_told_that_they_share(machine, tmp_path):
    machine(2)
    told, _, _ = go(tmp_path, jobs=4, seeds=4, peak=1)
    assert [run["gpu"] for run in told] == ["0", "1", "0", "1"]
    assert max(run["beside"] for run in told) == 2
    assert all(run["shared"] for run in told)


def test_a_run_with_a_gpu_of_its_own_is_not_told_that_it_shares(machine, tmp_path):
    machine(2)
    told, _, _ = go(tmp_path, jobs=2, seeds=2)
    assert [(run["gpu"], run["beside"], run["shared"]) for run in told] == [
        ("0", 1, False),
        ("1", 1, False),
    ]


def test_a_gpu_that_was_chosen_is_named_in_every_command(machine, tmp_path):
    machine(2)
    told, commands, _ = go(tmp_path, jobs=2, seeds=2, device="cuda:1", peak=1)
    assert all(command[-2:] == ["--device", "cuda:1"] for command in commands)
    assert [(run["gpu"], run["shared"]) for run in told] == 2 * [("none", True)]


def test_a_run_waits_for_memory_and_that_is_said_once(machine, tmp_path):
    machine(1)
    told, _, shown = go(tmp_path, jobs=3, seeds=3, peak=30)  # 38.5 GiB each, so two fit into 80
    assert max(run["beside"] for run in told) == 2
    assert shown.count("waits for") == 1
    assert "a, seed 2: waits for 38.5" in shown


def test_runs_that_need_all_memory_go_one_by_one(machine, tmp_path):
    machine(1)
    told, _, _ = go(tmp_path, jobs=2, seeds=2, peak=100)  # perhaps too large, but alone it may try
    assert [run["beside"] for run in told] == [1, 1]


@pytest.mark.parametrize(
    ("device", "visible", "names"),
    [
        (None, None, ("0", "1", "2")),
        ("cuda", "4,6,7", ("4", "6", "7")),
        ("cuda:2", None, ("2",)),
        ("cpu", None, ()),
    ],
)
def test_the_gpus_are_those_that_the_command_line_and_the_surroundings_let_see(
    machine, device, visible, names
):
    machine(3, visible)
    assert find(device, 2).names == names


def test_without_gpus_nothing_is_divided(machine):
    machine(0)
    assert find(None, 8) == Gpus()
    assert find(None, 8).have_room(0, Needs(1, 10 * GIB), [(1, Needs(1, 10 * GIB))])


def test_runs_of_several_processes_need_memory_of_each_of_their_gpus():
    gpus = Gpus(("0", "1", "2"), (80 * GIB,) * 3, places=2)
    assert gpus.of(0, 2) == ["0", "1"]
    assert gpus.of(1, 2) == ["2", "0"]
    assert gpus.have_room(1, Needs(2, 40 * GIB), [(0, Needs(2, 40 * GIB))])
    assert not gpus.have_room(1, Needs(2, 41 * GIB), [(0, Needs(2, 40 * GIB))])
    assert gpus.have_room(1, Needs(2, 41 * GIB), [(2, Needs(1, 79 * GIB))]) is False
    assert gpus.have_room(0, Needs(1, 41 * GIB), [(1, Needs(1, 79 * GIB))])
