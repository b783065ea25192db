"""Processes on a Ray cluster of three machines, all of them here; one of them is lost."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from test_compare_kill import assert_same, compare, server, undisturbed  # noqa: F401

from mimkit.errors import RecipeError
from mimkit.launch.base import Ended, Task, make

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")


@pytest.fixture(scope="module")
def cluster():
    """A head without room for work, and two machines with room for one process each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def launcher(cluster, tmp_path):
    return make("ray", tmp_path, [f"address={cluster.address}"])


def ended(launcher, job, seconds=60.0):
    end = time.monotonic() + seconds
    while (found := launcher.poll(job)) is None:
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("partition=gpu", "option must be one of address, cpus, gpus, workers, but is 'partition'"),
        ("cpus=two", "cpus must be a number, such as cpus=2, but is 'two'"),
        ("gpus=-1", "gpus must be a number"),
    ],
)
def test_unknown_options_are_refused(tmp_path, option, message):
    with pytest.raises(RecipeError, match=message):
        make("ray", tmp_path, [option])


def test_without_the_package_it_is_told_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RecipeError, match=r"pip install 'mimkit\[ray\]'"):
        make("ray", tmp_path, [])


@pytest.mark.slow
def test_a_process_runs_where_it_would_here_and_its_end_is_known(launcher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OF_THE_CALLER", "1")
    script = (
        "import os, sys; here = os.environ;"
        "print(os.getcwd(), here['OF_THE_CALLER'], here['OF_THE_TASK']);"
        "sys.exit(3)"
    )
    task = Task(
        [sys.executable, "-c", script], Path("logs/a.log"), environment={"OF_THE_TASK": "2"}
    )
    assert ended(launcher, launcher.submit(task)) == Ended(3)
    assert (tmp_path / "logs/a.log").read_text() == f"{tmp_path} 1 2\n"


@pytest.mark.slow
def test_a_later_caller_finds_a_process_and_can_end_it(launcher, cluster, tmp_path):
    log = tmp_path / "a.log"
    script = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143));"
        "print('ready', flush=True); time.sleep(60)"
    )
    job = launcher.submit(Task([sys.executable, "-c", script], log))
    later = make("ray", tmp_path, [f"address={cluster.address}"])
    while not (log.exists() and "ready" in log.read_text()):
        time.sleep(0.05)
    assert later.poll(job) is None
    later.cancel(job)
    assert ended(later, job) == Ended(143)
    assert later.poll("mimkit-of-nobody") == Ended.unseen()


@pytest.mark.slow
def test_what_waits_for_room_can_be_cancelled_and_what_cannot_start_is_told(launcher, tmp_path):
    sleeping = Task([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "a.log")
    jobs = [launcher.submit(sleeping) for _ in range(3)]  # of which two have room
    for job in reversed(jobs):
        launcher.cancel(job)
    codes = {ended(launcher, job).code for job in jobs}
    assert codes <= {-signal.SIGTERM, -signal.SIGKILL}
    lost = ended(launcher, launcher.submit(Task(["/no/such/program"], tmp_path / "b.log")))
    assert lost.code == -signal.SIGKILL
    assert "Ray: " in lost.reason


def lose(cluster, node) -> None:
    """What happens to a machine's processes when its power fails."""
    raylet = node.all_processes["raylet"][0].process.pid
    doomed = [*descendants(raylet)]
    cluster.remove_node(node, allow_graceful=False)
    for pid in doomed:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def descendants(pid: int):
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == pid:
            yield int(stat.parent.name)
            yield from descendants(int(stat.parent.name))


@pytest.mark.slow
def test_a_machine_that_is_lost_changes_no_table(launcher, cluster, undisturbed, tmp_path):  # noqa: F811
    folder = tmp_path / "compared"
    lost = []

    def lose_one():
        while not list(folder.glob("runs/*/0/checkpoints/*.json")):
            time.sleep(0.02)
        lost.append(next(iter(cluster.worker_nodes)))
        lose(cluster, lost[0])

    thread = threading.Thread(target=lose_one, daemon=True)
    thread.start()
    compare(folder, launcher)
    thread.join()
    assert lost
    assert "it goes on from its last checkpoint" in (folder / "console.txt").read_text()
    assert_same(folder, undisturbed)
