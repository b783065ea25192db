"""What a run cost, and on what it ran."""

import functools
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

import mimkit
from mimkit.data.source import Source
from mimkit.memory import peak_bytes
from mimkit.parts.records import Geometry
from mimkit.parts.target import Preparation
from mimkit.pipeline.current import Run
from mimkit.recipe.schema import TrainSection
from mimkit.train.precision import uses_bfloat16
from mimkit.train.progress import Progress
from mimkit.train.step import Pretrainer
from mimkit.train.trial import StepTrial

_ALWAYS: Final = ("prepare", "train", "evaluate")
"""Phases that are told also where they took no time."""
_SOURCE: Final = Path(__file__).resolve().parents[1]


def ledger(
    *,
    command: str,
    pretrainer: Pretrainer,
    geometry: Geometry,
    training: Source,
    test: Source,
    labelled: tuple[Source, Source] | None,
    train: TrainSection,
    device: torch.device,
    trial: StepTrial | None,
    earlier: Mapping[str, object],
    progress: Progress,
    seconds: Mapping[str, float],
    prepared: Mapping[str, Preparation],
    started: Mapping[str, object] | None,
) -> dict[str, object]:
    """Returns the content of ``ledger.json``; see the docs' page on run folders.

    What a trial of the steps showed, and the weights that it began with, are taken over from the
    ``earlier`` ledger where this call did not find them out.
    """
    grid = geometry.grid
    images = progress.step * train.batch_size
    return {
        "command": command,
        "mimkit": mimkit.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "git_commit": source_commit(_SOURCE),
        "device": device_name(device),
        "precision": "bfloat16" if uses_bfloat16(device, train.precision) else "float32",
        "accumulate": progress.choice.accumulate,
        "compiled": progress.choice.compiled,
        "compile_failure": progress.choice.compile_failure,
        "dataset": _dataset(training, test),
        **({} if labelled is None else {"labelled": _dataset(*labelled)}),
        "grid": f"{grid.rows} x {grid.cols} patches of {grid.patch_size} px",
        "parameters": count_parameters(pretrainer),
        "steps": progress.step,
        "images_seen": images,
        "seconds": {phase: spent for phase, spent in seconds.items() if spent or phase in _ALWAYS},
        "prepared": {
            name: {
                "title": done.title,
                "seconds": done.seconds,
                "flops": done.flops,
                "cached": done.cached,
                "facts": dict(done.facts),
            }
            for name, done in prepared.items()
        },
        "images_per_second": images / seconds["train"] if seconds.get("train") else None,
        "peak_memory_bytes": _peak_memory(device),
        "flops_per_image": trial.flops_per_image if trial else earlier.get("flops_per_image"),
        "skipped_steps": [asdict(item) for item in progress.skipped],
        **({} if started is None else {"started_from": started}),
    }


def write_ledger(current: Run, trial: StepTrial | None, progress: Progress) -> None:
    """Writes down in the run's folder what it has cost so far, in the process that leads."""
    if not current.world.leads:
        return
    current.folder.write_ledger(
        ledger(
            command=current.command,
            pretrainer=current.pretrainer,
            geometry=current.parts.geometry,
            training=current.train,
            test=current.test,
            labelled=current.labelled,
            train=current.recipe.train,
            device=current.world.device,
            trial=trial,
            earlier=(earlier := current.folder.read_ledger()),
            progress=progress,
            seconds={**current.seconds, "train": progress.seconds},
            prepared=current.prepared,
            started=current.start.record if current.start else earlier.get("started_from"),
        )
    )


def _dataset(training: Source, test: Source) -> dict[str, object]:
    return {
        "name": training.name,
        "fingerprint": training.fingerprint,
        "train_images": len(training),
        "test_images": len(test),
        **({} if training.scale is None else {"range": training.scale}),
        "skipped": [asdict(item) for source in (training, test) for item in source.unread()],
        **_masks(training, test),
        "notes": [source.note for source in (training, test) if source.note],
    }


def _masks(*sources: Source) -> dict[str, object]:
    """What was found of masks, where there are any on disk."""
    found = [
        {"what": each.masks.kind, "skipped": [asdict(item) for item in each.masks.skipped]}
        for each in sources
        if each.masks is not None and each.masks.kind
    ]
    return {"masks": found} if found else {}


def seconds_before(earlier: Mapping[str, Any]) -> dict[str, float]:
    """Returns the seconds of earlier calls by phase, from their ledger, to go on counting."""
    held = earlier.get("seconds", {})
    return {
        "prepare": held.get("prepare", 0.0),
        "evaluating": held.get("evaluate", 0.0) + held.get("evaluating", 0.0),
        "repeated": held.get("repeated", 0.0),
    }


def seconds_after(step: int, rows: Sequence[Mapping[str, float]]) -> float:
    """Adds up the seconds of training after ``step`` that rows of the log tell of."""
    seconds, before = 0.0, step
    for row in rows:
        if row["step"] > step and "time/step_ms" in row:
            seconds += row["time/step_ms"] / 1000 * (row["step"] - before)
            before = int(row["step"])
    return seconds


def count_parameters(pretrainer: Pretrainer) -> dict[str, int]:
    """Counts the weights of each part, those that are constants, and those that are trained."""
    return {
        "encoder": _count(pretrainer.encoder),
        "head": _count(pretrainer.head),
        "targets": _count(pretrainer.targets),
        "frozen": _constants(pretrainer),
        "trainable": sum(p.numel() for p in pretrainer.parameters() if p.requires_grad),
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _constants(module: nn.Module) -> int:
    """Counts weights that are constants (see `mimkit.freeze`), such as a tokenizer's."""
    kept = module.state_dict(keep_vars=True)
    return sum(buffer.numel() for name, buffer in module.named_buffers() if name not in kept)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_bytes()


def device_name(device: torch.device) -> str:
    """Names a device for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


@functools.cache
def source_commit(package: Path) -> str | None:
    """Names the commit of mimkit's own source, whatever folder the user stands in.

    Args:
        package: folder of the package, as it was imported.

    Returns: the hash, with "-dirty" if files were changed since; None if the package is not the
        top folder of a checkout that tracks it, as when it was installed.
    """
    if _git(package, "rev-parse", "--show-prefix") != f"{package.name}/":
        return None
    if not _git(package, "ls-files", "__init__.py"):
        return None
    return _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    # Variables such as GIT_DIR, which hooks set, would point at another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
