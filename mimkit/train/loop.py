"""The training loop: next batch, step, optimizer, schedule; checkpoints and logs between."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mimkit.parts.records import Batch, StepOutput
from mimkit.recipe.schema import TrainSection
from mimkit.train import checkpoint
from mimkit.train.distributed import World
from mimkit.train.guard import Guard, SkippedStep
from mimkit.train.optim import guard, learning_rate, make_optimizer, set_learning_rate
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


@dataclass
class Progress:
    """What a run has behind it; part of every checkpoint.

    Args:
        step: finished optimizer steps.
        seconds: time spent in them, of all processes that one after the other trained this run.
        skipped: steps that were skipped because they were not finite.
    """

    step: int
    seconds: float
    skipped: list[SkippedStep]

    def state(self) -> dict[str, object]:
        """Returns plain data for the checkpoint."""
        return {"seconds": self.seconds, "skipped": [asdict(item) for item in self.skipped]}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Computes in bfloat16 where `uses_bfloat16` says so."""
    enabled = uses_bfloat16(device, precision)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def uses_bfloat16(device: torch.device, precision: str) -> bool:
    """Whether the recipe's precision means bfloat16 on this device: "auto" does on CUDA only.

    On CPUs without matrix units bfloat16 is far slower than float32, so it is never a default.
    """
    return precision == "bfloat16" or (precision == "auto" and device.type == "cuda")


def total_steps(train: TrainSection, num_images: int) -> int:
    """Number of optimizer steps of the run."""
    if train.total_steps is not None:
        return train.total_steps
    assert train.total_epochs is not None  # the schema demands exactly one of the two
    return max(1, round(train.total_epochs * num_images / train.batch_size))


def warmup_steps(train: TrainSection, num_images: int) -> int:
    """Number of warm-up steps of the run."""
    if train.warmup_epochs is not None:
        return round(train.warmup_epochs * num_images / train.batch_size)
    return train.warmup_steps or 0


class Loop:
    """The state of one pre-training: module, optimizer, how far it is.

    Args:
        pretrainer: the module.
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
        # What computes a step from a batch; may be set to the module compiled or wrapped.
        self.forward: nn.Module = pretrainer
        self.train = train
        self.total = total_steps(train, num_images)
        self.warmup = warmup_steps(train, num_images)
        self.seed = seed
        self.world = world
        self.folder = folder
        self.hooks = hooks
        self.optimizer = make_optimizer(pretrainer, train)
        self.progress = Progress(0, 0.0, [])
        self.means = Means(world)

    def resume(self) -> None:
        """Goes on from the newest whole checkpoint, if there is one.

        Raises: DataError if there are checkpoints, but none can be used.
        """
        found = checkpoint.latest(self.folder, self.hooks.report)
        if found is not None:
            checkpoint.restore(found, self.pretrainer, self.optimizer)
            state: dict[str, Any] = found.state
            skipped = [SkippedStep(**item) for item in state["skipped"]]
            self.progress = Progress(found.step, float(state["seconds"]), skipped)
            if "interval" in state:  # not in an import
                self.means.restore(state["interval"], found.part("extra."))

    def run(self, batches: Iterator[Batch], request: Request) -> None:
        """Trains to the last step.

        Args:
            batches: from the step that `resume` found on.
            request: set by a signal; the loop then checkpoints and leaves.

        Raises: Interrupted after a signal; TrainingError if steps in a row are not finite.
        """
        self.pretrainer.train()
        guard_ = Guard(self.pretrainer, self.progress.skipped, self.progress.step)
        means = self.means
        # On the CPU reading a flag costs nothing; elsewhere it waits for the device.
        read_every = 1 if self.world.device.type == "cpu" else self.train.log_every_steps
        clock = time.perf_counter()
        for step in range(self.progress.step, self.total):
            batch = next(batches)
            lr = self.advance(step, batch, guard_, means)

            done = step + 1
            self.progress.step = done
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
            self.hooks.evaluate(done)
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

    def advance(self, step: int, batch: Batch, guard_: Guard, means: "Means") -> float:
        """Does all of a step but fetching its batch; returns the learning rate."""
        lr = learning_rate(
            step,
            total=self.total,
            warmup=self.warmup,
            peak=self.train.lr,
            floor=self.train.min_lr,
        )
        set_learning_rate(self.optimizer, lr)
        guard_.before()
        output, grad_norm, finite = self.step(step, batch)
        guard_.after(step, batch.index, finite)
        with self.hooks.phase("target"):
            self.pretrainer.after_step((step + 1) / self.total)
        means.add(output, grad_norm, finite)
        return lr

    def step(self, step: int, batch: Batch) -> tuple[StepOutput, Tensor, Tensor]:
        """One optimizer step; returns its output, gradient norm () and whether it counted ()."""
        # Dropout and its like follow from (seed, step, rank), so a checkpoint needs no such state.
        torch.manual_seed(hash((self.seed, step, self.world.rank)) % 2**63)
        self.optimizer.zero_grad()
        outputs = []
        for piece in batch.split(self.train.accumulate):
            with autocast(self.world.device, self.train.precision):
                output: StepOutput = self.forward(piece)
            with self.hooks.phase("backward"):
                torch.autograd.backward(output.loss / self.train.accumulate)
            outputs.append(output)
        limit = self.train.clip_norm if self.train.clip_norm is not None else float("inf")
        with self.hooks.phase("optimizer"):
            grad_norm = nn.utils.clip_grad_norm_(self.pretrainer.parameters(), limit)
            finite = torch.isfinite(grad_norm) & torch.isfinite(outputs[-1].loss)
            guard(self.optimizer, finite)
            self.optimizer.step()
        return outputs[-1], grad_norm, finite

    def _tell(self, skipped: list[SkippedStep]) -> None:
        for one in skipped:
            self.hooks.report(f"step {one.step}: not finite, skipped")

    def asked_to_stop(self, done: int, request: Request) -> bool:
        """True if a signal came; processes agree on it at the logging interval only."""
        if self.world.size == 1:
            return request.number is not None
        if done % self.train.log_every_steps:
            return False
        return self.world.any(request.number is not None)

    def save(self) -> None:
        """Writes a checkpoint, from the leading process."""
        interval, sums = self.means.state()
        if self.world.leads:
            checkpoint.save(
                self.folder,
                self.progress.step,
                self.pretrainer,
                self.optimizer,
                {**self.progress.state(), "interval": interval},
                extra=sums,
            )
        self.world.wait()


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

    def state(self) -> tuple[dict[str, object], dict[str, Tensor]]:
        """Returns the open interval for a checkpoint; every process must ask for it at once.

        Returns: plain data, and the sums, which become the means over processes in all of them:
            what is read in the end is the same.
        """
        data = {"names": self.names, "steps": self.steps, "seconds": self.seconds}
        return data, {} if self.sums is None else {"sums": self.world.mean(self.sums)}

    def restore(self, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Goes on with an interval that `state` gave."""
        self.names, self.steps = list(data["names"]), int(data["steps"])
        self.seconds = float(data["seconds"])
        self.sums = tensors["sums"].to(self.world.device) if "sums" in tensors else None
