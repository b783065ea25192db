"""Measuring what a method costs here, in a process of its own.

``python -m mimkit.comparison.trial RECIPE FILE [DEVICE]`` prepares the targets, which all runs then
find in the cache, times a few steps, and writes a `Trial` and what the evaluations need.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from torch import Tensor

from mimkit.comparison.records import Trial
from mimkit.console import make_console
from mimkit.errors import MimkitError
from mimkit.evaluate.features import evaluation_mode
from mimkit.files import write_json
from mimkit.pipeline.current import Run, build_evaluators, open_run, subject
from mimkit.pipeline.ledger import count_parameters, device_name
from mimkit.recipe.schema import load
from mimkit.report.folder import RunFolder
from mimkit.train.distributed import join
from mimkit.train.precision import autocast
from mimkit.train.signals import Interrupted
from mimkit.train.trial import synchronize, untouched

_IMAGES = 32
_REPEATS = 3


def measure(recipe: Path, device: str | None, console: Console) -> dict[str, object]:
    """Measures a recipe.

    Returns: ``trial``, the fields of a `Trial`; ``has_cls``, whether the encoder has a class token;
        ``evaluate_seconds``, an estimate for its evaluations; ``disk_bytes`` of its run folder.
    Raises: MimkitError for everything that a run of it would refuse at once.
    """
    with join(device) as world, TemporaryDirectory() as scratch, RunFolder(Path(scratch)) as folder:
        current = open_run(load(str(recipe)), folder, world, console, announce=False)
        train = current.recipe.train
        steps = current.try_out(current.loop(), processes=train.processes)
        image = current.batches()[0].to(world.device).image[:_IMAGES]
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
            train_seconds=_train(current, image),
            fingerprint=current.train.fingerprint,
            num_images=len(current.train),
            device=device_name(world.device),
            prepare_flops=sum(done.flops for done in prepared),
        )
        evaluate_seconds = 0.0
        for number, evaluator in enumerate(build_evaluators(current)):
            work = evaluator.work(subject(current, number))
            once = work.encoded * encode_seconds + work.trained * trial.train_seconds + work.seconds
            looks = (
                (train.total_steps or 0) // evaluator.every_steps if evaluator.every_steps else 0
            )
            evaluate_seconds += once * (1 + looks)
        return {
            "trial": asdict(trial),
            "has_cls": has_cls,
            "evaluate_seconds": evaluate_seconds,
            # Two checkpoints of weights and AdamW's two moments, and the encoder once more.
            "disk_bytes": 4 * (6 * trial.parameters["trainable"] + trial.parameters["encoder"]),
        }


def read_trial(file: Path) -> tuple[Trial, dict[str, float]]:
    """Reads what `measure` found: the trial, and the other figures by name."""
    found = json.loads(file.read_text(encoding="utf-8"))
    return Trial(**found.pop("trial")), found


@torch.no_grad()
def _encode(current: Run, image: Tensor) -> tuple[float, bool]:
    """Times the frozen encoder; also says whether its tokens begin with a class token."""
    encoder, precision = current.pretrainer.encoder, current.recipe.train.precision
    with evaluation_mode(encoder), autocast(image.device, precision):
        tokens = encoder.layers(image)[-1]
        synchronize(image.device)
        start = time.perf_counter()
        for _ in range(_REPEATS):
            encoder.layers(image)[-1].patches.sum().item()
    seconds = (time.perf_counter() - start) / (_REPEATS * len(image))
    return seconds, tokens.prefix.shape[1] > 0


def _train(current: Run, image: Tensor) -> float:
    """Times forward and backward pass of the network that fine-tuning trains."""
    encoder = current.pretrainer.encoder
    with torch.random.fork_rng(devices=[]):
        backbone = encoder.backbone().to(image.device).train()
    start = 0.0
    with untouched(backbone):
        for repeat in range(1 + _REPEATS):
            if repeat == 1:  # the first is slower
                synchronize(image.device)
                start = time.perf_counter()
            with autocast(image.device, current.recipe.train.precision):
                loss = backbone(image).square().mean()
            torch.autograd.backward(loss)
        synchronize(image.device)
        seconds = time.perf_counter() - start
    return seconds / (_REPEATS * len(image))


def _main(recipe: str, file: str, device: str | None = None) -> int:
    try:
        write_json(Path(file), measure(Path(recipe), device, make_console()))
    except MimkitError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except Interrupted as error:  # a target that was being prepared goes on next time
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
