"""Running the cells of a comparison: queue, failures, kills, what a dead parent left behind."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mimkit.errors import DataError
from mimkit.launch.base import Ended, Task
from mimkit.launch.local import LocalLauncher
from mimkit.launch.slurm import SlurmLauncher
from mimkit.launch.work import job_file
from mimkit.report.findings import Cell
from mimkit.study.execute import execute
from mimkit.study.folder import (
    cell_command,
    claim,
    failure_file,
    is_finished,
    log_file,
    run_folder,
)
from mimkit.study.records import Budget, Method, Plan, Trial
from mimkit.train.signals import Interrupted

TRIAL = Trial(0.1, 1e6, 2**20, 0.0, {}, {"trainable": 1, "encoder": 1}, 0.1, 0.1, "f", 10, "CPU")

FINISH = (
    "import json, pathlib; p = pathlib.Path({folder!r}); p.mkdir(parents=True, exist_ok=True); "
    "(p / 'ledger.json').write_text(json.dumps({{'seconds': {{'evaluate': 1}}}}))"
)


def make_plan(folder, *labels, seeds=(0,), train="[train]\n"):
    (folder / "recipes").mkdir(parents=True, exist_ok=True)
    for label in labels:
        (folder / "recipes" / f"{label}.toml").write_text(train)
    methods = tuple(Method(name, name, name, 2, 3, (), TRIAL, 1.0) for name in labels)
    return Plan("mimkit compare", "shapes", Budget("steps", 3), seeds, methods, "0.1.0")


class Scripts(LocalLauncher):
    """Starts for each method a script of its own, where `execute` asks for ``mimkit run``.

    In a script FINISH stands for what makes the run finished.
    """

    def __init__(self, folder: Path, **scripts: str) -> None:
        super().__init__()
        self.folder = folder
        self.scripts = scripts
        self.asked: list[tuple[list[str], dict[str, str]]] = []

    def submit(self, task):
        self.asked.append((list(task.command), dict(task.environment)))
        return super().submit(replace(task, command=self.script(task)))

    def script(self, task):
        label = Path(next(word for word in task.command if word.endswith(".toml"))).stem
        seed = int(task.command[task.command.index("--seed") + 1])
        folder = str(run_folder(Cell(label, seed), self.folder))
        script = self.scripts[label].replace("FINISH", FINISH.format(folder=folder))
        return [sys.executable, "-c", f"folder = {folder!r}\n{script}"]


def go(plan, folder, launcher, *, jobs=2, device="cpu", console=None):
    console = console or Console(quiet=True)
    execute(plan, folder, jobs=jobs, launcher=launcher, device=device, console=console)


def test_trackers_are_named_to_each_run_and_are_no_part_of_its_command(tmp_path):
    plan = make_plan(tmp_path, "a")
    launcher = Scripts(tmp_path, a="FINISH")
    execute(
        plan,
        tmp_path,
        jobs=1,
        launcher=launcher,
        device="cpu",
        track=("tensorboard", "wandb"),
        console=Console(quiet=True),
    )
    ((command, _),) = launcher.asked
    assert command[-2:] == ["--track", "tensorboard,wandb"]
    assert "--track" not in cell_command(plan.cells[0], tmp_path, "cpu")


@pytest.mark.parametrize(
    ("train", "shares"), [("", 2), ('accumulate = "auto"', 2), ("accumulate = 2", 1)]
)
def test_a_launcher_is_told_into_how_many_shares_a_batch_can_be_cut(tmp_path, train, shares):
    needs = []

    class Asking(Scripts):
        def submit(self, task):
            needs.append(task.needs)
            return super().submit(task)

    go(
        make_plan(tmp_path, "a", train=f"[train]\n{train}\n"),
        tmp_path,
        Asking(tmp_path, a="FINISH"),
    )
    assert [need.shares for need in needs] == [shares]


def failure(folder, label="a"):
    return failure_file(Cell(label, 0), folder).read_text()


def test_every_cell_runs_once_and_never_again(tmp_path):
    plan = make_plan(tmp_path, "a", "b", seeds=(0, 1))
    launcher = Scripts(tmp_path, a="print('once'); FINISH", b="print('once'); FINISH")
    go(plan, tmp_path, launcher)
    go(plan, tmp_path, launcher)
    assert all(is_finished(cell, tmp_path) for cell in plan.cells)
    assert [log_file(cell, tmp_path).read_text() for cell in plan.cells] == ["once\n"] * 4
    runs = [(Path(c[4]).stem, c[c.index("--seed") + 1]) for c, _ in launcher.asked]
    assert runs == [("a", "0"), ("b", "0"), ("a", "1"), ("b", "1")]


def test_no_more_than_the_asked_number_runs_at_once(tmp_path):
    # Each script counts those that run beside it.
    script = (
        "import os, pathlib, time\n"
        f"here = pathlib.Path({str(tmp_path)!r}) / 'running'\n"
        "here.mkdir(exist_ok=True); own = here / str(os.getpid()); own.touch()\n"
        "time.sleep(0.6); print(len(list(here.iterdir()))); own.unlink()\n"
        "FINISH"
    )
    plan = make_plan(tmp_path, "a", "b", "c", "d")
    go(plan, tmp_path, Scripts(tmp_path, a=script, b=script, c=script, d=script), jobs=2)
    seen = [int(log_file(cell, tmp_path).read_text()) for cell in plan.cells]
    assert max(seen) == 2


def test_a_failing_cell_leaves_its_whole_message_and_the_others_go_on(tmp_path):
    fails = (
        "import os, pathlib, sys; print('noise')\n"
        "file = pathlib.Path(os.environ['MIMKIT_ERROR_FILE'])\n"
        "file.write_text('x: must be 1.\\ny: must be 2.'); sys.exit(2)"
    )
    plan = make_plan(tmp_path, "a", "b")
    go(plan, tmp_path, Scripts(tmp_path, a=fails, b="FINISH"), jobs=1)
    assert failure(tmp_path) == "x: must be 1.\ny: must be 2."
    assert is_finished(Cell("b", 0), tmp_path)
    go(plan, tmp_path, Scripts(tmp_path, a="FINISH"))
    assert not failure_file(Cell("a", 0), tmp_path).exists()
    assert is_finished(Cell("a", 0), tmp_path)


def test_a_crash_is_told_with_its_exception_and_the_log(tmp_path):
    go(make_plan(tmp_path, "a"), tmp_path, Scripts(tmp_path, a="raise OSError('by nought')"))
    log = log_file(Cell("a", 0), tmp_path)
    assert failure(tmp_path) == f"OSError: by nought (exit code 1; all it said: {log})"


@pytest.mark.slow
def test_the_error_of_a_real_run_is_told_whole(tiny, tmp_path):
    text = tiny.read_text().replace("mask_ratio", "mask_ration").replace("lr = ", "rl = ")
    go(make_plan(tmp_path, "a", train=text), tmp_path, LocalLauncher())
    reason = failure(tmp_path)
    assert "Did you mean 'mask_ratio'?" in reason
    assert "[train] lr: is missing" in reason
    assert reason in log_file(Cell("a", 0), tmp_path).read_text()


DIES = (
    "import os, pathlib; mark = pathlib.Path(folder + '.mark')\n"
    "mark.parent.mkdir(parents=True, exist_ok=True)\n"
    "number = len(mark.read_text()) if mark.exists() else 0; mark.write_text('x' * (number + 1))\n"
    "if number < 2: os.kill(os.getpid(), {signal})\n"
    "FINISH"
)


def test_a_killed_run_is_started_again_twice(tmp_path):
    launcher = Scripts(tmp_path, a=DIES.format(signal=9))
    go(make_plan(tmp_path, "a"), tmp_path, launcher)
    assert len(launcher.asked) == 3
    assert is_finished(Cell("a", 0), tmp_path)
    assert not failure_file(Cell("a", 0), tmp_path).exists()


def test_a_run_that_is_killed_again_and_again_fails_by_the_name_of_the_signal(tmp_path):
    launcher = Scripts(
        tmp_path, a="import os; print('step 7', flush=True); os.kill(os.getpid(), 9)", b="FINISH"
    )
    go(make_plan(tmp_path, "a", "b"), tmp_path, launcher)
    assert "killed by SIGKILL" in failure(tmp_path)
    assert "memory" in failure(tmp_path)
    assert "3 times; last words: step 7" in failure(tmp_path)
    assert is_finished(Cell("b", 0), tmp_path)
    assert len(launcher.asked) == 4


def test_what_outlives_a_killed_run_is_waited_for_and_does_not_make_retries_endless(tmp_path):
    # A loader process holds the log for a moment longer.
    script = (
        "import os, subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(0.7)'])\n"
        "os.kill(os.getpid(), 9)"
    )
    launcher = Scripts(tmp_path, a=script)
    start = time.monotonic()
    go(make_plan(tmp_path, "a"), tmp_path, launcher)
    assert len(launcher.asked) == 3
    assert time.monotonic() - start > 3 * 0.7
    assert "killed by SIGKILL" in failure(tmp_path)


def test_a_full_disk_stops_all_politely_and_is_told(tmp_path):
    mark = tmp_path / "stopped"
    polite = (
        "import signal, time, pathlib, sys\n"
        f"def stop(*_): pathlib.Path({str(mark)!r}).write_text('yes'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); print('ready', flush=True); time.sleep(60)"
    )
    full = (
        "import sys, time, pathlib\n"
        f"log = pathlib.Path({str(log_file(Cell('b', 0), tmp_path))!r})\n"
        "while not (log.exists() and 'ready' in log.read_text()): time.sleep(0.01)\n"
        "print('x: the disk is full, so it could not be written'); sys.exit(2)"
    )
    plan = make_plan(tmp_path, "a", "b")
    with pytest.raises(DataError, match=r"the disk is full \(a, seed 0: x: .* same command"):
        go(plan, tmp_path, Scripts(tmp_path, a=full, b=polite))
    assert mark.read_text() == "yes"
    assert not failure_file(Cell("a", 0), tmp_path).exists()  # it is only to be tried again
    go(plan, tmp_path, Scripts(tmp_path, a="FINISH", b="FINISH"))
    assert all(is_finished(cell, tmp_path) for cell in plan.cells)


def test_a_really_full_disk_loses_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        plan = make_plan(disk, "a", "b", "c")
        fills = (
            "import pathlib\nfrom mimkit.files import write_atomic\n"
            f"big = pathlib.Path({str(disk)!r}) / 'big'\n"
            "write_atomic(big, lambda path: path.write_bytes(bytes(4 * 2**20)))"
        )
        with pytest.raises(DataError, match="the disk is full"):
            go(plan, disk, Scripts(disk, a="FINISH", b=fills, c="FINISH"), jobs=1)
        assert is_finished(Cell("a", 0), disk)
        assert not run_folder(Cell("c", 0), disk).exists()
        # Nothing at all can be written, not even a log.
        (disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
        with pytest.raises(DataError, match="the disk is full"):
            go(plan, disk, Scripts(disk, b="print('x' * 10_000)", c="FINISH"), jobs=1)
        (disk / "filler").unlink()
        go(plan, disk, Scripts(disk, b="FINISH", c="FINISH"), jobs=1)
        assert all(is_finished(cell, disk) for cell in plan.cells)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_run_left_by_a_dead_parent_is_waited_for(tmp_path):
    cell = Cell("a", 0)
    plan = make_plan(tmp_path, "a", "b")
    finish = FINISH.format(folder=str(run_folder(cell, tmp_path)))
    dead = LocalLauncher()
    command = [sys.executable, "-c", "import time; time.sleep(1.5); " + finish]
    orphan = dead.submit(Task(command, log_file(cell, tmp_path)))
    job_file(log_file(cell, tmp_path)).write_text(orphan)
    assert LocalLauncher().poll(orphan) is None
    launcher = Scripts(tmp_path, a="raise SystemExit('must not be started')", b="FINISH")
    text = io.StringIO()
    go(plan, tmp_path, launcher, console=Console(file=text, width=200))
    assert dead.poll(orphan) == Ended(0)
    assert is_finished(cell, tmp_path)
    assert len(launcher.asked) == 1
    assert text.getvalue().count("another process is at work on this run") == 1
    assert LocalLauncher().poll(orphan) == Ended.unseen()
    assert not job_file(log_file(cell, tmp_path)).exists()


def test_a_run_that_someone_else_writes_is_waited_for_then_gone_on_with(tmp_path):
    folder = run_folder(Cell("a", 0), tmp_path)
    folder.mkdir(parents=True)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, time; from mimkit.folder import RunFolder\n"
            f"with RunFolder(pathlib.Path({str(folder)!r}), writable=True):\n"
            "    print('held', flush=True); time.sleep(1)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    launcher = Scripts(tmp_path, a="FINISH")
    go(make_plan(tmp_path, "a"), tmp_path, launcher)
    assert holder.wait(timeout=5) == 0  # it had ended before ours was started
    holder.stdout.close()
    assert len(launcher.asked) == 1
    assert is_finished(Cell("a", 0), tmp_path)


def test_a_run_that_lost_the_race_for_its_folder_is_tried_again(tmp_path):
    # The first process finds the folder taken, as `mimkit run` would, and is refused.
    script = (
        "import pathlib, subprocess, sys, time\n"
        "p = pathlib.Path(folder)\n"
        "if not p.exists():\n"
        "    p.mkdir(parents=True)\n"
        "    code = 'import fcntl, sys, time; f = open(sys.argv[1], \"w\"); '\n"
        "    code += 'fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); time.sleep(1)'\n"
        "    other = subprocess.Popen([sys.executable, '-c', code, str(p / '.lock')],\n"
        "                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)\n"
        "    other.stdout.readline(); sys.exit(2)\n"
        "FINISH"
    )
    launcher = Scripts(tmp_path, a=script)
    go(make_plan(tmp_path, "a"), tmp_path, launcher)
    assert len(launcher.asked) == 2
    assert is_finished(Cell("a", 0), tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_runs_politely_and_the_same_call_goes_on(tmp_path, number):
    mark = tmp_path / "stopped"
    script = (
        "import os, signal, time, pathlib, sys\n"
        f"def stop(*_): pathlib.Path({str(mark)!r}).write_text('yes'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"os.kill({os.getpid()}, {int(number)}); time.sleep(60)"
    )
    plan = make_plan(tmp_path, "a", "b")
    with pytest.raises(Interrupted, match="with 0 of 2 runs finished") as error:
        go(plan, tmp_path, Scripts(tmp_path, a=script, b="FINISH"), jobs=1)
    assert error.value.exit_code == 128 + number
    assert mark.read_text() == "yes"
    assert not (tmp_path / "failed").exists() or not list((tmp_path / "failed").iterdir())
    go(plan, tmp_path, Scripts(tmp_path, a="FINISH", b="FINISH"))
    assert all(is_finished(cell, tmp_path) for cell in plan.cells)


def test_a_second_comparison_in_the_folder_is_refused_until_the_first_is_gone(tmp_path):
    code = (
        "import fcntl, os, sys, time; file = open(sys.argv[1], 'w')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX); file.write(str(os.getpid())); file.flush()\n"
        "print('held', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True
    )
    with first:
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(DataError, match=f"another mimkit compare .* process {first.pid}"),
            claim(tmp_path),
        ):
            pass
        first.kill()
        first.wait()
    with claim(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_runs_share_the_cores_and_a_number_of_threads_that_was_asked_for_stays(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("mimkit.launch.queue.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launcher = Scripts(tmp_path, a="FINISH", b="FINISH", c="FINISH")
    go(make_plan(tmp_path, "a", "b", "c"), tmp_path, launcher, jobs=2)
    assert {e["OMP_NUM_THREADS"] for _, e in launcher.asked} == {"4"}
    assert {e["MIMKIT_CORES"] for _, e in launcher.asked} == {"4"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    launcher = Scripts(tmp_path / "b", a="FINISH")
    go(make_plan(tmp_path / "b", "a"), tmp_path / "b", launcher)
    assert "OMP_NUM_THREADS" not in launcher.asked[0][1]


@pytest.mark.parametrize(
    ("visible", "processes", "expected"),
    [
        (None, 1, ["0", "1", "2"]),
        ("5,7", 1, ["5", "7", "5"]),
        (None, 2, ["0,1", "2,0", "1,2"]),
    ],
)
def test_each_place_has_gpus_of_its_own(tmp_path, monkeypatch, visible, processes, expected):
    monkeypatch.setattr(
        torch.cuda, "device_count", lambda: len(visible.split(",")) if visible else 3
    )
    monkeypatch.setattr("mimkit.launch.devices.gpu_bytes", lambda _: 80 * 2**30)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    script = "import time; time.sleep(1); FINISH"  # so that each has a place of its own
    launcher = Scripts(tmp_path, a=script, b=script, c=script)
    plan = make_plan(tmp_path, "a", "b", "c", train=f"[train]\nprocesses = {processes}\n")
    go(plan, tmp_path, launcher, jobs=3, device=None)
    assert [e["CUDA_VISIBLE_DEVICES"] for _, e in launcher.asked] == expected
    # A run of several processes becomes torchrun itself, or a launcher starts it several times.
    assert {tuple(c[1:4]) for c, _ in launcher.asked} == {("-m", "mimkit", "run")}


def test_the_command_of_a_cell_can_be_typed(tmp_path):
    command = cell_command(Cell("a", 3), tmp_path)
    recipe, runs = str(tmp_path / "recipes" / "a.toml"), str(tmp_path / "runs")
    assert command == ["mimkit", "run", recipe, "--seed", "3", "--out", runs]
    assert cell_command(Cell("a", 3), tmp_path, "cpu") == [*command, "--device", "cpu"]


def test_a_half_written_run_is_not_finished(tmp_path):
    folder = run_folder(Cell("a", 0), tmp_path)
    folder.mkdir(parents=True)
    assert not is_finished(Cell("a", 0), tmp_path)
    (folder / "ledger.json").write_text(json.dumps({"seconds": {"train": 1}}))
    assert not is_finished(Cell("a", 0), tmp_path)


def test_a_process_that_ends_well_without_a_finished_run_has_failed(tmp_path):
    go(make_plan(tmp_path, "a"), tmp_path, Scripts(tmp_path, a="pass"))
    assert "it said nothing (exit code 0" in failure(tmp_path)


def test_people_see_progress_as_plain_lines_or_a_live_display(tmp_path):
    script = "import time; print('step 3/9', flush=True); time.sleep(1.2); FINISH"
    plan = make_plan(tmp_path, "a", "b", seeds=(0, 1))
    plain = io.StringIO()
    launcher = Scripts(tmp_path, a="FINISH", b="raise ValueError('odd')")
    go(plan, tmp_path, launcher, jobs=1, console=Console(file=plain, width=120))
    lines = plain.getvalue().splitlines()
    assert lines[0].startswith("a, seed 0: finished (1 of 4, ")
    assert "left)" in lines[0]
    assert lines[1].startswith("b, seed 0: failed. ValueError: odd")
    assert len(lines) == 4
    live = io.StringIO()
    plan = make_plan(tmp_path / "t", "a")
    terminal = Console(file=live, width=120, force_terminal=True)
    go(plan, tmp_path / "t", Scripts(tmp_path / "t", a=script), console=terminal)
    assert "0 of 1 runs finished" in live.getvalue()
    assert "step 3/9" in live.getvalue()


class OnCluster(SlurmLauncher):
    """A script for each method, as `Scripts`, but in a queue."""

    def __init__(self, folder, options, cluster, **scripts):
        super().__init__(folder / "slurm", options, cluster)
        self.local = Scripts(folder, **scripts)

    def submit(self, task):
        return super().submit(replace(task, command=self.local.script(task)))


@pytest.mark.slow
def test_the_queue_of_a_cluster_runs_cells_tells_failures_and_tries_killed_ones_again(tmp_path):
    pytest.importorskip("submitit")
    plan = make_plan(tmp_path, "a", "b", "c")
    launcher = OnCluster(
        tmp_path,
        {},
        "local",
        a="print('ran'); FINISH",
        b="raise ValueError('odd')",
        c=DIES.format(signal=9),
    )
    go(plan, tmp_path, launcher, jobs=3)
    assert log_file(Cell("a", 0), tmp_path).read_text() == "ran\n"
    assert is_finished(Cell("a", 0), tmp_path)
    assert failure(tmp_path, "b").startswith("ValueError: odd")
    assert is_finished(Cell("c", 0), tmp_path)
    assert not list((tmp_path / "logs").glob("*.job"))


FAKE_SLURM = {
    "sbatch": """
        number=$(($(cat $QUEUE/last 2>/dev/null || echo 40) + 1)); echo $number > $QUEUE/last
        cp "$1" $QUEUE/$number.sh
        SLURM_JOB_ID=$number setsid bash $QUEUE/$number.sh > $QUEUE/$number.log 2>&1 &
        echo $! > $QUEUE/$number.pid
        echo Submitted batch job $number
    """,
    "srun": """
        while [ "${1#--}" != "$1" ]; do
            case $1 in --output|--error) shift 2;; *) shift;; esac
        done
        echo $$ > $QUEUE/$SLURM_JOB_ID.task
        exec "$@"
    """,
    "sacct": """
        echo "JobID|State|NodeList"
        for file in $QUEUE/*.pid; do
            number=$(basename $file .pid)
            kill -0 $(cat $file) 2>/dev/null && state=RUNNING || state=FAILED
            echo "$number|$state|here"
        done
    """,
    "scancel": "kill -TERM $(cat $QUEUE/$1.task)",
}
"""As much of Slurm as submitit calls, each a shell script."""


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    queue = tmp_path / "queue"
    queue.mkdir()
    for name, text in FAKE_SLURM.items():
        (queue / name).write_text(f"#!/bin/bash\n{text}")
        (queue / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{queue}:{os.environ['PATH']}")
    monkeypatch.setenv("QUEUE", str(queue))
    return queue


@pytest.mark.slow
def test_a_job_that_a_dead_parent_left_in_the_queue_is_not_queued_twice(fake_slurm, tmp_path):
    plan = make_plan(tmp_path, "a")
    options = {"partition": "gpu", "time": "90", "mem": "32GB", "gpus_per_node": "1"}
    first = OnCluster(tmp_path, options, "slurm", a="import time; time.sleep(3); FINISH")
    log = log_file(Cell("a", 0), tmp_path)
    command = [sys.executable, str(tmp_path / "recipes/a.toml"), "--seed", "0"]
    job_file(log).parent.mkdir()
    job_file(log).write_text(first.submit(Task(command, log)))
    text = (fake_slurm / "41.sh").read_text()
    for flag in ("partition=gpu", "time=90", "mem=32GB", "gpus-per-node=1", "job-name=mimkit"):
        assert f"#SBATCH --{flag}\n" in text
    go(plan, tmp_path, OnCluster(tmp_path, options, "slurm", a="raise SystemExit('twice')"))
    assert is_finished(Cell("a", 0), tmp_path)
    assert not (fake_slurm / "42.sh").exists()


@pytest.mark.slow
def test_a_signal_cancels_the_jobs_and_waits_for_their_checkpoints(fake_slurm, tmp_path):
    mark = tmp_path / "stopped"
    script = (
        "import os, signal, time, pathlib, sys\n"
        f"mark = pathlib.Path({str(mark)!r})\n"
        "def stop(*_): time.sleep(1); mark.write_text('yes'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"os.kill({os.getpid()}, signal.SIGTERM); time.sleep(60)"
    )
    with pytest.raises(Interrupted):
        go(make_plan(tmp_path, "a"), tmp_path, OnCluster(tmp_path, {}, "slurm", a=script))
    assert mark.read_text() == "yes"


@pytest.mark.slow
def test_a_job_that_the_cluster_ends_is_tried_again_then_told(fake_slurm, tmp_path):
    # The whole job is killed, the task of submitit as well, as when memory runs out.
    script = f"import os; os.kill(int(open('{fake_slurm}/last').read()) and os.getppid(), 9)"
    launcher = OnCluster(tmp_path, {}, "slurm", a=script)
    go(make_plan(tmp_path, "a"), tmp_path, launcher)
    assert (fake_slurm / "last").read_text() == "43\n"
    assert "job 43 of the cluster ended as FAILED" in failure(tmp_path)


def test_the_live_table_shows_state_step_loss_and_what_waits(tmp_path):
    script = (
        "import json, pathlib, time; p = pathlib.Path(folder); p.mkdir(parents=True)\n"
        "rows = [{'step': 1, 'loss/total': 0.5}, {'step': 2, 'loss/total': 0.25}]\n"
        "text = ''.join(json.dumps(row) + '\\n' for row in rows) + '{\"step\": 3, \"lo'\n"
        "(p / 'metrics.jsonl').write_text(text); print('word ' * 60, flush=True); "
        "time.sleep(1.5); FINISH"
    )
    live = io.StringIO()
    plan = make_plan(tmp_path, "a", "b")
    terminal = Console(file=live, width=60, height=20, force_terminal=True, color_system=None)
    go(plan, tmp_path, Scripts(tmp_path, a=script, b="FINISH"), jobs=1, console=terminal)
    text = live.getvalue()
    assert all(head in text for head in ("run", "state", "step", "loss", "left"))
    assert re.search(r"a, seed 0 +trains +2/3 +0\.250", text)
    assert re.search(r"b, seed 0 +waits", text)
