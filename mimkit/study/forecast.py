"""What methods would take on GPUs that are not here: an estimate, from what is counted here."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from rich import box
from rich.table import Table

from mimkit import words
from mimkit.console import make_console
from mimkit.errors import RecipeError
from mimkit.recipe.schema import Recipe
from mimkit.study.counting import Counted, count
from mimkit.study.gauge import Pooled, measurers
from mimkit.study.gpus import Fleet
from mimkit.study.records import Method, Plan, Trial
from mimkit.study.scaling import LAUNCH, LINKS, LOADERS, UTILISATION, Step, Way, step

_WAYS: Final[tuple[Way, Way]] = ("ddp", "fsdp")


@dataclass(frozen=True)
class Forecast:
    """One method on a fleet.

    Args:
        way: `train.parallel` that is reckoned with: the recipe's, or the other if that alone fits.
        steps: a step either way; without "fsdp" where it refuses the method.
        reads: whether images are read from files while it trains.
    """

    way: Way
    steps: dict[Way, Step]
    reads: bool

    @property
    def step(self) -> Step:
        """A step, the way that is reckoned with."""
        return self.steps[self.way]


class Foreseen(Pooled):
    """A gauge that counts here, and estimates for a fleet; it prepares and leaves nothing.

    Args:
        pool: of processes, that count.
        fleet: for which.
    """

    def __init__(self, pool: Executor, fleet: Fleet) -> None:
        super().__init__(pool)
        self.fleet = fleet
        self.forecasts: dict[str, Forecast] = {}

    def measure(self, recipe: Recipe, label: str) -> tuple[Trial, dict[str, Any]]:
        """Counts a recipe in another process.

        Raises: RecipeError if it cannot be run, or its batch not be shared out.
        """
        speed = UTILISATION * self.fleet.gpu.tflops * 1e12
        counted: Counted = self.ask(label, _count, recipe, speed)
        found = self.forecasts[label] = foresee(counted, recipe, self.fleet, label)
        trial = Trial(
            seconds_per_step=found.step.seconds,
            flops_per_image=counted.footprint.flops_per_image,
            peak_memory_bytes=found.step.memory,
            prepare_seconds=sum(done.seconds for done in counted.prepared),
            prepared={done.title: done.seconds for done in counted.prepared},
            parameters=counted.parameters,
            encode_seconds=counted.encode_seconds,
            train_seconds=counted.train_seconds,
            fingerprint=counted.fingerprint,
            num_images=counted.num_images,
            device=str(self.fleet),
            prepare_flops=sum(done.flops for done in counted.prepared),
            owed={
                done.key or done.title: done.seconds for done in counted.prepared if not done.cached
            },
        )
        return trial, {
            "has_cls": counted.has_cls,
            "evaluate_seconds": counted.evaluate_seconds,
            "disk_bytes": counted.disk_bytes,
        }


@contextmanager
def foreseeing(fleet: Fleet, jobs: int) -> Iterator[Foreseen]:
    """Keeps processes ready that count, until leaving."""
    with measurers(jobs) as pool:
        yield Foreseen(pool, fleet)


def foresee(counted: Counted, recipe: Recipe, fleet: Fleet, label: str) -> Forecast:
    """Estimates a step of a method on a fleet.

    Raises: RecipeError if the GPUs cannot share its batch out evenly.
    """
    train, made = recipe.train, counted.footprint
    if train.batch_size % fleet.size:
        most = max(n for n in range(1, fleet.size) if train.batch_size % n == 0)
        raise RecipeError(
            f"--on: batches of '{label}' have {train.batch_size:,} images, which must be a "
            f"multiple of the GPUs, but these are {fleet.size:,}. With this batch at most {most:,} "
            "of them have work; a larger --budget leaves the recipe's own batch as it is."
        )
    share = train.batch_size // fleet.size
    accumulate = None if train.accumulate == "auto" else train.accumulate
    ways = [way for way in _WAYS if way == "ddp" or not made.unspreadable]
    steps = {way: step(made, way, fleet, share, accumulate) for way in ways}
    first = sorted(ways, key=lambda way: way != train.parallel)
    way = next((way for way in first if steps[way].fits), first[0])
    return Forecast(way, steps, made.load_seconds > 0)


def assumptions(fleet: Fleet) -> list[str]:
    """Says that all is estimated, and from what."""
    link = f"{fleet.gpu.link:,.0f} GB/s between GPUs of a machine"
    if fleet.nodes > 1:
        link += f", {fleet.network:,.0f} Gbit/s from machine to machine"
    return [
        f"ESTIMATE for {fleet}: nothing was measured on such a machine.",
        f"Assumed: {UTILISATION:.0%} of {fleet.gpu.tflops:,.0f} TFLOP/s, {LINKS:.0%} of {link}; "
        f"{1e6 * LAUNCH:g} µs to call an operator; {LOADERS} loader processes a GPU, as fast as "
        "one here; all of these beside each other.",
        f"GPU: {fleet.gpu.memory:,.0f} GB, {fleet.gpu.bandwidth:,.0f} GB/s of memory "
        f"({fleet.gpu.source}). Counted here: operations, weights and memory of a step.",
    ]


def table(plan: Plan, forecasts: dict[str, Forecast], fleet: Fleet) -> Table:
    """Lays out what bounds each method, and what it costs."""
    found = Table(
        "",
        *(method.label for method in plan.methods),
        title=f"one run on {fleet}, estimated",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in found.columns[1:]:
        column.justify = "right"
    found.columns[0].no_wrap = True
    rows: dict[str, Callable[[Forecast, Method], str]] = {
        "images a GPU": lambda f, m: f"{m.batch_size // fleet.size:,}",
        "step": lambda f, m: _milliseconds(f.step.seconds),
        "bound by": lambda f, m: f.step.bound,
        "  compute": lambda f, m: _milliseconds(f.step.compute),
        "  launch": lambda f, m: _milliseconds(f.step.launch),
        "  network": lambda f, m: _milliseconds(f.step.network),
        "  reading": lambda f, m: _milliseconds(f.step.reading) if f.reads else words.MISSING,
        "sent a GPU": lambda f, m: words.memory(f.step.sent),
        "images/s": lambda f, m: f"{m.batch_size / f.step.seconds:,.0f}",
        "memory, ddp": lambda f, m: _memory(f, "ddp"),
        "memory, fsdp": lambda f, m: _memory(f, "fsdp"),
        "parallel": lambda f, m: f.way,
        "GPU-hours": lambda f, m: _hours(m, fleet),
    }
    for name, written in rows.items():
        found.add_row(name, *(written(forecasts[m.label], m) for m in plan.methods))
    total = sum(_gpu_hours(m, fleet) for m in plan.methods) * len(plan.seeds)
    found.caption = f"{total:,.3g} GPU-hours for all {len(plan.cells)} runs"
    return found


def remarks(plan: Plan, forecasts: dict[str, Forecast]) -> list[str]:
    """Says what stands in no row: which ways fit, and what the estimate leaves out."""
    said = ["Of judging, what no network does is taken to last as long as here."]
    for label in (method.label for method in plan.methods):
        found = forecasts[label]
        fitting = [way for way, one in found.steps.items() if one.fits]
        if not fitting:
            said.append(
                f"{label}: fits these GPUs neither way. More GPUs with train.parallel=fsdp, GPUs "
                "with more memory, or a smaller encoder."
            )
        elif len(fitting) < len(found.steps):
            said.append(f"{label}: fits with train.parallel={fitting[0]} alone.")
    if any(method.trial.owed for method in plan.methods):
        said.append("Preparing targets is taken to last as long as here; GPU-hours are without it.")
    return said


def _memory(found: Forecast, way: Way) -> str:
    if way not in found.steps:
        return "refused"
    one = found.steps[way]
    text = words.memory(one.memory)
    if not one.fits:
        return f"{text}, does not fit"
    return text if one.pieces == 1 else f"{text} in {one.pieces} pieces"


def _gpu_hours(method: Method, fleet: Fleet) -> float:
    """Of one run: all GPUs are taken while one of them judges."""
    return (method.pretrain_seconds + method.evaluate_seconds) * fleet.size / 3600


def _hours(method: Method, fleet: Fleet) -> str:
    return f"{_gpu_hours(method, fleet):,.3g}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.3g}{words.NARROW}ms"


def _count(recipe: Recipe, speed: float) -> Counted:
    return count(recipe, make_console(quiet=True), flops_per_second=speed)
