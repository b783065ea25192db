"""kill -9 of a comparison and of its runs, again and again: the end is as if nothing had been."""

import fcntl
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from rich.console import Console

from mimkit import cli
from mimkit.data.opening import open_source
from mimkit.launch.local import LocalLauncher
from mimkit.recipe.schema import load
from mimkit.report.page import write_report
from mimkit.report.tables import markdown, write_csv
from mimkit.study.execute import execute
from mimkit.study.folder import claim, is_finished, run_folder
from mimkit.study.gather import gather
from mimkit.study.records import Budget, Method, Plan, Trial

KILLS = 20

RECIPE = """\
name = "{name}"
[data]
name = "shapes"
image_size = 16
patch_size = 4
num_images = 48
num_test_images = 16
[augment]
crop = "pad"
[masker]
part = "random"
mask_ratio = 0.5
mode = "replace"
[encoder]
part = "vit"
embed_dim = 16
depth = 2
num_heads = 2
mask_token = true
drop_path = 0.2
[targets.pixels]
part = "pixels"
[head]
part = "linear"
[losses.pixels]
part = "{loss}"
[train]
total_steps = 200
batch_size = 8
optimizer = "adamw"
lr = 1e-3
log_every_steps = 1
checkpoint_every_steps = 4
[[evaluate]]
part = "heldout"
every_steps = 50
[[evaluate]]
part = "knn"
"""


def make_plan(folder: Path) -> Plan:
    methods = {"one": "mse", "two": "l1"}
    (folder / "recipes").mkdir(parents=True, exist_ok=True)
    for name, loss in methods.items():
        (folder / "recipes" / f"{name}.toml").write_text(RECIPE.format(name=name, loss=loss))
    data = load(str(folder / "recipes" / "one.toml")).data
    images = open_source(data, "train").fingerprint
    trial = Trial(0.1, 1e6, 2**20, 0.0, {}, {}, 0.1, 0.1, images, 48, "CPU")
    described = tuple(Method(name, name, name, 8, 200, (), trial, 1.0) for name in methods)
    return Plan("mimkit compare", "shapes", Budget("steps", 200), (0, 1), described, "0.1.0")


class Fork:
    """A process made by fork."""

    def __init__(self, work) -> None:
        sys.stdout.flush()
        self.pid = os.fork()
        self.code: int | None = None
        if self.pid == 0:
            code = 1
            try:
                work()
                code = 0
            except SystemExit as error:
                code = error.code or 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)


class Forking(LocalLauncher):
    """Starts runs like `LocalLauncher`, but by fork, which saves loading torch each time."""

    def submit(self, task):
        task.log.parent.mkdir(parents=True, exist_ok=True)
        with task.log.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

            def run():
                os.setsid()
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                os.environ.update(task.environment)
                sys.argv = ["mimkit", *task.command[3:]]
                cli.main()

            self.processes[str(task.log)] = Fork(run)
            return str(task.log)


def compare(folder: Path, launcher) -> None:
    """What a user starts, and what is killed."""
    with claim(folder), (folder / "console.txt").open("a") as file:
        console = Console(file=file, width=200)
        plan = make_plan(folder)
        execute(plan, folder, jobs=2, launcher=launcher, device="cpu", console=console)
        comparison = gather(plan, folder)
        write_csv(comparison, folder / "results.csv")
        (folder / "results.md").write_text(markdown(comparison))
        write_report(comparison)


