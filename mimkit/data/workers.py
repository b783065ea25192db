"""Loader processes: how many, and how they behave when the run is interrupted."""

import os
import signal
from typing import Final

MOST: Final = 16
"""So many processes decode more photographs (about 150 a second each) than a GPU trains on."""
SHARE: Final = "MIMKIT_CORES"
"""Environment variable: how many cores this run may use, where several share the machine."""

_ASKING: Final = ("SIGTERM", "SIGINT", "SIGUSR1")
"""The last is what Slurm is usually told to send before a job's time is over; Windows has none."""


def asking() -> list[signal.Signals]:
    """Lists the signals that ask a run to stop."""
    return [getattr(signal, name) for name in _ASKING if hasattr(signal, name)]


def cores() -> int:
    """Returns how many processor cores this run may use."""
    # Not every system can tell; Python 3.13 has os.process_cpu_count for this.
    affinity = getattr(os, "sched_getaffinity", None)
    own = len(affinity(0)) if affinity else os.cpu_count() or 1
    share = os.environ.get(SHARE, "")
    return min(own, int(share)) if share.isdecimal() and int(share) else own


def loaders() -> int:
    """Returns how many loader processes suit this training process.

    The cores of the machine are shared by its training processes, of which each needs one itself.
    """
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"):  # of this machine; of all
        if (value := os.environ.get(name, "")).isdecimal():
            return max(1, min(MOST, cores() // max(1, int(value)) - 1))
    return max(1, min(MOST, cores() - 1))


def leave_signals_to_parent(worker: int) -> None:
    """Is run at the start of a loader process: the training process alone decides when to stop.

    A terminal or a scheduler signals all processes at once. A loader that dies of it would take
    the step away that the training process still wants to finish.
    """
    for number in asking():
        signal.signal(number, signal.SIG_IGN)
