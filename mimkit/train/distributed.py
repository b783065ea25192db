"""One process or many: what torchrun says, and the few collective operations we need."""

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mimkit.errors import ProcessLostError, RecipeError, TrainingError, in_one_line
from mimkit.train.restarts import fresh_part, has_held_store, held_store

T = TypeVar("T")
_PATIENCE: Final = timedelta(days=2)
"""The leading process may look at a new data set, or prepare a target, for hours meanwhile; where
it fails, torchrun ends the others at once."""
_SECONDS_TO_LET_GO: Final = 0.1


@dataclass(frozen=True)
class World:
    """This process among all processes of the run.

    Args:
        rank: number of this process; rank 0 writes files and talks.
        size: number of processes.
        device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """True in the one process that writes files and talks."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Averages gradients over processes; a single process gets ``module`` itself."""
        if self.size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        # Constants are equal everywhere; without this they would be sent in every step.
        kept = module.state_dict(keep_vars=True)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
            module, [name for name, _ in module.named_buffers() if name not in kept]
        )
        return DistributedDataParallel(module, device_ids=devices)

    def mean(self, values: Tensor) -> Tensor:
        """Averages a tensor over processes."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def everywhere(self, flag: Tensor) -> Tensor:
        """True where ``flag`` () bool is true in every process; nothing waits for the device."""
        held = flag.int()
        dist.all_reduce(held, op=dist.ReduceOp.MIN)
        return held.bool()

    def any(self, flag: bool) -> bool:
        """True in every process if ``flag`` is true in one."""
        if self.size == 1:
            return flag
        value = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value)

    def largest(self, value: int) -> int:
        """Gives every process the largest of their values."""
        if self.size == 1:
            return value
        held = torch.tensor(value, device=self.device)
        dist.all_reduce(held, op=dist.ReduceOp.MAX)
        return int(held)

    def share(self, make: Callable[[], T]) -> T:
        """Gives every process what ``make`` returns in the leading one, where alone it is called.

        It travels pickled, from process to process of this run.
        """
        if self.size == 1:
            return make()
        held: list[Any] = [make() if self.leads else None]
        dist.broadcast_object_list(held)
        return cast(T, held[0])

    def lead(self, do: Callable[[], object]) -> None:
        """Lets the leading process do something while the others wait; if it fails, all fail."""
        failure: Exception | None = None
        if self.leads:
            try:
                do()
            except Exception as error:  # first the others must know, who wait
                failure = error
        if self.any(failure is not None):
            raise failure or TrainingError("the leading process has failed, and says why.")

    def wait(self) -> None:
        """Waits until all processes have come here."""
        if self.size > 1:
            dist.barrier()


def torchrun(processes: int, arguments: Sequence[str]) -> list[str]:
    """Returns the command that runs mimkit in several processes of this machine.

    Args:
        processes: how many.
        arguments: of the command line, such as ``["run", "recipe.toml"]``.
    """
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *start, "-m", "mimkit", *arguments]


@contextmanager
def join(device: str | None) -> Iterator[World]:
    """Joins the processes that torchrun started, or stands alone.

    Args:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``; None takes CUDA where there is one.

    Raises: RecipeError if the device does not exist.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if name == "cuda":  # a device without a number cannot be made the current one
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(
            f"--device {name}: this device cannot be used ({error}). Known here: cpu"
            + "".join(f", cuda:{i}" for i in range(torch.cuda.device_count()))
            + "."
        ) from error
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        # Shapes hardly change in a run: the fastest convolution for each is searched once.
        torch.backends.cudnn.benchmark = True
    if size == 1:
        yield World(0, 1, chosen)
        return
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    store = fresh_part(held_store(_PATIENCE), rank, size) if has_held_store() else None
    dist.init_process_group(backend, timeout=_PATIENCE, store=store, rank=rank, world_size=size)
    try:
        yield World(rank, size, chosen)
    except (RuntimeError, OSError) as error:
        if not _tells_of_others(error):
            raise
        raise ProcessLostError(
            "another process of this run has ended, and with it all do: what it said, or what "
            "torchrun says of it below, tells why. The same command goes on from the last "
            f"checkpoint. ({in_one_line(error)})"
        ) from error
    finally:
        _leave()


def _leave() -> None:
    """Leaves the other processes, whether they are still there or not."""
    gloo = dist.get_backend() == "gloo"
    dist.destroy_process_group()
    if gloo:
        # Its threads end with what holds the group. One that lets go of a tensor later than the
        # interpreter ends aborts the process; and torch keeps the group where weights are spread.
        gc.collect()
        time.sleep(_SECONDS_TO_LET_GO)


def _tells_of_others(error: Exception) -> bool:
    """Whether an error only says that another process is no longer there."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)
