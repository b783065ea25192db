"""Where processes run: launchers, why a process ended, what people see of the queue."""

import fcntl
import io
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from rich.console import Console

from mimkit.errors import PluginError, RecipeError
from mimkit.launch.base import Ended, Launcher, Task, make
from mimkit.launch.board import Board, Shown, makespan
from mimkit.launch.cause import ended_by, last_words
from mimkit.launch.devices import default_jobs
from mimkit.launch.local import LocalLauncher
from mimkit.launch.queue import run
from mimkit.launch.slurm import Follower, Queue, SlurmLauncher
from mimkit.launch.work import Work


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_ctrl_c_at_the_terminal_does_not_reach_the_runs(tmp_path):
    launcher = LocalLauncher()
    command = [sys.executable, "-c", "import os; print(os.getsid(0) == os.getpid())"]
    job = launcher.submit(Task(command, tmp_path / "logs/x.log"))
    until(lambda: launcher.poll(job) is not None)
    assert (tmp_path / "logs/x.log").read_text() == "True\n"


def test_the_time_left_counts_places_that_become_free():
    assert makespan([3.0, 1.0], [2.0, 4.0], 2) == 7.0
    assert makespan([], [2.0, 2.0, 2.0], 2) == 4.0
    assert makespan([0.5], [], 4) == 0.5


TORCHRUN = """\
[rank1]: Traceback (most recent call last):
[rank1]:   File "x.py", line 1, in <module>
[rank1]:     f()
[rank1]: ValueError: of a rank
[rank1]: and more
E1124 19:00:00.000 1 torch/x.py:984] failed (exitcode: 1) local_rank: 1 (pid: 7) of binary: python
Traceback (most recent call last):
  File "run.py", line 2, in <module>
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
====
Root Cause (first observed failure):
[0]:
  exitcode  : {code} (pid: 7)
"""


def test_the_cause_is_found_in_what_torchrun_says():
    assert last_words(TORCHRUN.format(code=1)).startswith("ValueError: of a rank\nand more")
    assert ended_by(1, TORCHRUN.format(code=1)) is None
    assert ended_by(1, TORCHRUN.format(code=-9)) is signal.SIGKILL
    stopped = "SignalException: Process 12 got signal: 15\n"
    assert ended_by(1, stopped) is signal.SIGTERM


def test_the_cause_is_found_in_exit_codes_and_last_lines():
    assert ended_by(-9, "") is signal.SIGKILL
    assert ended_by(143, "") is signal.SIGTERM
    assert ended_by(1, "") is None
    assert ended_by(2, "") is None
    assert last_words("one\ntwo\n\n") == "two"
    assert last_words("") == "it said nothing"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("local", ["partition=gpu"], "needs --launcher slurm"),
        ("slurm", ["partition"], "must be KEY=VALUE"),
    ],
)
def test_wrong_options_of_a_launcher_are_refused(tmp_path, name, options, message):
    with pytest.raises(RecipeError, match=message):
        make(name, tmp_path, options)


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [("cpu", 0, 8), (None, 0, 8), (None, 3, 3), ("cuda", 3, 3), ("cuda:1", 3, 1)],
)
def test_as_many_runs_at_once_as_there_are_gpus_else_cores(monkeypatch, device, gpus, expected):
    monkeypatch.setattr("mimkit.launch.devices.cores", lambda: 64)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert default_jobs(device) == expected


def test_the_lock_of_a_log_lasts_as_long_as_its_process(tmp_path):
    log = tmp_path / "x.log"
    launcher = LocalLauncher()
    job = launcher.submit(Task([sys.executable, "-c", "import time; time.sleep(60)"], log))
    assert LocalLauncher().poll(job) is None
    launcher.cancel(job)
    until(lambda: launcher.poll(job) is not None)
    assert launcher.poll(job) == Ended(-signal.SIGTERM)
    assert LocalLauncher().poll(job) == Ended.unseen()
    with log.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_job_whose_time_is_over_goes_back_into_the_queue_with_a_checkpoint(tmp_path):
    pytest.importorskip("submitit")
    # What submitit does then, without its minutes: it signals, and the task answers.
    log = tmp_path / "x.log"
    script = (
        "import signal, sys, time\n"
        "def stop(*_): print('checkpoint', flush=True); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); print('ready', flush=True); time.sleep(60)"
    )
    task = Follower(Task([sys.executable, "-c", script], log))
    before = {n: signal.getsignal(n) for n in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)}
    found = []
    signal.signal(signal.SIGUSR2, lambda *_: found.append(task.checkpoint()))
    waker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, pathlib, signal, sys, time\n"
            f"log = pathlib.Path({str(log)!r})\n"
            "while not (log.exists() and 'ready' in log.read_text()): time.sleep(0.01)\n"
            f"os.kill({os.getpid()}, signal.SIGUSR2)",
        ]
    )
    try:
        assert task() == 143
    finally:
        waker.wait(timeout=20)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert log.read_text() == "ready\ncheckpoint\n"
    assert found[0].function.task == task.task
    assert found[0].function.process_id is None


