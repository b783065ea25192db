"""A training in a folder of its own, killed and gone on with."""

import os
import signal
import threading

import pytest
import torch
from filelock import FileLock
from torch import nn

from mimkit import DataError, Resumable
from mimkit.train.signals import Interrupted


class Killed(BaseException):
    """Ends a training without a word to it, as SIGKILL does."""


def fit(folder, *, die_at=None, ask_at=None, lines=None, look=None):
    """Trains a convolution in two phases of 6 and 5 steps; between them something is drawn."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    network.to(memory_format=torch.channels_last)
    say = (lambda _: None) if lines is None else lines.append
    with Resumable(folder, "net", say, every_steps=2) as training:
        for start, stop in ((0, 6), (6, 11)):
            if start == 6 and training.step <= 6:
                with torch.no_grad():
                    network[2].weight.add_(
                        torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(99))
                    )
            optimizer = torch.optim.AdamW(network.parameters(), 0.1)
            for step in training.steps(start, stop, network, optimizer):
                draws = torch.Generator().manual_seed(step)
                image = torch.randn(2, 3, 8, 8, generator=draws)
                loss = network(image.contiguous(memory_format=torch.channels_last)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if step + 1 == ask_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                if step + 1 == die_at:
                    raise Killed
        if look is not None:
            look(training)
    return network.state_dict()


def assert_same(one, other):
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("step", range(1, 12))
def test_killed_at_any_step_it_ends_with_the_same_weights(tmp_path, step):
    lines = []
    with pytest.raises(Killed):
        fit(tmp_path / "a", die_at=step)
    found = fit(tmp_path / "a", lines=lines)
    begun = (step - 1) // 2 * 2
    assert lines == ([f"net: going on at step {begun}"] if begun else [])
    assert_same(fit(tmp_path / "b"), found)


def test_killed_again_and_again_it_ends_with_the_same_weights(tmp_path):
    for step in (3, 5, 8, 11):
        with pytest.raises(Killed):
            fit(tmp_path / "a", die_at=step)
    assert_same(fit(tmp_path / "b"), fit(tmp_path / "a"))


@pytest.mark.parametrize("step", [1, 6, 7])
def test_a_signal_ends_the_step_and_loses_nothing(tmp_path, step):
    lines = []
    with pytest.raises(Interrupted, match=f"stopped by SIGTERM after step {step} of net") as caught:
        fit(tmp_path / "a", ask_at=step)
    assert caught.value.exit_code == 143
    found = fit(tmp_path / "a", lines=lines)
    assert lines == [f"net: going on at step {step}"]
    assert_same(fit(tmp_path / "b"), found)


def test_a_signal_after_the_last_step_is_heard_too(tmp_path):
    def ask(training):
        os.kill(os.getpid(), signal.SIGINT)
        assert training.step == 11

    with pytest.raises(Interrupted, match="SIGINT when net was complete") as caught:
        fit(tmp_path / "a", look=ask)
    assert caught.value.exit_code == 130
    assert not (tmp_path / "a").exists()


def test_only_an_empty_lock_is_left_of_a_training_that_is_complete(tmp_path):
    fit(tmp_path / "a")
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [(".a.lock", 0)]


def test_two_checkpoints_are_kept(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path / "a", die_at=7)
    assert sorted(path.stem for path in (tmp_path / "a").glob("*.json")) == [
        "step_00000004",
        "step_00000006",
    ]


def test_a_damaged_checkpoint_is_said_and_the_one_before_used(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path / "a", die_at=7)
    lines, newest = [], tmp_path / "a" / "step_00000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    found = fit(tmp_path / "a", lines=lines)
    assert "step_00000006.safetensors (its checksum differs)" in lines[0]
    assert "from the one before" in lines[0]
    assert lines[1:] == ["net: going on at step 4"]
    assert_same(fit(tmp_path / "b"), found)


def test_with_both_damaged_it_says_so_and_begins_again(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path / "a", die_at=7)
    for file in (tmp_path / "a").glob("*.safetensors"):
        file.unlink()
    lines = []
    found = fit(tmp_path / "a", lines=lines)
    assert len(lines) == 1
    assert "step_00000004" in lines[0]
    assert "step_00000006" in lines[0]
    assert "from the start" in lines[0]
    assert_same(fit(tmp_path / "b"), found)


def test_a_checkpoint_of_another_network_is_refused_with_the_folder_to_remove(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path / "a", die_at=3)
    other = nn.Linear(2, 2)
    with (
        pytest.raises(DataError, match=rf"does not fit.*Remove {tmp_path / 'a'}"),
        Resumable(tmp_path / "a", "net", print) as training,
    ):
        list(training.steps(0, 6, other, torch.optim.SGD(other.parameters(), 0.1)))


def test_the_seconds_of_killed_processes_count(tmp_path):
    def seconds(training):
        nonlocal counted
        counted = training.seconds

    counted = 0.0
    with pytest.raises(Killed):
        fit(tmp_path / "a", die_at=7)
    record = tmp_path / "a" / "step_00000006.json"
    record.write_text(record.read_text().replace('"seconds": ', '"seconds": 100'))
    fit(tmp_path / "a", look=seconds)
    assert 100 < counted < 1100


def test_a_second_process_waits_for_the_first(tmp_path):
    lines, lock = [], FileLock(tmp_path / ".a.lock", thread_local=False)
    lock.acquire()
    threading.Timer(0.5, lock.release).start()
    fit(tmp_path / "a", lines=lines)
    assert lines == ["net: another process is training it; waiting for that"]


def test_a_signal_ends_the_waiting(tmp_path):
    with FileLock(tmp_path / ".a.lock"):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Interrupted, match="while waiting for net"):
            fit(tmp_path / "a")
    fit(tmp_path / "a")


def test_files_half_written_are_swept(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / f".step_00000002.safetensors.{os.getpid()}.tmp").touch()
    fit(tmp_path / "a")
    assert not (tmp_path / "a").exists()
