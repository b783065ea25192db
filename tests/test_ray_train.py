"""Runs of several processes on a Ray cluster, which go on with fewer when a machine is lost."""

import csv
import importlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file
from test_compare_kill import RECIPE
from test_launch import until
from test_ray import ended, lose

from mimkit.data.opening import open_source
from mimkit.errors import RecipeError
from mimkit.launch.base import Ended, Needs, Task, make
from mimkit.launch.local import LocalLauncher
from mimkit.recipe.schema import load
from mimkit.report.tables import write_csv
from mimkit.study.execute import execute
from mimkit.study.folder import claim, log_file, run_folder
from mimkit.study.gather import gather
from mimkit.study.records import Budget, Method, Plan, Trial

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")
pytest.importorskip("ray.train.torch")
taking_part = importlib.import_module("mimkit.launch.ray_train").taking_part

pytestmark = pytest.mark.timeout(1800)

WAIT = 600
"""Seconds: Ray starts a process for each worker, and may share one core with other tests."""


@pytest.mark.parametrize("said", ["0", "4-2", "0-2", "2-", "-2", "many", "1.5", "1-2-3"])
def test_numbers_of_workers_that_cannot_be_are_refused(tmp_path, said):
    message = f"workers=4 or workers=1-4, but is '{said}'"
    with pytest.raises(RecipeError, match=message):
        make("ray", tmp_path, [f"workers={said}"])


def test_a_worker_has_one_gpu_or_none(tmp_path):
    for said in ("2", "0.5"):
        message = f"gpus must be 0 or 1 beside workers, .* but is '{said}'"
        with pytest.raises(RecipeError, match=message):
            make("ray", tmp_path, ["workers=2", f"gpus={said}"])


@given(workers=st.integers(1, 64), shares=st.integers(1, 4096))
def test_as_many_take_part_as_share_the_work_evenly(workers, shares):
    size = taking_part(workers, shares)
    assert shares % size == 0
    assert [n for n in range(size + 1, workers + 1) if shares % n == 0] == []


@pytest.fixture(scope="module")
def cluster():
    """A head without room for work, and two machines with room for one worker each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def launcher(cluster, tmp_path):
    def made(workers):
        return make("ray", tmp_path / "ray", [f"address={cluster.address}", f"workers={workers}"])

    return made


def script(tmp_path, code, shares=2):
    """A task of several processes, each of which does this."""
    start = (
        "import os, sys, time, signal; rank, size = os.environ['RANK'], os.environ['WORLD_SIZE']\n"
    )
    return Task([sys.executable, "-c", start + code], tmp_path / "a.log", Needs(shares=shares))


@pytest.mark.slow
def test_each_process_knows_its_place_and_the_first_writes_the_log(launcher, tmp_path):
    task = script(tmp_path, "print(rank, size, os.getcwd())")
    two = launcher(2)
    assert ended(two, two.submit(task), WAIT) == Ended(0)
    assert task.log.read_text() == f"2 of 2 workers begin\n0 2 {Path.cwd()}\n"
    assert (tmp_path / "a.1.log").read_text() == f"1 2 {Path.cwd()}\n"


@pytest.mark.slow
def test_a_worker_without_a_share_of_the_work_stands_aside(launcher, tmp_path):
    task = script(tmp_path, "print(rank, size)", shares=5)
    two = launcher("1-2")
    assert ended(two, two.submit(task), WAIT) == Ended(0)
    assert task.log.read_text() == "1 of 2 workers begin\n0 1\n"
    assert not (tmp_path / "a.1.log").exists()


@pytest.mark.slow
def test_what_a_process_says_of_itself_ends_the_run(launcher, tmp_path):
    task = script(
        tmp_path, "sys.exit('the recipe does not hold') if rank == '1' else time.sleep(900)"
    )
    two = launcher(2)
    end = ended(two, two.submit(task), WAIT)
    assert end.code == 1
    assert "process 1:\nthe recipe does not hold" in end.reason


@pytest.mark.slow
def test_a_process_that_is_killed_is_started_again_and_one_ends_with_its_worker(launcher, tmp_path):
    code = f"""
marker = {str(tmp_path)!r} + '/' + rank
if os.path.exists(marker):
    first = int(open(marker).read())
    print('gone' if not os.path.exists(f'/proc/{{first}}') else 'there')
else:
    open(marker, 'w').write(str(os.getpid()))
    if rank == '1':
        os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(900)
