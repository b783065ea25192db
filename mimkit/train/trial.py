"""Short measured trials before a run: its time, memory and FLOPs, and how to compute its steps."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from mimkit import words
from mimkit.errors import in_one_line, memory_is_full
from mimkit.memory import peak_bytes
from mimkit.parts.flops import count_flops
from mimkit.parts.records import Batch
from mimkit.train.guard import Guard
from mimkit.train.loop import Loop
from mimkit.train.means import Means
from mimkit.train.pieces import largest_piece, more_pieces, no_memory
from mimkit.train.progress import Choice, place
from mimkit.train.sharding import own

Stream = Callable[[int, int], Iterator[Batch]]

_STEPS: Final = 3
_STEPS_TO_CHOOSE: Final = 10
"""Timed of a compiled step: the choice between it and an eager one lasts for the whole run."""
_LOADER_BATCHES: Final = 8
_LOADER_ROUNDS: Final = 3
"""Batches of each loader process; the first round comes all at once and is not timed."""
_LOADER_SECONDS: Final = 5.0
"""After so long the round that is under way is the last."""


@dataclass(frozen=True)
class StepTrial:
    """What a few steps cost.

    Args:
        step_seconds: of one whole step of the loop, its batch at hand.
        load_seconds: until the next batch is there, of the data path by itself.
        peak_memory_bytes: of the device on CUDA, of the process on the CPU; with the optimizer's
            state.
        flops_per_image: forwards and backwards (`mimkit.count_flops`).
        compiled: whether the step ran compiled.
        overlaps: whether the next batch is made while a step runs on a device of its own.
    """

    step_seconds: float
    load_seconds: float
    peak_memory_bytes: int
    flops_per_image: float
    compiled: bool
    overlaps: bool

    @property
    def seconds_per_step(self) -> float:
        """Seconds from one step to the next."""
        if self.overlaps:
            return max(self.step_seconds, self.load_seconds)
        return self.step_seconds + self.load_seconds

    def describe(self, steps: int, batch_size: int) -> str:
        """Returns one line for people."""
        rate = batch_size / self.seconds_per_step
        return (
            f"{words.about(steps * self.seconds_per_step)} for {steps:,} steps "
            f"({rate:,.0f} images/s, {self.flops_per_image / 1e9:.2f} GFLOP an image, "
            f"{self.peak_memory_bytes / 2**30:.1f} GiB{', compiled' if self.compiled else ''})"
        )


def try_out(loop: Loop, stream: Stream, *, workers: int) -> StepTrial:
    """Measures the loop's next step, and settles in how many pieces it runs, and if compiled.

    What is measured is the loop's own step, optimizer included; then all is put back as it was,
    but for ``loop.forward``, which may be compiled, and the loop's choice. A run that goes on
    on the same device keeps the choice that it has, as long as it works.

    Args:
        loop: about to run. ``train.compile`` "auto" tries on CUDA only, since on CPUs compiling
            rarely pays; so does the search for the largest piece, since a CPU's memory has no
            bound that could be measured: there a batch is cut only if it cannot be had whole.
        stream: gives the batches from one step to another, as the run will get them.
        workers: loader processes of it.

    Raises: TrainingError if memory is full, or the recipe insists on compiling, which fails.
    """
    batch, load_seconds = _time_data(stream, loop.progress.step, workers, loop.world.device)
    device, train = loop.world.device, loop.train
    known = loop.progress.choice if loop.progress.choice.where else None  # the run goes on
    with untouched(loop.pretrainer, loop.optimizer):
        step = _Step(loop, batch)
        loop.forward = loop.pretrainer  # DDP would wait for other processes
        flops = _fit(step, known)
        loop.run_eagerly(known.compile_failure if known else None)
        seconds, memory = _time_steps(step, _STEPS)
        if _tries_to_compile(loop, known) and _compiles(step):
            fast, its_memory = _time_steps(step, _STEPS_TO_CHOOSE)
            if train.compile == "auto" and not known and fast >= seconds:
                loop.run_eagerly(loop.progress.choice.compile_failure)
            else:
                seconds, memory = fast, its_memory
    _forget_peak(device)
    loop.progress.choice = replace(loop.progress.choice, where=place(loop.world))
    return StepTrial(
        step_seconds=seconds,
        load_seconds=load_seconds,
        peak_memory_bytes=memory,
        flops_per_image=flops / batch.index.shape[0],
        compiled=loop.progress.choice.compiled,
        overlaps=workers > 0 and device.type != "cpu",
    )


class _Step:
    """The loop's next step, again and again."""

    def __init__(self, loop: Loop, batch: Batch) -> None:
        self.loop = loop
        self.batch = batch
        self.guard = Guard(loop.pretrainer, [])
        self.means = Means(loop.world)

    def __call__(self) -> None:
        self.loop.pretrainer.train()  # an error may have left a part in the other mode
        self.loop.advance(self.loop.progress.step, self.batch, self.guard, self.means)


