"""The training loop: next batch, step, optimizer, schedule; checkpoints and logs between."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mimkit.errors import MimkitError, TrainingError, in_one_line, memory_is_full
from mimkit.parts.loss import StepOutput
from mimkit.parts.records import Batch
from mimkit.recipe.schema import TrainSection
from mimkit.train import checkpoint, optim
from mimkit.train.distributed import World
from mimkit.train.guard import Guard, SkippedStep
from mimkit.train.means import Means
from mimkit.train.pieces import no_memory
from mimkit.train.precision import autocast
from mimkit.train.progress import Choice, Progress, place
from mimkit.train.sharding import compile_units, is_spread, run_units_eagerly, whole
from mimkit.train.signals import Interrupted, Request
from mimkit.train.step import Pretrainer

Log = Callable[[int, Mapping[str, float]], None]


def _nothing(*_: object) -> None:
    """What happens where nobody asked for anything."""


@dataclass(frozen=True)
class Hooks:
    """What happens between steps; the loop itself neither writes logs nor evaluates.

    Args:
        log: receives the means since the last call, at ``log_every_steps``.
        evaluate: is called with the number of finished steps, after each of them.
        report: receives lines of text for people.
        phase: surrounds what a step does in no module: "backward", "optimizer" and "target".
    """

    log: Log = _nothing
    evaluate: Callable[[int], None] = _nothing
    report: Callable[[str], None] = _nothing
    phase: Callable[[str], AbstractContextManager[object]] = nullcontext


class Loop:
    """The state of one pre-training: module, optimizer, how far it is.

    Args:
        pretrainer: the module; it may be spread over processes.
        train: the recipe's section.
        num_images: size of the training split.
        seed: of the run.
        world: this process among others.
        folder: where checkpoints lie.
        hooks: what happens between steps.
    """

    def __init__(
        self,
        pretrainer: Pretrainer,
        *,
        train: TrainSection,
        num_images: int,
        seed: int,
        world: World,
        folder: Path,
        hooks: Hooks,
    ) -> None:
        self.pretrainer = pretrainer
        # What computes a step from a batch: the module, maybe wrapped; and maybe compiled.
        self.eager: nn.Module = pretrainer
        self.forward: nn.Module = pretrainer
        self.spread = is_spread(pretrainer)
        self.train = train
        self.total = optim.total_steps(train, num_images)
        self.warmup = optim.warmup_steps(train, num_images)
        self.seed = seed
        self.world = world
        self.folder = folder
        self.hooks = hooks
        self.optimizer = optim.make_optimizer(pretrainer, train)
        self.progress = Progress(0, 0.0, [])
        self._settle(Choice())
        # Whether weights, optimizer and targets are those that `progress` tells of.
        self.intact = True
        self.means = Means(world)

    def resume(self) -> None:
        """Goes on from the newest whole checkpoint, if there is one.

        Raises: DataError if there are checkpoints, but none can be used.
        """
        found = self.world.share(lambda: checkpoint.latest(self.folder, self.hooks.report))
        if found is not None:
            checkpoint.restore(found, self.pretrainer, self.optimizer)
            state: dict[str, Any] = found.state
            self.progress = Progress.from_state(found.step, state)
            self._settle(self.progress.choice)
            if "interval" in state:  # not in an import
                self.means.restore(state["interval"], found.part("extra."))

    def _settle(self, choice: Choice) -> None:
        """Takes over what was chosen on the same device; what the recipe says comes first."""
        if choice.where and choice.where != place(self.world):
            choice = Choice()
        if self.train.accumulate != "auto":
            choice = replace(choice, accumulate=self.train.accumulate)
        self.progress.choice = choice

    def run(self, batches: Iterator[Batch], request: Request) -> None:
        """Trains to the last step.

        Args:
            batches: from the step that `resume` found on.
            request: set by a signal; the loop then checkpoints and leaves.

        Raises: Interrupted after a signal; TrainingError if steps in a row are not finite, or
            memory is full. Whatever ends it, a checkpoint is written of what can be kept.
        """
        self.pretrainer.train()
        guard_ = Guard(self.pretrainer, self.progress.skipped, self.progress.step)
        means = self.means
        # On the CPU reading a flag costs nothing; elsewhere it waits for the device.
        read_every = 1 if self.world.device.type == "cpu" else self.train.log_every_steps
        clock = time.perf_counter()
        start = self.progress.step
        for step in range(start, self.total):
            try:
                batch = next(batches)
                lr = self.advance(step, batch, guard_, means)
            except Exception as error:
                # Where each process has a share of the weights, none can keep them alone.
                kept = self.intact and step > start and not self.spread
                if kept:
                    self._tell(guard_.read())
                    self.save(alone=True)
                if memory_is_full(error):
                    raise self._no_memory(error, kept) from error
                raise

            done = step + 1
            self.progress.step, self.progress.evaluated = done, False
            last = done == self.total
            saves = last or done % self.train.checkpoint_every_steps == 0
            if saves or done % read_every == 0:
                self._tell(guard_.read())
            logs = last or done % self.train.log_every_steps == 0
            values = means.read() if logs else {}
            # Read after the above, which waits for the device.
            spent = time.perf_counter() - clock
            self.progress.seconds += spent
            means.seconds += spent
            if logs:
                values |= {"time/step_ms": 1000 * means.seconds / means.steps, "lr": lr}
                means.reset()
                self.hooks.log(done, values)
            # Evaluated before it is saved: what a checkpoint has behind it is complete.
            try:
                self.hooks.evaluate(done)
            except Exception:
                self._tell(guard_.read())
                self.save(alone=not self.spread)
                raise
            self.progress.evaluated = True
            self.pretrainer.train()
            stop = self.asked_to_stop(done, request)
            if saves or stop:
                self._tell(guard_.read())
                self.save()
            if stop:
                raise Interrupted(request.number or 0, f"after step {done}")
            clock = time.perf_counter()
        if self.asked_to_stop(self.total, request):  # while the last checkpoint was written
            raise Interrupted(request.number or 0, f"after step {self.total}")

    def advance(self, step: int, batch: Batch, guard_: Guard, means: Means) -> float:
        """Does all of a step but fetching its batch; returns the learning rate."""
        lr = optim.learning_rate(
            step,
            total=self.total,
            warmup=self.warmup,
            peak=self.train.lr,
            floor=self.train.min_lr,
            ends=self.train.extended,
        )
        optim.set_learning_rate(self.optimizer, lr)
        guard_.before()
        output = self._gradients_somehow(step, batch, guard_)
        self.intact = False
        grad_norm, finite = self._update(output)
        guard_.after(step, batch.index, finite)
        with self.hooks.phase("target"):
            self.pretrainer.after_step((step + 1) / self.total)
        means.add(output, grad_norm, finite)
        self.intact = True
        return lr

    def gradients(self, step: int, batch: Batch, *, alone: bool = False) -> StepOutput:
        """Passes a batch forwards and backwards, piece by piece; returns the last one's output.

        Args:
            step: which one it is.
            batch: this process's share of it.
            alone: leave the gradients as they are in this process.
        """
        # Dropout and its like follow from (seed, step, rank), so a checkpoint needs no such state.
        torch.manual_seed(hash((self.seed, step, self.world.rank)) % 2**63)
        self.optimizer.zero_grad()
        pieces = batch.split(self.progress.choice.accumulate)
        # Only with the last piece are gradients averaged over processes.
        silent = getattr(self.forward, "no_sync", nullcontext)
        for number, piece in enumerate(pieces, start=1):
            with silent() if alone or number < len(pieces) else nullcontext():
                with autocast(self.world.device, self.train.precision):
                    output: StepOutput = self.forward(piece)
                with self.hooks.phase("backward"):
                    torch.autograd.backward(output.loss / len(pieces))
        return output

    def _gradients_somehow(self, step: int, batch: Batch, guard_: Guard) -> StepOutput:
        """Computes the gradients, eagerly where the compiled step fails."""
        try:
            return self.gradients(step, batch)
        except Exception as error:
            guard_.restore()
            if not self.progress.choice.compiled or isinstance(error, MimkitError):
                raise
            failure = in_one_line(error)
        # Here, where the error is gone, and with it what it held in memory.
        if self.world.size > 1:
            raise self._cannot_compile(failure, "no process can go on without it alone")
        compiled, self.forward = self.forward, self.eager
        try:
            output = self.gradients(step, batch)
        except Exception:  # the fault is not the compiler's
            self.forward = compiled
            guard_.restore()
            raise
        if self.train.compile == "on":
            guard_.restore()
        self.give_up_compiling(failure)
        return output

    def cut(self, pieces: int) -> None:
        """Cuts each batch into so many pieces from now on."""
        self.progress.choice = replace(self.progress.choice, accumulate=pieces)

    def compile(self) -> None:
        """Computes steps compiled from now on."""
        # Every recipe compiles the same `forward`; in one process that hits torch's limit.
        torch.compiler.reset()
        if self.spread:
            compile_units(self.pretrainer)
        else:
            self.forward = torch.compile(self.eager)  # type: ignore[assignment]
        self.progress.choice = replace(self.progress.choice, compiled=True, compile_failure=None)

    def run_eagerly(self, failure: str | None = None) -> None:
        """Computes steps as they stand from now on; ``failure``: why they cannot be compiled."""
        if self.spread:
            run_units_eagerly(self.pretrainer)
        self.forward = self.eager
        self.progress.choice = replace(
            self.progress.choice, compiled=False, compile_failure=failure
        )

    def give_up_compiling(self, failure: str) -> None:
        """Goes on eagerly, and says why.

        Raises: TrainingError if the recipe insists on a compiled step.
        """
        if self.train.compile == "on":
            raise self._cannot_compile(failure, 'train.compile is "on"')
        self.run_eagerly(failure)
        self.hooks.report(f"the step cannot be compiled here, so it runs as it is: {failure}")

    @staticmethod
    def _cannot_compile(failure: str, why: str) -> TrainingError:
        return TrainingError(
            f"the step cannot be compiled here ({failure}), and {why}. Set train.compile=off; "
            "a run that was begun goes on with it."
        )

    def _no_memory(self, error: Exception, kept: bool) -> TrainingError:
        step, share = self.progress.step, self.train.batch_size // self.world.size
        return no_memory(
            f"step {step:,}",
            error,
            share=share,
            accumulate=self.progress.choice.accumulate,
            after=f"The same command then goes on at step {step:,}." if kept else "",
        )

    def _update(self, output: StepOutput) -> tuple[Tensor, Tensor]:
        """Lets the optimizer use the gradients; returns their norm () and if they count ()."""
        limit = self.train.clip_norm if self.train.clip_norm is not None else float("inf")
        with self.hooks.phase("optimizer"):
            grad_norm = whole(nn.utils.clip_grad_norm_(self.pretrainer.parameters(), limit))
            finite = torch.isfinite(grad_norm) & torch.isfinite(output.loss)
            if self.spread:  # all skip, or none: each has a share of every weight
                finite = self.world.everywhere(finite)
            optim.guard(self.optimizer, finite)
            self.optimizer.step()
        return grad_norm, finite

    def _tell(self, skipped: list[SkippedStep]) -> None:
        for one in skipped:
            self.hooks.report(f"step {one.step}: not finite, skipped")

    def asked_to_stop(self, done: int, request: Request) -> bool:
        """True if a signal came; processes agree on it at the logging interval only."""
        if self.world.size == 1:
            return request.number is not None
        if done % self.train.log_every_steps:
            return False
        # A signal may have reached one process alone: all leave with its number.
        request.number = self.world.largest(request.number or 0) or None
        return request.number is not None

    def save(self, *, alone: bool = False) -> None:
        """Writes a checkpoint, from the leading process; ``alone``: without asking the others.

        Where the weights are spread over the processes, all of them write together.
        """
        interval, sums = self.means.state(alone=alone)
        if self.world.leads or self.spread:
            checkpoint.save(
                self.folder,
                self.progress.step,
                self.pretrainer,
                self.optimizer,
                {**self.progress.state(), "interval": interval},
                extra=sums,
            )
        if not alone:
            self.world.wait()
