"""Runs in several processes: other numbers of them, signals, kills, two nodes.

Each ends as one that nothing has disturbed.
"""

import signal
import socket

import pytest
import torch
from processes import begin, curve, encoder, finish, run_of

from mimkit.launch.cause import ended_by
from mimkit.train import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run that nothing disturbs, by number of processes."""
    folders = {}

    def ran(processes, parallel="fsdp"):
        if (processes, parallel) not in folders:
            folder = tmp_path_factory.mktemp("undisturbed")
            finish(begin(processes, folder, parallel=parallel))
            folders[processes, parallel] = folder
        return folders[processes, parallel]

    return ran


def assert_equal(folder, other, *, but=None):
    one, two = encoder(folder), encoder(other)
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    one, two = curve(folder), curve(other)
    assert one.keys() == two.keys()
    differ = {step for step, name in one if one[step, name] != two[step, name]}
    assert differ <= {but}


def assert_close(folder, other):
    one, two = encoder(folder), encoder(other)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=1e-6, rtol=1e-5, msg=name)
    assert curve(folder) == pytest.approx(curve(other), rel=1e-4, abs=1e-6)


def newest(folder):
    return checkpoint.find(run_of(folder) / "checkpoints")[0]


def test_a_run_goes_on_with_other_numbers_of_processes(tmp_path, undisturbed):
    for processes, stop, at in ((4, 3, 4), (2, 6, 8)):
        output = finish(begin(processes, tmp_path, stop=("SIGTERM", 0, stop)), fails=True)
        assert f"stopped by SIGTERM after step {at}" in output
        assert newest(tmp_path).step == at
    output = finish(begin(4, tmp_path))
    assert "going on at step 8 of 12" in output
    assert_close(tmp_path, undisturbed(4))
    assert_close(tmp_path, undisturbed(1))


@pytest.mark.parametrize(("first", "then"), [("fsdp", "ddp"), ("ddp", "fsdp")])
def test_a_run_goes_on_the_other_way(tmp_path, undisturbed, first, then):
    finish(begin(2, tmp_path, parallel=first, stop=("SIGTERM", 0, 5)), fails=True)
    finish(begin(2, tmp_path, parallel=then))
    assert_close(tmp_path, undisturbed(2))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_killed_process_is_replaced_and_the_curve_goes_on(tmp_path, undisturbed, parallel):
    output = finish(
        begin(
            2,
            tmp_path,
            parallel=parallel,
            stop=("SIGKILL", 1, 7),
            fresh=True,
            more=("--standalone", "--max-restarts=2"),
        )
    )
    if parallel == "ddp":  # the other process keeps all, but of step 7 its own loss alone
        assert "going on at step 7 of 12" in output
        assert_equal(tmp_path, undisturbed(2, parallel), but=8)
    else:  # it has but a share
        assert "going on at step 6 of 12" in output
        assert_equal(tmp_path, undisturbed(2, parallel))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_process_stops_all_after_the_same_step(
    tmp_path, undisturbed, parallel, number
):
    stop = (number.name, 1, 4)
    output = finish(begin(2, tmp_path, parallel=parallel, stop=stop), fails=True)
    assert f"stopped by {number.name} after step 6" in output
    assert ended_by(1, output) == number  # by which a comparison starts it again
    assert newest(tmp_path).step == 6
    finish(begin(2, tmp_path, parallel=parallel))
    assert_equal(tmp_path, undisturbed(2, parallel))


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.mark.parametrize("stop", [(), ("SIGKILL", 1, 7)], ids=["undisturbed", "killed"])
def test_two_nodes_are_as_one(tmp_path, undisturbed, stop):
    where = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    where += ["--rdzv-id=tiny", "--local-addr=127.0.0.1", "--max-restarts=2"]
    nodes = [begin(1, tmp_path, stop=stop, fresh=True, more=where) for _ in range(2)]
    output = "".join(finish(node) for node in nodes)
    assert ("going on at step 6 of 12" in output) == bool(stop)
    assert_equal(tmp_path, undisturbed(2))