def _fit(step: _Step, known: Choice | None) -> int:
    """Cuts the batch into as few pieces as memory allows, in all processes alike.

    Returns: the FLOPs of the step.
    Raises: TrainingError if the recipe's own number of pieces, or single images, do not fit.
    """
    loop, share = step.loop, step.batch.index.shape[0]
    said = loop.train.accumulate
    measured = _counts_memory(loop.world.device)
    if said == "auto" and measured and known is None:
        room = _room(loop.world.device)
        if loop.spread:  # all must try the same sizes: the least room decides
            room = -loop.world.largest(-room)
        size = largest_piece(partial(_peak_of, step), share, room)
        loop.cut(share // (size or 1))
    while True:
        accumulate = loop.progress.choice.accumulate
        try:
            flops = count_flops(step)
            break
        except (RuntimeError, MemoryError) as error:
            finer = more_pieces(share, accumulate) if said == "auto" and not loop.spread else None
            if not memory_is_full(error):
                raise
            if finer is None:
                raise no_memory(
                    "before the first step", error, share=share, accumulate=accumulate
                ) from error
        loop.cut(finer)
    loop.cut(loop.world.largest(accumulate))
    if said == "auto" and (measured or accumulate > 1):
        pieces = loop.progress.choice.accumulate
        what = "the whole batch fits" if pieces == 1 else f"pieces of {share // pieces} images fit"
        loop.hooks.report(f"{what} into memory: train.accumulate = {pieces}")
    return flops


def _counts_memory(device: torch.device) -> bool:
    """Whether it is known how much memory a step needs, and how much there is."""
    return device.type == "cuda"


def _peak_of(step: _Step, size: int) -> int:
    """Does the step on one or two pieces of a size; returns the most bytes in use meanwhile."""
    batch, device = step.batch, step.loop.world.device
    # With two, gradients lie beside what the second piece keeps, as they do with many.
    pieces = min(2, batch.index.shape[0] // size)
    step.batch = batch.rows(0, pieces * size)
    step.loop.cut(pieces)
    torch.cuda.empty_cache()
    try:
        if not step.loop.optimizer.state:
            step()
        _forget_peak(device)
        step()
    except (RuntimeError, MemoryError) as error:
        if not step.loop.spread or not memory_is_full(error):
            raise
        # The others may wait for this process amid their step: none can try a smaller piece.
        share = batch.index.shape[0]
        raise no_memory(
            "before the first step", error, share=share, accumulate=share // size
        ) from error
    finally:
        step.batch = batch
    synchronize(device)
    used = _peak_memory(device)
    return step.loop.world.largest(used) if step.loop.spread else used


def _room(device: torch.device) -> int:
    """Bytes that a step may use: of what nobody else has, all but a tenth, as blocks leave gaps."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(0.9 * (free + torch.cuda.memory_reserved(device)))


def _tries_to_compile(loop: Loop, known: Choice | None) -> bool:
    if loop.train.compile != "auto" or loop.spread:  # spread, no process can try it alone
        return loop.train.compile == "on"
    return known.compiled if known else loop.world.device.type == "cuda"


def _compiles(step: _Step) -> bool:
    """Compiles the loop's step if that works in every process.

    Raises: TrainingError if it does not, but the recipe insists on it.
    """
    loop = step.loop
    failure = None
    try:
        loop.compile()
        # Without the exchange of gradients, in which a process where it works would wait.
        loop.gradients(loop.progress.step, step.batch, alone=True)
    except Exception as error:  # the same step has just run eagerly, so it is the compiler's fault
        failure = in_one_line(error)
        if loop.spread:  # the others cannot be asked: they may be amid the exchange of weights
            loop.give_up_compiling(failure)
    if loop.world.any(failure is not None):
        loop.give_up_compiling(failure or "it failed in another process")
        return False
    return True


def _time_steps(step: _Step, number: int) -> tuple[float, int]:
    """Returns the seconds of a step, agreed on by all processes, and the peak of memory."""
    world = step.loop.world
    step()  # compiles; makes the optimizer's state
    synchronize(world.device)
    _forget_peak(world.device)
    start = time.perf_counter()
    for _ in range(number):
        step()
    synchronize(world.device)
    seconds = torch.tensor((time.perf_counter() - start) / number, device=world.device)
    return world.mean(seconds).item(), _peak_memory(world.device)


def _time_data(
    stream: Stream, start: int, workers: int, device: torch.device
) -> tuple[Batch, float]:
    """Returns the batch of a step, and the seconds until the next one is there.

    Loader processes give theirs together, so that only whole rounds of all of them are counted.
    """
    round_ = max(1, workers)
    number = _LOADER_ROUNDS * workers or _LOADER_BATCHES
    first: Batch | None = None
    arrived = [time.perf_counter()]
    for batch in stream(start, start + number):
        first = batch if first is None else first
        synchronize(device)
        arrived.append(time.perf_counter())
        whole = (len(arrived) - 1) % round_ == 0
        if whole and arrived[-1] - arrived[0] > _LOADER_SECONDS:
            break
    assert first is not None
    after = round_ if len(arrived) > round_ + 1 else 0
    return first, (arrived[-1] - arrived[after]) / (len(arrived) - 1 - after)


@contextmanager
def untouched(module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Iterator[None]:
    """Puts weights, buffers, the optimizer's state, mode and random state back, bit for bit.

    Gradients are gone afterwards. Buffers outside the state dict are constants.
    """
    held = module.state_dict(keep_vars=True).values()
    kept = [value for value in held if isinstance(value, Tensor)]
    saved = [_copy(tensor) for tensor in kept]
    state = _State(optimizer) if optimizer is not None else None
    training = module.training
    devices = [p.device for p in module.parameters() if p.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, copy in zip(kept, saved, strict=True):
                    own(tensor).copy_(copy)
                if state is not None:
                    state.restore()
            for parameter in module.parameters():
                parameter.grad = None
            module.train(training)


class _State:
    """An optimizer's state as it was, in the tensors that it is held in."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.entries: dict[Tensor, dict[str, Any]] = {
            parameter: dict(entries) for parameter, entries in optimizer.state.items()
        }
        self.copies = {
            parameter: {k: _copy(v) for k, v in entries.items() if isinstance(v, Tensor)}
            for parameter, entries in self.entries.items()
        }

    def restore(self) -> None:
        """Puts it back; what came into being since is removed."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate
        self.optimizer.state.clear()
        for parameter, entries in self.entries.items():
            self.optimizer.state[parameter] = entries
            for name, copy in self.copies[parameter].items():
                own(entries[name]).copy_(copy)


def _copy(tensor: Tensor) -> Tensor:
    # On the CPU, so that a GPU's peak is what it will be in the run.
    return own(tensor.detach()).to("cpu", copy=True)


def synchronize(device: torch.device) -> None:
    """Waits until a device has done all that it was told; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_bytes()
