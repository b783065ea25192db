"""Skipping steps whose gradient is not finite, without waiting for the device."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mimkit.errors import TrainingError

PATIENCE = 3


@dataclass(frozen=True)
class SkippedStep:
    """A step whose loss or gradient was NaN or Inf, so that it changed nothing.

    Args:
        step: its number.
        index: the data-set numbers of its images.
    """

    step: int
    index: list[int]


class Guard:
    """Watches every step; remembers the flags on the device until they are read.

    A skipped step must leave no trace in running statistics either, which the forward pass has
    already changed, so the guard keeps a copy of the floating-point buffers.

    Args:
        module: what is trained.
        skipped: the steps skipped so far; later ones are added to it.
        start: the first step that it will watch.
    """

    def __init__(self, module: nn.Module, skipped: list[SkippedStep], start: int = 0) -> None:
        # What is not in the state dict is constant, such as a tokenizer's weights.
        kept = module.state_dict(keep_vars=True)
        self.buffers = [
            buffer
            for name, buffer in module.named_buffers()
            if name in kept and buffer.is_floating_point()
        ]
        self.saved = [buffer.clone() for buffer in self.buffers]
        self.pending: list[tuple[int, Tensor, Tensor]] = []
        self.skipped = skipped
        self.in_a_row = 0
        for item in reversed(skipped):  # a run that goes on counts on where it stopped
            if item.step != start - 1 - self.in_a_row:
                break
            self.in_a_row += 1

    def before(self) -> None:
        """Keeps the buffers as they are before the forward pass."""
        if self.buffers:
            torch._foreach_copy_(self.saved, self.buffers)

    def restore(self) -> None:
        """Puts the buffers back as they were at `before`."""
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.saved)

    def after(self, step: int, index: Tensor, finite: Tensor) -> None:
        """Notes the step's flag () bool, and undoes what a skipped step did to the buffers."""
        for buffer, saved in zip(self.buffers, self.saved, strict=True):
            buffer.copy_(torch.where(finite, buffer, saved))
        self.pending.append((step, index, finite))

    def read(self) -> list[SkippedStep]:
        """Brings the flags to the CPU and returns the steps skipped since the last reading.

        Raises: TrainingError if ``PATIENCE`` steps in a row were skipped.
        """
        if not self.pending:
            return []
        flags = torch.stack([finite for _, _, finite in self.pending]).tolist()
        news: list[SkippedStep] = []
        for (step, index, _), finite in zip(self.pending, flags, strict=True):
            self.in_a_row = 0 if finite else self.in_a_row + 1
            if not finite:
                news.append(SkippedStep(step, index.tolist()))
            if self.in_a_row == PATIENCE:
                self.skipped += news
                raise TrainingError(
                    f"The loss or its gradient was NaN or Inf in {PATIENCE} steps in a row "
                    f"(steps {step - PATIENCE + 1} to {step}), so training stops. Those steps "
                    "changed nothing; their images are listed in ledger.json under "
                    "'skipped_steps'. Try a lower train.lr, a longer warm-up, or train.clip_norm."
                )
        self.pending.clear()
        self.skipped += news
        return news
