"""Short measured trials before a run: its time, memory and FLOPs, and whether compiling pays."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mimkit.memory import peak_bytes
from mimkit.parts.records import Batch, StepOutput
from mimkit.recipe.schema import TrainSection
from mimkit.train.loop import autocast
from mimkit.train.step import Pretrainer


@dataclass(frozen=True)
class Trial:
    """What a few steps cost.

    Args:
        seconds_per_step: forward and backward of one whole batch.
        peak_memory_bytes: of the device on CUDA, of the process on the CPU.
        flops_per_image: of forward and backward, as torch counts them (one multiply-add is two).
        compiled: whether the step ran compiled.
    """

    seconds_per_step: float
    peak_memory_bytes: int
    flops_per_image: float
    compiled: bool

    def describe(self, steps: int, batch_size: int) -> str:
        """Returns one line for people."""
        rate = batch_size / self.seconds_per_step
        return (
            f"about {duration(steps * self.seconds_per_step)} for {steps:,} steps "
            f"({rate:,.0f} images/s, {self.flops_per_image / 1e9:.2f} GFLOP an image, "
            f"{self.peak_memory_bytes / 2**30:.1f} GiB{', compiled' if self.compiled else ''})"
        )


def run_trial(
    pretrainer: Pretrainer,
    forward: Callable[[Batch], StepOutput],
    batch: Batch,
    train: TrainSection,
    *,
    steps: int = 3,
    compiled: bool = False,
) -> Trial:
    """Times forward and backward on one batch, then puts everything back as it was."""
    device = batch.index.device
    with untouched(pretrainer):
        pretrainer.train()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        counter = FlopCounterMode(display=False)
        with counter:
            _once(pretrainer, batch, train)
        _once(forward, batch, train)
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(steps):
            _once(forward, batch, train)
        _synchronize(device)
        seconds = (time.perf_counter() - start) / steps
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()
    flops = counter.get_total_flops() / batch.index.shape[0]
    return Trial(seconds, memory, flops, compiled)


def choose_forward(
    pretrainer: Pretrainer, wrapped: nn.Module, batch: Batch, train: TrainSection
) -> tuple[nn.Module, Trial]:
    """Measures the step, and compiles it where that is asked for or shows faster.

    Args:
        pretrainer: the module.
        wrapped: the module as it is called in training (DDP or itself).
        batch: any batch of the run.
        train: ``compile`` "auto" tries on CUDA only, since on CPUs compiling rarely pays.
    """
    eager = run_trial(pretrainer, wrapped, batch, train)
    if train.compile == "off" or (train.compile == "auto" and batch.index.device.type != "cuda"):
        return wrapped, eager
    # Every recipe compiles the same `forward`: runs in one process would hit torch's limit of it.
    torch.compiler.reset()
    candidate: nn.Module = torch.compile(wrapped)  # type: ignore[assignment]
    compiled = run_trial(pretrainer, candidate, batch, train, steps=10, compiled=True)
    if train.compile == "on" or compiled.seconds_per_step < eager.seconds_per_step:
        return candidate, compiled
    return wrapped, eager


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Restores buffers, gradients, mode and random state on leaving."""
    kept = module.state_dict(keep_vars=True)
    buffers = [buffer for name, buffer in module.named_buffers() if name in kept]
    saved_buffers = [buffer.clone() for buffer in buffers]
    training = module.training
    devices = [p.device for p in module.parameters() if p.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for buffer, saved in zip(buffers, saved_buffers, strict=True):
                buffer.copy_(saved)
            for parameter in module.parameters():
                parameter.grad = None
            module.train(training)


def duration(seconds: float) -> str:
    """Writes seconds as people say them: ``40 s``, ``12 min``, ``3.5 h``, ``6 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"


def _once(forward: Callable[[Batch], StepOutput], batch: Batch, train: TrainSection) -> None:
    for piece in batch.split(train.accumulate):
        with autocast(batch.index.device, train.precision):
            output = forward(piece)
        torch.autograd.backward(output.loss)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
