"""Processes in the queue of a real Slurm, of one machine, started for these tests."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from test_compare_kill import assert_same, compare, server, undisturbed  # noqa: F401

from mimkit.launch.base import Ended, Task, make

pytestmark = pytest.mark.slow

CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
MinJobAge=600
SchedulerParameters=sched_interval=1,requeue_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=60 State=UP
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A controller and a machine with room for two processes; yields the machine's name."""
    pytest.importorskip("submitit")
    missing = [each for each in ("slurmctld", "slurmd", "sbatch") if shutil.which(each) is None]
    if missing or os.geteuid():
        pytest.skip("needs root, and the packages slurmctld, slurmd and slurm-client")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host, conf = socket.gethostname().partition(".")[0], folder / "slurm.conf"
    ports = free_port(), free_port()
    conf.write_text(CONF.format(host=host, user="root", folder=folder, ports=ports))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        daemons = [subprocess.Popen(["slurmctld", "-D"]), subprocess.Popen(["slurmd", "-D"])]
        try:
            until(lambda: "idle" in said("sinfo", "-h", "-o", "%T"))
            yield host
        finally:
            subprocess.run(["scancel", "--state=RUNNING", "--full"], check=False)
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(30)


@pytest.fixture
def launcher(cluster, tmp_path):
    return make("slurm", tmp_path / "jobs", ["cpus_per_task=1", "time=10"])


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def said(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def until(known, seconds=60.0):
    end = time.monotonic() + seconds
    while not (found := known()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found


def python(script, log):
    return Task([sys.executable, "-c", script], log, environment={"OF_THE_TASK": "2"})


def test_a_process_runs_where_it_would_here_and_its_end_is_known(launcher, tmp_path, monkeypatch):
    monkeypatch.setenv("OF_THE_CALLER", "1")
    log = tmp_path / "logs" / "a.log"
    script = (
        "import os, sys; print(os.environ['OF_THE_CALLER'], os.environ['OF_THE_TASK']);sys.exit(3)"
    )
    job = launcher.submit(python(script, log))
    assert until(lambda: launcher.poll(job)) == Ended(3)
    assert log.read_text() == "1 2\n"


def test_a_later_caller_finds_a_process_and_can_end_it(launcher, tmp_path):
    log = tmp_path / "a.log"
    script = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143));"
        "print('ready', flush=True); time.sleep(60)"
    )
    job = launcher.submit(python(script, log))
    later = make("slurm", tmp_path / "jobs", ["cpus_per_task=1"])
    until(lambda: log.exists() and "ready" in log.read_text())
    assert later.poll(job) is None
    later.cancel(job)
    assert until(lambda: later.poll(job)).code in {143, -signal.SIGTERM, -signal.SIGKILL}


def test_what_waits_in_the_queue_can_be_cancelled(launcher, tmp_path):
    sleeping = python("import time; time.sleep(60)", tmp_path / "a.log")
    jobs = [launcher.submit(sleeping) for _ in range(3)]  # of which two have room
    for job in reversed(jobs):
        launcher.cancel(job)
    for job in jobs:
        assert until(lambda job=job: launcher.poll(job)).code < 0


def disturb(folder, doing):
    """Does something once a run has written a checkpoint; returns what it did."""
    done = []

    def once():
        while not list(folder.glob("runs/*/0/checkpoints/*.json")):
            time.sleep(0.02)
        done.append(doing())

    thread = threading.Thread(target=once, daemon=True)
    thread.start()
    return thread, done


def lose(host):
    """What Slurm does when a machine no longer answers; it comes back."""
    state = ["scontrol", "update", f"nodename={host}"]
    subprocess.run([*state, "state=down", "reason=test"], check=True)
    until(lambda: not said("squeue", "-h", "-t", "running"))
    subprocess.run([*state, "state=resume"], check=True)
    return True


def end_their_time():
    """What Slurm does shortly before a job's time is over, as submitit asks it to."""
    running = said("squeue", "-h", "-t", "running", "-o", "%A").split()
    subprocess.run(["scancel", "--batch", "--signal=USR2", *running], check=True)
    return running


@pytest.mark.parametrize("what", ["a machine is lost", "their time is over"])
def test_what_slurm_does_to_runs_changes_no_table(what, launcher, cluster, undisturbed, tmp_path):  # noqa: F811
    folder = tmp_path / "compared"
    doing = (lambda: lose(cluster)) if what == "a machine is lost" else end_their_time
    thread, done = disturb(folder, doing)
    compare(folder, launcher)
    thread.join()
    assert done[0]
    assert_same(folder, undisturbed)
    requeued = said("sh", "-c", "scontrol show jobs | grep -c 'Restarts=[1-9]'")
    assert int(requeued) > 0
