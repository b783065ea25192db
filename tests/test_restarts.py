"""Processes that torchrun starts anew find each other, and none of those that are gone."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import torch.distributed as dist

from mimkit.train.restarts import fresh_part


def test_each_generation_agrees_on_a_part_of_its_own():
    wait = timedelta(seconds=60)
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=wait)

    def come(rank, size):
        store = dist.TCPStore("127.0.0.1", server.port, is_master=False, timeout=wait)
        part = fresh_part(store, rank, size)
        part.set(f"address/{rank}", "")  # what a successor must not find
        return part

    def generation(size):
        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(come, range(size), [size] * size))

    def meets(parts):
        parts[0].set("word", "said")
        return [part.check(["word"]) and part.get("word") == b"said" for part in parts]

    first = generation(3)
    assert meets(first) == [True] * 3
    server.set("here/1", "one that was killed before it was answered")
    for size in (3, 2, 4):  # names of processes that are gone lie there
        parts = generation(size)
        assert not parts[0].check(["word"])
        assert meets(parts) == [True] * size
        assert all(parts[0].check([f"address/{rank}"]) for rank in range(size))
