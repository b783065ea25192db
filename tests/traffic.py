"""Counts what one step sends, operator by operator, in several processes.

A program for torchrun: OUT RECIPE WAY PRECISION PIECES. OUT gets, of rank 0, the bytes that each
collective of torch was given, the bytes of the loopback interface that left it meanwhile, and the
bytes of weights, gradients and moments that the process holds.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from test_resume_recipes import miniature
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mimkit.folder import RunFolder
from mimkit.pipeline.assemble import open_run
from mimkit.train.distributed import join
from mimkit.train.guard import Guard
from mimkit.train.means import Means
from mimkit.train.sharding import own


class Collectives(TorchDispatchMode):
    """Adds up the bytes of the largest tensors that each collective is given."""

    def __init__(self):
        super().__init__()
        self.bytes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            tensors = [each for each in tree_leaves(args) if isinstance(each, Tensor)]
            name = func._schema.name.removeprefix("c10d::")
            self.bytes[name] += max((each.nbytes for each in tensors), default=0)
        return func(*args, **(kwargs or {}))


def loopback() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[8])
    return 0


def main(out, recipe, way, precision, pieces):
    settings = [f"train.parallel={way}", f"train.precision={precision}", "encoder.drop_path=0.0"]
    settings += [f"train.accumulate={pieces}"]
    recipe = miniature(Path(recipe), settings=settings)
    with join("cpu") as world, RunFolder(Path(out).parent / "run", writable=world.leads) as folder:
        current = open_run(recipe, folder, world, Console(quiet=True))
        loop = current.loop()
        if not loop.spread:
            loop.eager = loop.forward = world.wrap(current.pretrainer)
        guard, means = Guard(loop.pretrainer, []), Means(world)
        batches = [current.batches()[number] for number in range(2)]
        loop.advance(0, batches[0], guard, means)  # DDP settles its buckets in the first
        world.wait()
        before = loopback()
        with Collectives() as seen:
            loop.advance(1, batches[1], guard, means)
        world.wait()
        sent = loopback() - before
        held = {
            "weights": sum(own(p).nbytes for p in loop.pretrainer.parameters()),
            "gradients": sum(
                own(p.grad).nbytes for p in loop.pretrainer.parameters() if p.grad is not None
            ),
            "moments": sum(
                own(each).nbytes
                for state in loop.optimizer.state.values()
                for each in state.values()
                if each.ndim
            ),
        }
        if world.leads:
            Path(out).write_text(json.dumps({"given": seen.bytes, "sent": sent, "held": held}))
        dist.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
