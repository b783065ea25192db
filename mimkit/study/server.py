"""A server that forks processes which have imported everything; it imports nothing itself."""

import multiprocessing
from typing import Final

__all__ = ["START", "serve"]

START: Final = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
"""How processes start that measure; Windows has no server, so that there each imports all."""


def serve() -> None:
    """Starts it, if it does not run yet, and returns at once; it ends with this process."""
    if START == "forkserver":
        from multiprocessing import forkserver  # noqa: PLC0415 -- POSIX only

        multiprocessing.set_forkserver_preload(["mimkit.study.measuring"])
        forkserver.ensure_running()
