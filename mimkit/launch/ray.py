"""Processes on the machines of a Ray cluster."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from mimkit.errors import RecipeError
from mimkit.launch.base import Ended, Launcher, Task

_NAMESPACE: Final = "mimkit"
_OPTIONS: Final = ("address", "cpus", "gpus", "workers")
_CALLS_AT_ONCE: Final = 8
_CALLS_OF_WORKERS_AT_ONCE: Final = 32
_HEAD: Final = {"node:__internal_head__": 0.001}
"""What Ray gives the machine that a cluster cannot lose."""
_ITS_OWN: Final = ("RAY_", "CUDA_VISIBLE_DEVICES")
"""Beginnings of variables that Ray sets for each process where it runs."""


class RayLauncher(Launcher):
    """Gives processes to a Ray cluster, each to a machine with room for it (the extra ``ray``).

    With ``workers`` a task is several processes instead, wherever there is room for them; then
    Ray Train starts all of them again when a machine is lost, and they go on from their last
    checkpoint, as many as there is room for, if not fewer than the least.

    All machines must see the same disk under the same path, with mimkit installed alike. A process
    belongs to a detached actor, which outlives its caller and is found again by its name; with a
    machine its processes are lost, and the caller starts them again elsewhere, from their last
    checkpoint. A cluster that Ray starts for this call alone ends with it.

    Args:
        folder: for the launcher's own files, those of Ray Train.
        options: ``address`` of a cluster, else that of ``RAY_ADDRESS`` or one that runs on this
            machine, else a new one of this machine alone; ``cpus`` of a process, 1 if not given;
            ``gpus`` of a process, if not given as many as it needs where the cluster has any;
            ``workers``, how many processes a task is, "4" or from least to most, "1-4".

    Raises: RecipeError if Ray is missing, an option is unknown, or no cluster answers.
    """

    look_every_seconds = 1.0

    def __init__(self, folder: Path, options: Mapping[str, str]) -> None:
        for key in options:
            if key not in _OPTIONS:
                known = ", ".join(_OPTIONS)
                raise RecipeError(f"--launcher ray: option must be one of {known}, but is '{key}'.")
        self.cpus = _number(options, "cpus", 1)
        self.gpus = _number(options, "gpus", None)
        self.workers = _workers(options)
        if self.workers is not None and self.gpus not in (None, 0, 1):
            raise RecipeError(
                "--launcher ray: gpus must be 0 or 1 beside workers, each of which is one process, "
                f"but is '{options['gpus']}'."
            )
        self.folder = folder.resolve()
        try:
            # Before the import: Ray reads it there, and reports to nobody.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            import ray  # noqa: PLC0415 -- an extra
        except ImportError as error:
            raise RecipeError(
                "--launcher ray: needs Ray, which is not installed. "
                "Install it with: pip install 'mimkit[ray]'"
            ) from error
        if self.workers is not None:
            try:
                import mimkit.launch.ray_train  # noqa: F401, PLC0415 -- imports an extra
            except ImportError as error:
                raise RecipeError(
                    f"--launcher ray: workers need Ray Train, which is not whole ({error}). "
                    "Install it with: pip install 'mimkit[ray]'"
                ) from error
        address = options.get("address")
        if not ray.is_initialized():
            try:
                ray.init(
                    address, namespace=_NAMESPACE, log_to_driver=False, logging_level=logging.ERROR
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise RecipeError(
                    f"--launcher ray: no cluster answers at {address or 'this machine'} ({error}). "
                    "Start one with: ray start --head"
                ) from error
        self.ray: Any = ray
        self.actors: dict[str, Any] = {}
        self.ends: dict[str, Any] = {}

    def submit(self, task: Task) -> str:
        """See `Launcher.submit`."""
        task.log.parent.mkdir(parents=True, exist_ok=True)
        job = f"mimkit-{uuid.uuid4().hex}"
        has_gpus = self.ray.cluster_resources().get("GPU", 0) > 0
        wanted = task.needs.gpus if self.workers is None else 1
        gpus = self.gpus if self.gpus is not None else wanted * has_gpus
        shared = {k: v for k, v in os.environ.items() if not k.startswith(_ITS_OWN)}
        here = replace(task, log=task.log.resolve(), environment={**shared, **task.environment})
        known = {"name": job, "namespace": _NAMESPACE, "lifetime": "detached"}
        if self.workers is None:
            actor = self.ray.remote(_Process).options(
                **known, num_cpus=self.cpus, num_gpus=gpus, max_concurrency=_CALLS_AT_ONCE
            )
            self._hold(job, actor.remote(here, str(Path.cwd())))
        else:
            from mimkit.launch.ray_train import Group  # noqa: PLC0415 -- imports an extra

            actor = self.ray.remote(Group).options(
                **known, num_cpus=0, resources=_HEAD, max_concurrency=_CALLS_OF_WORKERS_AT_ONCE
            )
            each = {"CPU": self.cpus, "GPU": gpus}
            files = str(self.folder)
            self._hold(job, actor.remote(here, str(Path.cwd()), self.workers, each, files))
        return job

    def poll(self, job: str) -> Ended | None:
        """See `Launcher.poll`."""
        if job not in self.actors and not self._find(job):
            return Ended.unseen()
        done, _ = self.ray.wait([self.ends[job]], timeout=0)
        if not done:
            return None
        try:
            ended: Ended = self.ray.get(self.ends[job])
        except self.ray.exceptions.ActorUnavailableError:
            # Cut off, for now: whether it is lost with its machine is told later.
            self.ends[job] = self.actors[job].wait.remote()
            return None
        except self.ray.exceptions.RayActorError as error:
            # With the machine, or as Ray could not make it: like a process that was killed.
            return Ended(-signal.SIGKILL, f"Ray: {str(error).splitlines()[0]}")
        self.ray.kill(self.actors[job])
        return ended

    def cancel(self, job: str) -> None:
        """See `Launcher.cancel`. What has not begun leaves the queue of the cluster."""
        if job not in self.actors and not self._find(job):
            return
        asked = self.actors[job].stop.remote()
        begun, _ = self.ray.wait([asked], timeout=self.look_every_seconds)
        if not begun:
            self.ray.kill(self.actors[job])

    def _find(self, job: str) -> bool:
        """Looks for the actor of an earlier caller."""
        try:
            self._hold(job, self.ray.get_actor(job, namespace=_NAMESPACE))
        except ValueError:
            return False
        return True

    def _hold(self, job: str, actor: Any) -> None:
        self.actors[job] = actor
        self.ends[job] = actor.wait.remote()


class _Process:
    """What lives on a machine of the cluster: a process, and who asks after it."""

    def __init__(self, task: Task, folder: str) -> None:
        with task.log.open("ab") as file:
            self.process = subprocess.Popen(
                task.command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **task.environment},
            )

    def wait(self) -> Ended:
        """Returns how the process ended, once it has."""
        return Ended(self.process.wait())

    def stop(self) -> None:
        """Asks the process to write a checkpoint and leave."""
        self.process.terminate()


def _number(options: Mapping[str, str], key: str, default: float | None) -> float | None:
    try:
        found = float(options[key]) if key in options else default
    except ValueError:
        found = -1.0
    if found is not None and found < 0:
        raise RecipeError(
            f"--launcher ray: {key} must be a number, such as {key}=2, but is '{options[key]}'."
        )
    return found


def _workers(options: Mapping[str, str]) -> tuple[int, int] | None:
    """Reads least and most number of workers; None if nothing is said of them."""
    said = options.get("workers")
    if said is None:
        return None
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", said)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        raise RecipeError(
            "--launcher ray: workers must be a number above 0, or from the least to the most, such "
            f"as workers=4 or workers=1-4, but is '{said}'."
        )
    return least, most
