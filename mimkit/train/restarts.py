"""What torchrun's restarts need of the processes that it starts anew."""

import os
import time
import uuid
from datetime import timedelta
from typing import Final

import torch.distributed as dist

_SECONDS: Final = 0.05
"""Between two looks of the leading process at who has come."""


def is_restart() -> bool:
    """Whether torchrun has started this process anew, after one of this machine's had ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def has_held_store() -> bool:
    """Whether torchrun holds the store by which processes find each other, through all restarts."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def held_store(timeout: timedelta) -> dist.Store:
    """Connects to the store that torchrun holds."""
    return dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout
    )


def fresh_part(store: dist.Store, rank: int, size: int) -> dist.Store:
    """Agrees with the other processes on a part of a store that none before them has used.

    torchrun lets its store outlive the processes, with the addresses of those that are gone, where
    their successors would look for each other for ever (pytorch/pytorch#135712). Its number of
    restarts differs from node to node, so it cannot tell which part is new. Instead each process
    leaves a name that nobody had before, and waits for the answer to it from the leading one.

    Args:
        store: that all processes see.
        rank: of this process.
        size: number of processes.
    """
    if rank:
        own = uuid.uuid4().hex
        store.set(f"here/{rank}", own)
        chosen = store.get(f"answer/{own}").decode()
        store.set(f"{chosen}/{rank}", "")
        return dist.PrefixStore(chosen, store)
    chosen = uuid.uuid4().hex
    lacking = set(range(1, size))
    while lacking:
        for other in lacking:
            if store.check([f"here/{other}"]):  # maybe of a process that is gone; then once more
                store.set(f"answer/{store.get(f'here/{other}').decode()}", chosen)
        time.sleep(_SECONDS)
        lacking = {other for other in lacking if not store.check([f"{chosen}/{other}"])}
    return dist.PrefixStore(chosen, store)
