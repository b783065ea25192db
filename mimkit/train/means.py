"""Means of what a step gives, over the steps between two lines of the log."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mimkit.parts.loss import StepOutput
from mimkit.train.distributed import World


class Means:
    """Running sums of every logged number, kept on the device until they are read.

    The interval that is open when a run stops goes on when the run does: its sums, steps and
    seconds belong to the checkpoint.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.reset()

    def reset(self) -> None:
        """Starts a new interval."""
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.steps = 0
        self.seconds = 0.0

    def add(self, output: StepOutput, grad_norm: Tensor, finite: Tensor) -> None:
        """Adds one step's numbers; a skipped step counts nothing."""
        values = {"loss/total": output.loss.detach()}
        values |= {f"loss/{name}": value.detach() for name, value in output.terms.items()}
        values |= {f"metric/{name}": value for name, value in output.metrics.items()}
        values |= {"grad_norm": grad_norm, "counted": torch.ones_like(grad_norm)}
        stacked = torch.stack([value.float() for value in values.values()])
        stacked = torch.where(finite, stacked, 0.0)
        self.names = list(values)
        self.sums = stacked if self.sums is None else self.sums + stacked
        self.steps += 1

    def read(self) -> dict[str, float]:
        """Returns the means of the interval over steps and processes."""
        if self.sums is None:
            return {}
        *sums, counted = self.world.mean(self.sums).tolist()
        return {
            name: value / counted if counted else float("nan")
            for name, value in zip(self.names[:-1], sums, strict=True)
        }

    def state(self, *, alone: bool = False) -> tuple[dict[str, object], dict[str, Tensor]]:
        """Returns the open interval for a checkpoint; every process must ask for it at once.

        Args:
            alone: give this process's own sums, as where the others cannot be asked.

        Returns: plain data, and the sums, which become the means over processes in all of them:
            what is read in the end is the same.
        """
        data = {"names": self.names, "steps": self.steps, "seconds": self.seconds}
        if self.sums is None:
            return data, {}
        return data, {"sums": self.sums if alone else self.world.mean(self.sums)}

    def restore(self, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Goes on with an interval that `state` gave."""
        self.names, self.steps = list(data["names"]), int(data["steps"])
        self.seconds = float(data["seconds"])
        self.sums = tensors["sums"].to(self.world.device) if "sums" in tensors else None