def serve() -> None:
    """Forks a comparison for each folder that is read, one at a time, and says how it ended."""
    for module in ("mimkit.pipeline.run", "mimkit.evaluate.knn"):
        importlib.import_module(module)  # here, so that no fork has to
    for line in sys.stdin:
        folder = Path(line.strip())
        process = Fork(lambda folder=folder: compare(folder, Forking()))
        sys.stdout.write(f"{process.pid}\n")
        sys.stdout.flush()
        _, status = os.waitpid(process.pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


class Server:
    """The process of `serve`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, folder: Path) -> int:
        """Starts a comparison; returns its process id."""
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """Returns the exit code of that comparison."""
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.process.stdin.close()
    server.process.wait(timeout=60)
    server.process.stdout.close()


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    server.start(folder)
    assert server.wait() == 0
    return folder


def runs_of(folder: Path) -> list[int]:
    """Process ids of the runs that are at work in a comparison's folder."""
    alive = []
    for lock in folder.glob("runs/*/*/.lock"):
        with lock.open("r+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                pid = file.read()
                alive += [int(pid)] if pid else []
    return alive


def values(folder: Path, cell) -> tuple:
    """All that a run has found, but for times."""
    run = run_folder(cell, folder)
    results = json.loads((run / "results.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
    return results, rows, (run / "encoder.safetensors").read_bytes()


def assert_same(folder: Path, undisturbed: Path) -> None:
    assert not list((folder / "failed").iterdir())
    for cell in make_plan(folder).cells:
        assert is_finished(cell, folder)
        assert values(folder, cell) == values(undisturbed, cell), cell
    for name in ("results.csv", "results.md"):
        texts = [(one / name).read_text().replace(str(one), "") for one in (folder, undisturbed)]
        assert texts[0] == texts[1], name
    tables = tables_of(folder)
    assert len(tables) >= 3
    assert tables == tables_of(undisturbed)


def tables_of(folder: Path) -> dict[str, str]:
    """The report's tables by their names, but for those that hold times and memory."""
    page = (folder / "report.html").read_text().replace(str(folder), "")
    found = re.findall(r'<table[^>]*aria-label="([^"]*)"[^>]*>(.*?)</table>', page, re.DOTALL)
    return {
        name: table
        for name, table in found
        if name not in ("what each method was given and took", "cost of every run")
    }


@pytest.mark.slow
def test_twenty_kills_of_parent_and_runs_change_nothing(server, undisturbed, tmp_path):
    kills = {"parent": 0, "run": 0}
    folders = []
    while sum(kills.values()) < KILLS:  # a comparison may be finished before all kills are spent
        folder = tmp_path / str(len(folders))
        folders.append(folder)
        code = None
        while code != 0:
            parent, code = server.start(folder), None
            while code is None:
                time.sleep(random.uniform(0.0, 1.5))
                runs = runs_of(folder) if folder.exists() else []
                if sum(kills.values()) >= KILLS:
                    code = server.wait()
                elif runs and random.random() < 0.5:
                    kills["run"] += kill(random.choice(runs))
                else:
                    kill(parent)
                    code = server.wait()
                    kills["parent"] += code == -signal.SIGKILL
            # What was killed thrice has failed; the same command tries it again.
            if code == 0 and not all(is_finished(c, folder) for c in make_plan(folder).cells):
                code = None
    assert min(kills.values()) > 0, kills
    for folder in folders:
        assert_same(folder, undisturbed)


@pytest.mark.slow
def test_the_same_with_programs_that_are_started_anew(undisturbed, tmp_path):
    folder = tmp_path / "killed"
    command = [sys.executable, __file__, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def checkpoints() -> int:
        return len(list(folder.glob("runs/*/0/checkpoints/*.json")))

    parent = subprocess.Popen(command, env=environment)
    while not checkpoints():
        time.sleep(0.01)
    parent.kill()
    assert parent.wait() == -signal.SIGKILL
    kill(random.choice(runs_of(folder)))  # an orphan
    parent = subprocess.Popen(command, env=environment)
    while not runs_of(folder) and parent.poll() is None:
        time.sleep(0.01)
    kill(random.choice(runs_of(folder)))
    assert parent.wait(timeout=240) == 0
    assert_same(folder, undisturbed)


def kill(pid: int) -> bool:
    """Returns whether there was still something to kill."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    if len(sys.argv) > 1:
        compare(Path(sys.argv[1]), LocalLauncher())
    else:
        serve()
