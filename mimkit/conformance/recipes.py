"""Checks of the recipes that a distribution brings."""

import json
from pathlib import Path
from typing import Any, Final

from mimkit.conformance.checks import NotApplicableError, check, require
from mimkit.conformance.specimen import Specimen
from mimkit.console import make_console
from mimkit.pipeline.run import run
from mimkit.recipe.describe.summary import check as check_recipe
from mimkit.recipe.document import parse
from mimkit.recipe.schema import load
from mimkit.recipe.tables import Recipe

_STEPS: Final = 4
_TRAIN: Final = {
    "total_steps": _STEPS,
    "batch_size": 8,
    "accumulate": 1,
    "processes": 1,
    "warmup_steps": 1,
    "log_every_steps": 1,
    "checkpoint_every_steps": 2,
}


def _presets(specimen: Specimen) -> list[str | None]:
    text = Path(specimen.entry.value).read_text(encoding="utf-8")
    return [None, *parse(text, specimen.entry.value).tree.get("presets", {})]


@check("recipes", gate=True)
def can_be_built(specimen: Specimen) -> None:
    """``mimkit run`` refuses it, or one of its presets."""
    for preset in _presets(specimen):
        check_recipe(specimen.entry.value, preset, [], make_console(quiet=True))


@check("recipes")
def trains_and_resumes(specimen: Specimen) -> None:
    """A run that was killed ends with other weights than one that was not."""
    recipe = _drawn(specimen)
    whole = run(
        recipe, out=specimen.workdir / "whole", device="cpu", console=make_console(quiet=True)
    )
    again = run(
        recipe, out=specimen.workdir / "again", device="cpu", console=make_console(quiet=True)
    )
    rows = [json.loads(row) for row in (whole / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss/total"] for row in rows if "loss/total" in row]
    require(
        len(losses) == _STEPS and all(-1e9 < loss < 1e9 for loss in losses),
        f"the losses of {_STEPS} steps are {losses}",
        "Look for a division by zero or too large first weights.",
    )
    weights = [(folder / "encoder.safetensors").read_bytes() for folder in (whole, again)]
    require(
        weights[0] == weights[1],
        "two runs with the same seed end with other weights",
        "Run the checks of its parts first: mimkit check DISTRIBUTION.",
    )
    for file in (again / "checkpoints").glob(f"step_{_STEPS:08}.*"):
        file.unlink()
    (again / "encoder.safetensors").unlink()
    run(recipe, out=specimen.workdir / "again", device="cpu", console=make_console(quiet=True))
    require(
        (again / "encoder.safetensors").read_bytes() == weights[0],
        "stopped after 2 of 4 steps and resumed, it ends with other weights",
        "Keep what changes in parameters or persistent buffers.",
    )


def _drawn(specimen: Specimen) -> Recipe:
    """The first preset on drawn images, cut down to four steps and small targets."""
    for preset in _presets(specimen):
        recipe = load(specimen.entry.value, preset=preset)
        if recipe.data.name != "shapes":
            continue
        if recipe.train.total_steps is None:
            continue
        targets = {name: dict(table.cls.miniature) for name, table in recipe.targets.items()}
        fixed: dict[str, Any] = {
            "data": {"num_images": 32, "num_test_images": 16, "workers": 0},
            "train": _TRAIN,
            "targets": {name: options for name, options in targets.items() if options},
            "evaluate": [],
        }
        if recipe.train.warmup_epochs is not None:
            raise NotApplicableError("its warm-up is given in epochs")
        return load(specimen.entry.value, preset=preset, fixed=fixed)
    raise NotApplicableError(
        "no preset of it trains for a number of steps on drawn images (shapes)"
    )
