"""One run in several processes of a Ray cluster, by Ray Train: as many as there is room for."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Literal

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer

from mimkit.errors import ProcessLostError
from mimkit.launch.base import Ended, Task
from mimkit.launch.cause import tail

Word = Literal["go", "stop", "over"]

_RESTARTS: Final = 9
"""How often one job starts its processes again, after a machine or one of them was lost; then it is
as if a signal had ended it, and who called starts another, which goes on."""
_SECONDS_FOR_ROOM: Final = 20
"""After which Ray Train counts anew what room there is: it may have counted a machine just lost."""
_ASK_EVERY_SECONDS: Final = 1.0
_SILENT_SECONDS: Final = 30.0
"""After which no process of a run is taken to be at work."""


@dataclass
class _Meeting(TorchConfig):
    """How workers of Ray Train meet: over the CPU, for it is their processes that compute.

    With `TorchConfig` alone each would hold some memory of a GPU of its own.
    """

    @property
    def train_func_context(self) -> type[AbstractContextManager[None]]:
        return nullcontext


class Group:
    """What lives on the cluster for a run of several processes: it starts them, and knows its end.

    Each process belongs to a worker of Ray Train, which starts all of them again, on the machines
    that there are, when a worker is lost. What a process says of itself, such as that its recipe
    does not hold, ends the run.

    Args:
        task: the command of one process.
        folder: in which it is started.
        workers: least and most.
        resources: of each worker, by Ray's names.
        files: folder for those of Ray Train, seen by all machines.
    """

    def __init__(
        self,
        task: Task,
        folder: str,
        workers: tuple[int, int],
        resources: Mapping[str, float],
        files: str,
    ) -> None:
        self.word: Word = "go"
        self.heard = -float("inf")
        self.ended: Ended | None = None
        self.over = threading.Event()
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_SECONDS_FOR_ROOM))
        least, most = workers
        number: Any = most if least == most else workers  # Ray's types know of no pair
        self.trainer = TorchTrainer(
            _work,
            train_loop_config={
                "group": ray.get_runtime_context().current_actor,
                "task": task,
                "folder": folder,
            },
            torch_config=_Meeting(backend="gloo"),
            scaling_config=ScalingConfig(
                num_workers=number,
                use_gpu=resources.get("GPU", 0) > 0,
                resources_per_worker=dict(resources),
            ),
            run_config=RunConfig(
                name=task.log.stem,
                storage_path=files,
                failure_config=FailureConfig(max_failures=_RESTARTS),
            ),
        )
        threading.Thread(target=self._train, daemon=True).start()

    def _train(self) -> None:
        end = Ended(0)
        try:
            self.trainer.fit()
        except Exception as error:  # whatever became of it, who asks must learn that it is over
            end = Ended(-signal.SIGKILL, f"Ray Train: {str(error).strip().splitlines()[-1]}")
        if self.ended is None:
            self.ended = Ended(-signal.SIGTERM) if self.word == "stop" else end
        self.over.set()

    def wait(self) -> Ended:
        """Returns how the run ended, once it has."""
        while not self.over.wait(_ASK_EVERY_SECONDS):
            silent = time.monotonic() - self.heard > _SILENT_SECONDS
            if self.word == "stop" and silent:  # it waits for room, and need not any longer
                return Ended(-signal.SIGTERM)
        assert self.ended is not None
        return self.ended

    def stop(self) -> None:
        """Asks the processes to write a checkpoint and leave."""
        if self.word == "go":
            self.word = "stop"

    def ask(self) -> Word:
        """Tells a worker whether its process is to go on."""
        self.heard = time.monotonic()
        return self.word

    def tell(self, end: Ended) -> None:
        """Is told how a process ended by its own doing; the first one to end decides."""
        self.ended = self.ended or end
        if self.word == "go":  # those that were asked to stop may still write a checkpoint
            self.word = "over"


def _work(config: Mapping[str, Any]) -> None:
    """What a worker of Ray Train does: looks after one process of the run, to its end."""
    group, task = config["group"], config["task"]
    context = get_context()
    rank, size = context.get_world_rank(), taking_part(context.get_world_size(), task.needs.shares)
    if rank >= size or ray.get(group.ask.remote()) != "go":
        return
    log = task.log if rank == 0 else task.log.with_suffix(f".{rank}.log")
    start = log.stat().st_size if log.is_file() else 0
    with log.open("ab") as file:
        if rank == 0:
            file.write(f"{size} of {context.get_world_size()} workers begin\n".encode())
            file.flush()
        process = subprocess.Popen(
            task.command,
            cwd=config["folder"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **task.environment, **_place(size)},
        )
    try:
        code, word = _follow(process, group)
    finally:
        process.kill()
    if code == 0 or word == "over":
        return
    if word == "stop":
        ray.get(group.tell.remote(Ended(code)))
        return
    if code < 0 or code > 128 or code == ProcessLostError.exit_code:
        raise RuntimeError(f"process {rank} ended with {code}")  # Ray Train starts all again
    said = f"process {rank}:\n{tail(log, start)}" if rank else ""
    ray.get(group.tell.remote(Ended(code, said)))


def _follow(process: subprocess.Popen[bytes], group: Any) -> tuple[int, Word]:
    """Waits for a process and asks the group meanwhile; returns its exit code and the last word."""
    asked = False
    while True:
        try:
            code = process.wait(timeout=_ASK_EVERY_SECONDS)
            return code, ray.get(group.ask.remote())
        except subprocess.TimeoutExpired:
            word = ray.get(group.ask.remote())
        if word == "over":
            process.kill()
        elif word == "stop" and not asked:
            asked = True
            process.terminate()


def _place(size: int) -> dict[str, str]:
    """What tells a process its place among the others.

    The first worker holds the store by which they find each other, as torchrun's agent does.
    """
    names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    here = {name: os.environ[name] for name in names}
    return {**here, "WORLD_SIZE": str(size), "TORCHELASTIC_USE_AGENT_STORE": "True"}


def taking_part(workers: int, shares: int) -> int:
    """Returns how many of the workers take part: as many as can share the work evenly.

    >>> taking_part(3, 8)
    2

    Args:
        workers: that there are.
        shares: into how many equal parts the work can be cut.
    """
    return next(size for size in range(workers, 0, -1) if shares % size == 0)
