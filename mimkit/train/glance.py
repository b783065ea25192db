"""What a step on a CPU costs, from steps of a few images: for plans, which must be there soon.

On a CPU time and memory grow with the images of a step; on a GPU they do not, so that there whole
batches are tried (`mimkit.train.trial`).
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor, nn

from mimkit.memory import peak_bytes
from mimkit.parts.flops import count_flops
from mimkit.parts.records import Batch
from mimkit.train.guard import Guard
from mimkit.train.loop import Loop
from mimkit.train.means import Means
from mimkit.train.stopwatch import Stopwatch
from mimkit.train.trial import StepTrial

MOST_IMAGES: Final = 32
"""A step of so many tells what a larger one takes."""
_LONG: Final = 0.5
"""Seconds of a step after which no larger one is tried."""
_GROWTH: Final = 2, 4
"""By how much the next step is larger, at least and at most."""


def glance(loop: Loop, watch: Stopwatch, batch: Batch, *, load_seconds: float) -> StepTrial:
    """Measures steps of ever more images, until one takes half a second.

    Args:
        loop: on a CPU, for this alone; ``watch.phase`` is its ``hooks.phase``; its weights change.
        watch: tells what takes the same for any number of images.
        batch: 32 images, or as many as a step has.
        load_seconds: until one image is there.

    Returns: time and memory of the loop's own steps.
    """
    guard, means = Guard(loop.pretrainer, []), Means(loop.world)
    most = batch.index.shape[0]
    number = fewest(loop.pretrainer, most)

    def fixed() -> float:
        return watch.seconds["optimizer"] + watch.seconds["target"]

    def step() -> float:
        watch.seconds.clear()
        start = time.perf_counter()
        loop.pretrainer.train()
        loop.advance(loop.progress.step, batch.rows(0, number), guard, means)
        return time.perf_counter() - start

    loop.forward = loop.pretrainer  # DDP would wait for other processes
    loop.cut(1)
    counted = []
    few = batch.rows(0, number)

    def passes() -> None:
        loop.pretrainer.train()
        loop.gradients(loop.progress.step, few)

    saved = _saved_bytes(lambda: counted.append(count_flops(passes)), loop.pretrainer)
    flops_per_image, saved_per_image = counted[0] / number, saved / number
    took = {number: step() - fixed()}
    while took[number] < _LONG and number < most:
        least, greatest = (growth * number for growth in _GROWTH)
        enough = math.ceil(number * _LONG / max(took[number], 1e-6))
        number = min(max(least, min(enough, greatest)), most)
        step()  # the first of a size is slower
        took[number] = step() - fixed()
    share = loop.train.batch_size // loop.train.processes
    pieces = 1 if loop.train.accumulate == "auto" else loop.train.accumulate
    an_image = seconds_per_image(took)
    beside = fixed() + pieces * (took[number] - number * an_image)
    return StepTrial(
        step_seconds=beside + share * an_image,
        load_seconds=share * load_seconds,
        peak_memory_bytes=peak_bytes() + round((share / pieces - number) * saved_per_image),
        flops_per_image=flops_per_image,
        compiled=False,
        overlaps=False,
    )


def seconds_per_image(took: Mapping[int, float]) -> float:
    """Tells what one image more costs in a step of many: less than its share of a small one.

    Calls of a small network take nearly the same for 8 images as for 32. What lies between the two
    largest numbers is believed down to half of the share, as single steps are noisy.

    Args:
        took: seconds by number of images, ascending.

    >>> seconds_per_image({8: 1.0, 32: 2.5})
    0.0625
    >>> seconds_per_image({32: 1.6})
    0.05
    """
    *fewer, most = took
    share = took[most] / most
    if not fewer:
        return share
    growth = (took[most] - took[fewer[-1]]) / (most - fewer[-1])
    return min(max(growth, share / 2), share)


def fewest(network: nn.Module, most: int) -> int:
    """Returns how few images a training network takes: batch norm refuses a single one."""
    normalises = any(
        isinstance(each, nn.modules.batchnorm._BatchNorm) for each in network.modules()
    )
    return min(2 if normalises else 1, most)


def _saved_bytes(run: Callable[[], object], module: nn.Module) -> int:
    """Counts what a step keeps for its backward pass, each piece of memory once."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in module.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(sizes.values())
