"""Memory of this process and of this machine, which every system tells in another way."""

import ctypes
import os
import sys


class _Counters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of the Windows API."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak_working_set", ctypes.c_size_t),
        ("working_set", ctypes.c_size_t),
        ("quotas_and_pagefile", ctypes.c_size_t * 6),
    )


def peak_bytes() -> int:
    """Returns the most memory that this process ever had, in bytes."""
    try:
        import resource  # noqa: PLC0415 -- POSIX only
    except ImportError:
        return _peak_on_windows()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # elsewhere in KiB


def machine_bytes() -> int | None:
    """Returns the memory of this machine in bytes, None where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _peak_on_windows() -> int:
    counters = _Counters(size=ctypes.sizeof(_Counters))
    this_process = ctypes.c_void_p(-1)
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    kernel.K32GetProcessMemoryInfo(this_process, ctypes.byref(counters), counters.size)
    return int(counters.peak_working_set)
