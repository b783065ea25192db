"""Where the time of a step goes, and how near it comes to what the machine can do."""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table

from mimkit.folder import RunFolder
from mimkit.pipeline.assemble import open_run
from mimkit.pipeline.current import Run
from mimkit.recipe.schema import Recipe
from mimkit.train.distributed import join
from mimkit.train.guard import Guard
from mimkit.train.loop import Hooks
from mimkit.train.means import Means
from mimkit.train.precision import uses_bfloat16
from mimkit.train.stopwatch import Stopwatch
from mimkit.train.trial import StepTrial, synchronize, untouched

PHASES = ("data", "target", "encoder", "head", "loss", "backward", "optimizer", "core")


@dataclass(frozen=True)
class Bench:
    """What one recipe's step costs on this machine.

    Args:
        name: of the recipe.
        milliseconds: of one step, by phase; "data" is what it waits for its batch, "core" what
            mimkit itself adds.
        trial: time, memory and FLOPs of the step as it is trained (compiled if that pays), and the
            time of the data path by itself, with its loader processes.
        batch_size: images per step.
        peak_flops: of a large matrix product in the training precision.
        diagnoses: what targets say of themselves: ``<target>, <name>`` to a number.
    """

    name: str
    milliseconds: dict[str, float]
    trial: StepTrial
    batch_size: int
    peak_flops: float
    diagnoses: dict[str, float]

    @property
    def rate(self) -> float:
        """Images/s of the step, its batch at hand."""
        return self.batch_size / self.trial.step_seconds

    @property
    def loader_rate(self) -> float:
        """Images/s that the data path delivers by itself."""
        return self.batch_size / self.trial.load_seconds

    def table(self) -> Table:
        """Lays the figures out for people."""
        total = sum(self.milliseconds.values())
        table = Table("phase", "ms a step", "share", title=self.name, title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for phase in PHASES:
            milliseconds = self.milliseconds.get(phase, 0.0)
            table.add_row(phase, f"{milliseconds:.2f}", f"{milliseconds / total:.1%}")
        table.add_section()
        table.add_row("images/s", f"{self.rate:,.0f}", "")
        table.add_row(
            "loader images/s", f"{self.loader_rate:,.0f}", f"{self.loader_rate / self.rate:.1f} x"
        )
        table.add_row("peak memory", f"{self.trial.peak_memory_bytes / 2**30:.2f} GiB", "")
        table.add_row("GFLOP an image", f"{self.trial.flops_per_image / 1e9:.3f}", "")
        achieved = self.rate * self.trial.flops_per_image
        table.add_row(
            "of the matmul peak",
            f"{self.peak_flops / 1e12:.2f} TFLOP/s",
            f"{achieved / self.peak_flops:.1%}",
        )
        for name, value in self.diagnoses.items():
            table.add_row(name, f"{value:.4f}", "")
        return table


def bench(recipe: Recipe, *, device: str | None, steps: int, console: Console) -> Bench:
    """Measures ``steps`` training steps of a recipe, after a warm-up; trains nothing that stays."""
    with join(device) as world, TemporaryDirectory() as scratch, RunFolder(Path(scratch)) as folder:
        current = open_run(recipe, folder, world, console)
        trial = current.try_out(current.loop())
        console.print(f"measuring {steps} steps of {recipe.name}")
        split = _split(current, steps)
        # The batch of the split is at hand: what a step waits for the next one is the trial's.
        split["data"] = steps * (trial.seconds_per_step - trial.step_seconds)
        return Bench(
            name=recipe.name,
            milliseconds={phase: 1000 * seconds / steps for phase, seconds in split.items()},
            trial=trial,
            batch_size=recipe.train.batch_size,
            peak_flops=matmul_peak(
                world.device, uses_bfloat16(world.device, recipe.train.precision)
            ),
            diagnoses=_diagnoses(current),
        )


def matmul_peak(device: torch.device, bfloat16: bool) -> float:
    """Measures FLOP/s of a large matrix product, the practical ceiling of a step."""
    size = 8192 if device.type == "cuda" else 1536
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        synchronize(device)
        start = time.perf_counter()
        a @ a
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _split(current: Run, steps: int) -> dict[str, float]:
    """Runs the loop's own step, eager, with a stopwatch on every part; two come before it.

    It is one batch, again and again: to make others would take longer than all else.
    """
    pretrainer = current.pretrainer
    clock = Stopwatch(current.world.device)
    loop = current.loop(Hooks(phase=clock.phase))
    pretrainer.train()
    guard = Guard(pretrainer, [])
    means = Means(current.world)
    (batch,) = current.stream(0, 1)
    with ExitStack() as stack:
        stack.enter_context(untouched(pretrainer, loop.optimizer))
        for target in pretrainer.targets.values():
            stack.enter_context(clock.watch(target, "target"))
        stack.enter_context(clock.watch(pretrainer.encoder, "encoder"))
        stack.enter_context(clock.watch(pretrainer.head, "head"))
        for loss in pretrainer.losses.values():
            stack.enter_context(clock.watch(loss, "loss"))
        for step in range(steps + 2):
            if step == 2:
                clock.seconds.clear()
            with clock.phase("core"):
                loop.advance(step, batch, guard, means)
    return dict(clock.seconds)


def _diagnoses(current: Run) -> dict[str, float]:
    batch = current.heldout_batch(16)
    return {
        f"{name}, {key.replace('_', ' ')}": value
        for name, target in current.parts.targets.items()
        for key, value in target.diagnose(batch).items()
    }