"""
    task = script(tmp_path, code)
    two = launcher(2)
    assert ended(two, two.submit(task), WAIT) == Ended(0)
    assert task.log.read_text() == "2 of 2 workers begin\n" * 2 + "gone\n"
    assert (tmp_path / "a.1.log").read_text() == "gone\n"


@pytest.mark.slow
def test_processes_end_with_what_looks_after_them(launcher, tmp_path):
    task = script(
        tmp_path,
        f"open({str(tmp_path)!r} + '/' + rank, 'w').write(str(os.getpid()))\ntime.sleep(900)",
    )
    two = launcher(2)
    job = two.submit(task)
    files = [tmp_path / "0", tmp_path / "1"]
    until(lambda: all(file.exists() and file.read_text() for file in files), WAIT)
    ray.kill(two.actors[job])
    assert ended(two, job, WAIT).code == -signal.SIGKILL
    until(lambda: not any(Path("/proc", file.read_text()).exists() for file in files), WAIT)


@pytest.mark.slow
def test_each_process_has_a_gpu_of_its_own_where_there_are_some(launcher, cluster, tmp_path):
    node = cluster.add_node(num_cpus=2, num_gpus=2)
    task = script(tmp_path, "print(os.environ['LOCAL_RANK'], os.environ['CUDA_VISIBLE_DEVICES'])")
    two = launcher(2)
    try:
        assert ended(two, two.submit(task), WAIT) == Ended(0)
    finally:
        cluster.remove_node(node)
    assert task.log.read_text().endswith("\n0 0,1\n")
    assert (tmp_path / "a.1.log").read_text() == "1 0,1\n"


@pytest.mark.slow
def test_what_waits_for_room_can_be_cancelled(launcher, tmp_path):
    three = launcher(3)
    job = three.submit(script(tmp_path, "print(rank)"))
    ray.get(three.actors[job].__ray_ready__.remote(), timeout=WAIT)
    assert three.poll(job) is None
    three.cancel(job)
    assert ended(three, job, WAIT) == Ended(-signal.SIGTERM)
    assert not (tmp_path / "a.log").exists()


def make_plan(folder, steps):
    """A comparison of one run, in which nothing depends on the number of processes but rounding.

    Of that AdamW would make much where a gradient is nothing else: at the bias of keys.
    """
    recipe = RECIPE.format(name="one", loss="mse").replace("drop_path = 0.2", "drop_path = 0.0")
    recipe = recipe.replace("adamw", "sgd").replace("lr = 1e-3", "lr = 0.1")
    (folder / "recipes").mkdir(parents=True, exist_ok=True)
    path = folder / "recipes" / "one.toml"
    path.write_text(recipe.replace("total_steps = 200", f"total_steps = {steps}"))
    images = open_source(load(str(path)).data, "train").fingerprint
    trial = Trial(0.1, 1e6, 2**20, 0.0, {}, {}, 0.1, 0.1, images, 48, "CPU")
    method = Method("one", "one", "one", 8, steps, (), trial, 1.0)
    return Plan("mimkit compare", "shapes", Budget("steps", steps), (0,), (method,), "0.1.0")


def compare(folder, launcher, steps):
    with claim(folder), (folder / "console.txt").open("a") as file:
        plan = make_plan(folder, steps)
        console = Console(file=file, width=200)
        execute(plan, folder, jobs=1, launcher=launcher, device="cpu", console=console)
        write_csv(gather(plan, folder), folder / "results.csv")


def table(folder):
    """What the table of results says, by row and column: words, and numbers."""
    words, numbers = {}, {}
    with (folder / "results.csv").open() as file:
        for row, columns in enumerate(csv.DictReader(file)):
            for name, value in columns.items():
                try:
                    numbers[row, name] = float(value)
                except ValueError:
                    words[row, name] = value
    return words, numbers


def assert_close(folder, other, steps):
    one, two = (
        load_file(run_folder(make_plan(each, steps).cells[0], each) / "encoder.safetensors")
        for each in (folder, other)
    )
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=1e-5, rtol=1e-4, msg=name)
    words, numbers = table(folder)
    assert len(numbers) >= 3
    assert (words, numbers) == (table(other)[0], pytest.approx(table(other)[1], rel=1e-4))


@pytest.mark.slow
def test_a_run_of_two_workers_gives_the_table_of_one_process(launcher, tmp_path):
    compare(tmp_path / "here", LocalLauncher(), 24)
    compare(tmp_path / "there", launcher(2), 24)
    assert_close(tmp_path / "there", tmp_path / "here", 24)


@pytest.mark.slow
def test_a_run_is_found_again_and_stops_with_a_checkpoint(launcher, cluster, tmp_path):
    plan = make_plan(tmp_path, 100_000)
    command = [sys.executable, "-m", "mimkit", "run", str(tmp_path / "recipes/one.toml")]
    command += ["--out", str(tmp_path / "runs"), "--device", "cpu"]
    log = log_file(plan.cells[0], tmp_path)
    job = launcher(2).submit(Task(command, log, Needs(shares=8)))
    checkpoints = tmp_path / "runs/one/0/checkpoints"
    later = launcher(2)
    while not list(checkpoints.glob("*.json")):
        assert later.poll(job) is None
        time.sleep(0.2)
    later.cancel(job)
    assert ended(later, job, WAIT) == Ended(128 + signal.SIGTERM)
    assert "stopped by SIGTERM after step" in log.read_text()


@pytest.mark.slow
def test_a_run_goes_on_with_more_workers_when_a_machine_joins(launcher, cluster, tmp_path):
    cluster.remove_node(next(iter(cluster.worker_nodes)))
    task = script(tmp_path, "print(rank, size, flush=True); time.sleep(900 if size == '1' else 0)")
    elastic = launcher("1-2")
    try:
        job = elastic.submit(task)
        until(lambda: task.log.is_file() and "0 1\n" in task.log.read_text(), WAIT)
    finally:
        cluster.add_node(num_cpus=1)
    assert ended(elastic, job, WAIT) == Ended(0)
    assert task.log.read_text() == "1 of 1 workers begin\n0 1\n2 of 2 workers begin\n0 2\n"


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_workers_when_a_machine_is_lost(launcher, cluster, tmp_path):
    compare(tmp_path / "here", LocalLauncher(), 600)
    folder = tmp_path / "there"
    elastic = launcher("1-2")
    submit, jobs = elastic.submit, []

    def losing(task):
        jobs.append(submit(task))
        while not list(folder.glob("runs/one/0/checkpoints/*.json")):
            assert elastic.poll(jobs[0]) is None
            time.sleep(0.05)
        lose(cluster, next(iter(cluster.worker_nodes)))
        return jobs[-1]

    elastic.submit = losing
    compare(folder, elastic, 600)
    assert len(jobs) == 1
    assert "going on at step" in (folder / "logs/one-0.log").read_text()
    assert_close(folder, tmp_path / "here", 600)
