"""One process at a time, on every system."""

import subprocess
import sys
import types

import pytest

from mimkit import locks

HOLD = (
    "import sys, time; from pathlib import Path; from mimkit import locks\n"
    "file = locks.take(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def other(tmp_path):
    """Another process that holds ``tmp_path / "lock"``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_lock_lasts_as_long_as_its_process(other, tmp_path):
    path = tmp_path / "lock"
    assert locks.take(path) is None
    assert locks.is_taken(path)
    assert locks.owner(path) == str(other.pid)
    other.kill()
    other.wait()
    assert not locks.is_taken(path)
    with locks.take(path) as file:
        assert not file.closed


def test_what_is_not_there_is_not_taken(tmp_path):
    assert not locks.is_taken(tmp_path / "lock")
    assert not (tmp_path / "lock").exists()


def test_a_shared_lock_lasts_as_long_as_any_that_inherited_it(tmp_path):
    path = tmp_path / "log"
    with path.open("ab") as file:
        assert locks.share(file)
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=file
        )
    with path.open("rb") as file:
        assert not locks.share(file)
    child.communicate(b"\n")
    with path.open("rb") as file:
        assert locks.share(file)


@pytest.fixture
def windows(monkeypatch):
    """What Windows offers: no fcntl, and locks of bytes, by file and place."""
    held = set()

    def locking(number, kind, count):
        place = (locks.os.fstat(number).st_ino, locks.os.lseek(number, 0, 1), count)
        if place in held:
            raise PermissionError(13, "Permission denied")
        held.add(place)

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    return held


def test_on_windows_a_byte_is_locked_that_nobody_reads(windows, tmp_path):
    path = tmp_path / "lock"
    with locks.take(path):
        assert locks.take(path) is None
        assert locks.is_taken(path)
        assert locks.owner(path) == str(locks.os.getpid())
    ((_, place, count),) = windows
    assert (place > 100, count) == (True, 1)
    assert path.stat().st_size < 100


def test_on_windows_nothing_is_shared(windows, tmp_path):
    with (tmp_path / "log").open("ab") as file:
        assert locks.share(file)
