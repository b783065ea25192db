import ctypes
import re
import sys
import types
from pathlib import Path

import pytest

from mimkit import memory


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_what_linux_says_of_this_process():
    kib = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    assert memory.peak_bytes() == pytest.approx(1024 * kib, rel=0.05)


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_each_system_counts_in_its_own_unit(platform, unit, monkeypatch):
    usage = types.SimpleNamespace(ru_maxrss=3_000_000)  # KiB by Linux's manual, bytes by macOS's
    fake = types.SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: usage)
    monkeypatch.setitem(sys.modules, "resource", fake)
    monkeypatch.setattr(sys, "platform", platform)
    assert memory.peak_bytes() == 3_000_000 * unit


def test_windows_is_asked_in_its_own_way(monkeypatch):
    assert ctypes.sizeof(memory._Counters) == 72  # PROCESS_MEMORY_COUNTERS on 64 bits
    assert memory._Counters.peak_working_set.offset == 8

    def tell(process, counters, size):
        assert (process.value, size) == (2**64 - 1, 72)  # the handle of the process itself
        counters._obj.peak_working_set = 5 * 2**30
        return 1

    kernel = types.SimpleNamespace(K32GetProcessMemoryInfo=tell)
    monkeypatch.setattr(ctypes, "windll", types.SimpleNamespace(kernel32=kernel), raising=False)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory.peak_bytes() == 5 * 2**30


def test_the_memory_of_a_machine_that_does_not_tell_is_unknown(monkeypatch):
    assert memory.machine_bytes() > 2**20
    monkeypatch.delattr(memory.os, "sysconf")
    assert memory.machine_bytes() is None
