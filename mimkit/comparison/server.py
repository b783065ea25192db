"""A server that forks processes which have imported everything; it imports nothing itself."""

import multiprocessing
from multiprocessing import forkserver

__all__ = ["serve"]


def serve() -> None:
    """Starts it, if it does not run yet, and returns at once; it ends with this process."""
    multiprocessing.set_forkserver_preload(["mimkit.comparison.trial"])
    forkserver.ensure_running()
