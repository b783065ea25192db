"""Loader processes: how many, and how they behave when the run is interrupted."""

import os
import signal


def cores() -> int:
    """Returns how many processor cores this process may use."""
    # Not every system can tell; Python 3.13 has os.process_cpu_count for this.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def leave_signals_to_parent(worker: int) -> None:
    """Is run at the start of a loader process: the training process alone decides when to stop.

    A terminal or a scheduler signals all processes at once. A loader that dies of it would take
    the step away that the training process still wants to finish.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
