"""How far a run is, and how its steps are computed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch

from mimkit.train.distributed import World
from mimkit.train.guard import SkippedStep


@dataclass(frozen=True)
class Choice:
    """What a trial settled; part of every checkpoint, so that a run goes on as it began.

    Args:
        accumulate: pieces into which each process cuts its share of a batch.
        compiled: whether the step is compiled.
        compile_failure: why it is not, where a compiler failed.
        where: the device and how many of it; elsewhere another choice may be right. Empty as long
            as nothing was tried.
    """

    accumulate: int = 1
    compiled: bool = False
    compile_failure: str | None = None
    where: str = ""


def place(world: World) -> str:
    """Names what a choice is made for."""
    cuda = world.device.type == "cuda"
    name = torch.cuda.get_device_name(world.device) if cuda else world.device.type
    return f"{world.size} x {name}"


@dataclass
class Progress:
    """What a run has behind it; part of every checkpoint.

    Args:
        step: finished optimizer steps.
        seconds: time spent in them, of all processes that one after the other trained this run.
        skipped: steps that were skipped because they were not finite.
        choice: how the steps are computed.
        evaluated: whether the evaluations that are due after `step` are done.
    """

    step: int
    seconds: float
    skipped: list[SkippedStep]
    choice: Choice = field(default_factory=Choice)
    evaluated: bool = False

    def state(self) -> dict[str, object]:
        """Returns plain data for the checkpoint."""
        return {
            "seconds": self.seconds,
            "skipped": [asdict(item) for item in self.skipped],
            "choice": asdict(self.choice),
            "evaluated": self.evaluated,
        }

    @classmethod
    def from_state(cls, step: int, state: Mapping[str, Any]) -> Self:
        """Reads what `state` gave; imports and older versions know no choice."""
        return cls(
            step,
            float(state["seconds"]),
            [SkippedStep(**item) for item in state["skipped"]],
            Choice(**state.get("choice", {})),
            evaluated=state.get("evaluated", step > 0),
        )