def test_unknown_options_of_slurm_are_refused(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(RecipeError, match=r"--launcher slurm: .*partitoin"):
        SlurmLauncher(tmp_path, {"partitoin": "gpu"}, "local")


def test_without_submitit_the_launcher_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RecipeError, match=r"pip install 'mimkit\[slurm\]'"):
        SlurmLauncher(tmp_path, {})


def test_rows_for_which_the_terminal_has_no_room_are_counted():
    file = io.StringIO()
    console = Console(file=file, width=60, height=10, force_terminal=True, color_system=None)
    with Board(9, console) as board:
        runs = [Shown(f"a, seed {n}", "waits") for n in range(9)]
        board.show(runs, finished=0, failed=0, left=None)
    assert "a, seed 4" in file.getvalue()
    assert "a, seed 5" not in file.getvalue()
    assert "and 4 more" in file.getvalue()


class Bench(Launcher):
    """What a package would add: each job a process, known to others by the number of that."""

    def __init__(self, folder, options):
        self.jobs = {}

    def submit(self, task):
        task.log.parent.mkdir(parents=True, exist_ok=True)
        with task.log.open("ab") as file:
            process = subprocess.Popen(task.command, stdout=file, stderr=file)
        self.jobs[str(process.pid)] = process
        return str(process.pid)

    def poll(self, job):
        if job not in self.jobs:
            return Ended.unseen()
        code = self.jobs[job].poll()
        return None if code is None else Ended(code)

    def cancel(self, job):
        self.jobs[job].terminate()


class Count(Work):
    """Counts the processes that began it; the second one finishes it."""

    def __init__(self, folder, name):
        self.file = folder / name
        script = f"import os; open({str(self.file)!r}, 'a').write('x'); "
        script += f"os.path.getsize({str(self.file)!r}) < 2 and os.kill(os.getpid(), 9)"
        task = Task([sys.executable, "-S", "-c", script], folder / "logs" / f"{name}.log")
        super().__init__(name, task, folder / "failed" / name, seconds=0.0, fresh=True)

    def is_finished(self):
        return self.file.is_file() and len(self.file.read_text()) == 2

    def is_claimed(self):
        return False

    def shown(self, log_start, left):
        return Shown(self.name, "counts")


def test_a_package_adds_a_launcher_which_the_command_line_finds_by_name(tmp_path, register):
    register("launchers", "bench", Bench)
    launcher = make("bench", tmp_path, [])
    text = io.StringIO()
    console = Console(file=text, width=120)
    works = [Count(tmp_path, "one"), Count(tmp_path, "two")]
    run(works, [], tmp_path, jobs=2, launcher=launcher, device=None, console=console)
    assert all(work.is_finished() for work in works)
    assert text.getvalue().count("killed by SIGKILL; it goes on from its last checkpoint") == 2
    assert "finished (2 of 2" in text.getvalue()
    assert not list((tmp_path / "logs").glob("*.job"))


def test_what_is_no_launcher_is_refused(tmp_path, register):
    register("launchers", "bench", Count)
    with pytest.raises(PluginError, match=r"must be a subclass of mimkit\.Launcher"):
        make("bench", tmp_path, [])
    with pytest.raises(PluginError, match="launcher 'bank' is offered by no installed"):
        make("bank", tmp_path, [])


def test_a_job_of_another_launcher_is_not_taken_for_one_of_slurm(tmp_path):
    pytest.importorskip("submitit")
    assert SlurmLauncher(tmp_path, {}, "local").poll(str(tmp_path / "a.log")) == Ended.unseen()


@pytest.mark.parametrize(
    ("answers", "ended"),
    [
        (["7 RUNNING", "7 PENDING"], None),
        (["7 CANCELLED", "7 CANCELLED"], "CANCELLED"),
        (["8 RUNNING", "8 RUNNING"], "gone"),
        (["7 NODE_FAIL", "7 PENDING"], None),  # queued again
        (["7 COMPLETED"], None),  # its file may be under way
        (["7 CANCELLED", "exit 1", "7 CANCELLED"], None),
    ],
)
def test_the_end_of_a_job_without_result_is_told_by_the_queue(
    answers, ended, tmp_path, monkeypatch
):
    program = tmp_path / "squeue"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("mimkit.launch.slurm._ASK_EVERY_SECONDS", 0.0)
    queue, since = Queue(), time.monotonic()
    for answer in answers:
        program.write_text(f"#!/bin/sh\n{answer if 'exit' in answer else f'echo {answer}'}\n")
        program.chmod(0o755)
        found = queue.ended("7", since)
    assert (found and found.reason) == (ended and f"job 7 of the cluster ended as {ended}")
    assert queue.ended("7", time.monotonic()) is None  # it may have been queued since
