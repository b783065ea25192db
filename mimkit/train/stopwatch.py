"""Where the time of a step goes, phase by phase."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mimkit.train.trial import synchronize


class Stopwatch:
    """Adds up seconds by phase; a phase inside another is counted once, as the inner one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.stack: list[str] = []
        self.mark = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time inside towards ``name``."""
        self._enter(name)
        yield
        self._leave()

    @contextmanager
    def watch(self, module: nn.Module, name: str) -> Iterator[None]:
        """Counts every forward pass of a module towards ``name``, unless a target is running it."""
        handles = [
            module.register_forward_pre_hook(
                lambda *_: self._enter("target" if "target" in self.stack else name)
            ),
            module.register_forward_hook(lambda *_: self._leave()),
        ]
        yield
        for handle in handles:
            handle.remove()

    def _enter(self, name: str) -> None:
        self._charge()
        self.stack.append(name)

    def _leave(self) -> None:
        self._charge()
        self.stack.pop()

    def _charge(self) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        if self.stack:
            self.seconds[self.stack[-1]] += now - self.mark
        self.mark = now
