"""Measuring what a method costs here, in a process of its own.

``python -m mimkit.study.measuring RECIPE FILE [DEVICE]`` prepares the targets, which all runs
then find in the cache, times a few steps, and writes a `Trial` and what the evaluations need. For a
plan alone nothing is prepared: `Target.rehearse` tells what it would cost.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from rich.console import Console
from torch import Tensor

from mimkit.console import make_console
from mimkit.errors import MimkitError
from mimkit.evaluate.features import evaluation_mode
from mimkit.files import write_json
from mimkit.folder import RunFolder
from mimkit.memory import peak_bytes
from mimkit.pipeline.assemble import assemble, needs_targets, prepare, rehearse
from mimkit.pipeline.current import Run, subject
from mimkit.pipeline.ledger import count_parameters, device_name
from mimkit.recipe.schema import Recipe, load
from mimkit.recipe.settle import settle
from mimkit.study.filling import Repeated
from mimkit.study.records import Trial
from mimkit.train.distributed import join
from mimkit.train.glance import MOST_IMAGES, fewest, glance, seconds_per_image
from mimkit.train.loop import Hooks
from mimkit.train.precision import autocast
from mimkit.train.signals import Interrupted
from mimkit.train.stopwatch import Stopwatch
from mimkit.train.trial import StepTrial, synchronize

_REPEATS: Final = 2
_LONG: Final = 0.5
"""Seconds of what need not be repeated."""


def measure(
    recipe: Recipe, device: str | None, console: Console, *, rehearsed: bool = False
) -> dict[str, Any]:
    """Measures a recipe.

    Args:
        recipe: what would be run.
        device: where, or None.
        console: is told what is prepared.
        rehearsed: only estimate what preparing the targets would cost.

    Returns: ``trial``, the fields of a `Trial`; ``has_cls``, whether the encoder has a class token;
        ``evaluate_seconds``, an estimate for its evaluations, by evaluator; ``disk_bytes`` of its
        run folder.
    Raises: MimkitError for everything that a run of it would refuse at once.
    """
    with join(device) as world, TemporaryDirectory() as scratch, RunFolder(Path(scratch)) as folder:
        quickly = Repeated if rehearsed else nullcontext
        with quickly():
            current = assemble(recipe, folder, world, console, announce=False)
        if not needs_targets(recipe):
            prepare(current, current.recipe)
        elif rehearsed:
            rehearse(current)
        else:
            prepare(current, settle(recipe, console.print))
        trains = current.recipe.train.total_steps != 0
        steps, image = _steps(current) if trains else _no_steps(current)
        encode_seconds, has_cls = _encode(current, image)
        prepared = current.prepared.values()
        trial = Trial(
            seconds_per_step=steps.seconds_per_step,
            flops_per_image=steps.flops_per_image,
            peak_memory_bytes=steps.peak_memory_bytes,
            prepare_seconds=sum(done.seconds for done in prepared),
            prepared={done.title: done.seconds for done in prepared},
            parameters=count_parameters(current.pretrainer),
            encode_seconds=encode_seconds,
            train_seconds=_train(current, image, quickly),
            fingerprint=current.train.fingerprint,
            num_images=len(current.train),
            device=device_name(world.device),
            prepare_flops=sum(done.flops for done in prepared),
            owed={done.key or done.title: done.seconds for done in prepared if not done.cached}
            if rehearsed
            else {},
        )
        return {
            "trial": asdict(trial),
            "has_cls": has_cls,
            "evaluate_seconds": evaluation_seconds(current, encode_seconds, trial.train_seconds),
            "disk_bytes": disk_bytes(trial.parameters),
        }


def evaluation_seconds(
    current: Run, encode_seconds: float, train_seconds: float
) -> dict[str, float]:
    """Estimates what the evaluations of a run take, by evaluator.

    Args:
        current: the run.
        encode_seconds: of one image through the frozen encoder.
        train_seconds: of one image through fine-tuning.
    """
    found: dict[str, float] = {}
    steps = current.recipe.train.total_steps or 0
    for number, evaluator in enumerate(current.evaluators):
        work = evaluator.work(subject(current, number))
        once = work.encoded * encode_seconds + work.trained * train_seconds + work.seconds
        looks = steps // evaluator.every_steps if evaluator.every_steps else 0
        name = current.recipe.evaluate[number].name
        found[name] = found.get(name, 0.0) + once * (1 + looks)
    return found


def disk_bytes(parameters: Mapping[str, int]) -> int:
    """Estimates what a run folder takes: two checkpoints, and the encoder once more.

    Each checkpoint holds the weights and AdamW's two moments.
    """
    return 4 * (6 * parameters["trainable"] + parameters["encoder"])


def read_trial(file: Path) -> tuple[Trial, dict[str, Any]]:
    """Reads what `measure` found: the trial, and the rest by name."""
    found = json.loads(file.read_text(encoding="utf-8"))
    return Trial(**found.pop("trial")), found


def _steps(current: Run) -> tuple[StepTrial, Tensor]:
    """Times steps of pre-training; also gives images to time the rest with."""
    train, device = current.recipe.train, current.world.device
    few = min(MOST_IMAGES, train.batch_size)
    start = time.perf_counter()
    batch = current.batches(batch_size=few)[0]
    load_seconds = (time.perf_counter() - start) / few / max(1, current.workers)
    batch = batch.to(device)
    if device.type == "cpu" and train.compile != "on":
        watch = Stopwatch(device)
        loop = current.loop(Hooks(phase=watch.phase))
        return glance(loop, watch, batch, load_seconds=load_seconds), batch.image
    return current.try_out(current.loop(), processes=train.processes), batch.image


def _no_steps(current: Run) -> tuple[StepTrial, Tensor]:
    """What pre-training costs where there is none, and images to time the rest with."""
    image = current.batches(batch_size=MOST_IMAGES)[0].to(current.world.device).image
    none = StepTrial(
        step_seconds=0.0,
        load_seconds=0.0,
        peak_memory_bytes=peak_bytes(),
        flops_per_image=0.0,
        compiled=False,
        overlaps=False,
    )
    return none, image


@torch.no_grad()
def _encode(current: Run, image: Tensor) -> tuple[float, bool]:
    """Times the frozen encoder; also says whether its tokens begin with a class token."""
    encoder, precision = current.pretrainer.encoder, current.recipe.train.precision
    prefix = 0

    def encode(part: Tensor) -> None:
        nonlocal prefix
        prefix = encoder.layers(part)[-1].prefix.shape[1]

    with evaluation_mode(encoder), autocast(image.device, precision):
        return _seconds(encode, image, first=1), prefix > 0


def _train(
    current: Run,
    image: Tensor,
    quickly: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> float:
    """Times forward and backward pass of the network that fine-tuning trains."""
    encoder = current.pretrainer.encoder
    with torch.random.fork_rng(devices=[]), quickly():
        backbone = encoder.backbone().to(image.device).train()

    def passes(part: Tensor) -> None:
        with autocast(image.device, current.recipe.train.precision):
            loss = backbone(part).square().mean()
        torch.autograd.backward(loss)

    return _seconds(passes, image, first=fewest(backbone, len(image)))


def _seconds(run: Callable[[Tensor], object], image: Tensor, *, first: int) -> float:
    """Times what is done to an image: on a CPU to as few as tell it, elsewhere to all at once."""
    number = first if image.device.type == "cpu" else len(image)
    took: dict[int, float] = {}
    while True:
        seconds = _once(run, image[:number])
        if seconds < _LONG / 2:  # then it counts that the first is slower
            seconds = min(_once(run, image[:number]) for _ in range(_REPEATS))
        took[number] = seconds
        if seconds >= _LONG / 4 or number == len(image):
            return seconds_per_image(took)
        number = min(4 * number, len(image))


def _once(run: Callable[[Tensor], object], image: Tensor) -> float:
    synchronize(image.device)
    start = time.perf_counter()
    run(image)
    synchronize(image.device)
    return time.perf_counter() - start


def _main(recipe: str, file: str, device: str | None = None) -> int:
    try:
        write_json(Path(file), measure(load(recipe), device, make_console()))
    except MimkitError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except Interrupted as error:  # a target that was being prepared goes on next time
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
