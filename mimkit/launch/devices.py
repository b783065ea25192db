"""Which GPUs of this machine a run gets, and whether it fits beside those at work there."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from mimkit.data.workers import cores
from mimkit.evaluate.at_once import GPU_IS_SHARED
from mimkit.launch.base import Needs


@dataclass(frozen=True)
class Gpus:
    """The GPUs that processes share; none where they run on the CPU or elsewhere.

    Place after place gets the next one, or the next ones for a run of several processes, and after
    the last the first again. So the runs are spread evenly, each with its GPUs to the end.

    Args:
        names: as CUDA_VISIBLE_DEVICES calls them.
        memory: of each, in bytes.
        places: how many there are at once.
        chosen: whether the user chose one: then the command of a run names it already.
    """

    names: tuple[str, ...] = ()
    memory: tuple[int, ...] = ()
    places: int = 1
    chosen: bool = False

    def environment(self, place: int, processes: int) -> dict[str, str]:
        """Tells a run its GPUs, and whether others are at work on them."""
        if not self.names:
            return {}
        own = ",".join(self.of(place, processes))
        told = {} if self.chosen else {"CUDA_VISIBLE_DEVICES": own}
        shared = self.places * processes > len(self.names)
        return {**told, GPU_IS_SHARED: "1"} if shared else told

    def have_room(self, place: int, needs: Needs, others: Iterable[tuple[int, Needs]]) -> bool:
        """Whether a place's GPUs have the memory for a run beside those at work.

        A GPU on which nothing is at work always has: whether a run fits there at all is for the
        run to find out.

        Args:
            place: of the run.
            needs: of the run.
            others: places of those at work, and what they need.
        """
        held: Counter[str] = Counter()
        for at, other in others:
            held.update(dict.fromkeys(self.of(at, other.gpus), other.gpu_bytes))
        memory = dict(zip(self.names, self.memory, strict=True))
        return all(
            not held[name] or held[name] + needs.gpu_bytes <= memory[name]
            for name in self.of(place, needs.gpus)
        )

    def of(self, place: int, processes: int) -> list[str]:
        """Returns the GPUs of a run of so many processes, by name."""
        first, count = place * processes, len(self.names)
        numbers = range(first, first + processes) if count else ()
        return list(dict.fromkeys(self.names[number % count] for number in numbers))


def find(device: str | None, places: int) -> Gpus:
    """Finds the GPUs that ``--device`` lets the runs of this machine share.

    Args:
        device: as on the command line; None and "cuda" are all there are.
        places: how many there are at once.
    """
    count = torch.cuda.device_count()
    if not count or (device is not None and not device.startswith("cuda")):
        return Gpus()
    if device not in (None, "cuda"):
        number = torch.device(device).index
        return Gpus((str(number),), (gpu_bytes(number),), places, chosen=True)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:count] if visible else [*map(str, range(count))]
    return Gpus(tuple(names), tuple(map(gpu_bytes, range(count))), places)


def gpu_bytes(number: int) -> int:
    """Returns the memory of one of the visible GPUs."""
    return int(torch.cuda.get_device_properties(number).total_memory)


def default_jobs(device: str | None) -> int:
    """Runs at once if the user does not say: one a GPU, or on the CPU one a core, up to eight."""
    if device in (None, "cuda") and torch.cuda.is_available():
        return torch.cuda.device_count()
    return 1 if device and device.startswith("cuda") else min(8, cores())
