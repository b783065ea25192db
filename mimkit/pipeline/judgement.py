"""The recipe of a judgement: a finished run's, with other data or evaluations laid over it."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mimkit.data.intake.locate import labels_key
from mimkit.errors import DataError, RecipeError
from mimkit.files import writing
from mimkit.folder import RunFolder, is_whole
from mimkit.locks import is_taken, owner
from mimkit.ownership import LOCK
from mimkit.recipe.difference import differences
from mimkit.recipe.schema import DataSection, Recipe, load
from mimkit.train.encoder_file import read_record

_FIXED: Final = ("data.image_size", "data.patch_size")
"""What the encoder was trained for."""
_OF_THE_ENCODER: Final = (*("image_size", "patch_size", "mean", "std", "interpolation"), "workers")
"""What stays of ``[data]`` where the data become others."""


@dataclass(frozen=True)
class Wish:
    """How a finished run is to be judged; None and () mean as its recipe says.

    Args:
        dataset: a registered name, a folder, a Hugging Face id, an address.
        labels: labelled images for the evaluations, or a table of files and labels.
        data_path: where to look for the data first.
        evaluate: ``[[evaluate]]`` tables.
        settings: ``a.b=VALUE``, of ``[data]`` and ``evaluate`` alone.
    """

    dataset: str | None = None
    labels: str | None = None
    data_path: str | None = None
    evaluate: tuple[Mapping[str, Any], ...] | None = None
    settings: tuple[str, ...] = ()


def recipe_of(run: RunFolder, wish: Wish) -> Recipe:
    """Reads the recipe of a run as it is to be judged; it trains nothing.

    On other data images are resized and normalised as the encoder is used to, and evaluations that
    repeat the pre-training task are left out, unless they are named.

    Raises: RecipeError if the wish would make another encoder of it.
    """
    held = load(str(run.recipe))
    fixed: dict[str, Any] = {}
    if wish.dataset not in (None, held.data.name):
        record = read_record(run.path)
        normalised = {name: record[name] for name in ("mean", "std")}
        fixed["data"] = {**_unsaid(), **normalised, "name": wish.dataset}
        tables = zip(own_tables(run.recipe), held.evaluate, strict=True)
        fixed["evaluate"] = [raw for raw, table in tables if not table.cls.needs_targets]
    if wish.labels is not None:
        fixed.setdefault("data", {})[labels_key(wish.labels)] = wish.labels
    if wish.evaluate is not None:
        fixed["evaluate"] = list(wish.evaluate)
    asked = load(str(run.recipe), fixed=fixed, overrides=wish.settings, data_path=wish.data_path)
    for found in differences(held, asked):
        if found.key in _FIXED or found.key.partition(".")[0] not in ("data", "evaluate"):
            raise RecipeError(
                f"{run.path}, {found.key}: must stay {found.held}, with which its encoder was "
                f"trained, but is {found.asked}. Only data and evaluate can be set for a run that "
                "is finished."
            )
    return untrained(asked)


def _unsaid() -> dict[str, Any]:
    """What a recipe says of its own data alone, as if it had said nothing."""
    return {
        name: field.default
        for name, field in DataSection.model_fields.items()
        if name not in _OF_THE_ENCODER
    }


def untrained(recipe: Recipe) -> Recipe:
    """Returns the same recipe without a step to train, and without weights to begin with."""
    none: dict[str, Any] = {"total_steps": 0, "total_epochs": None, "extended": ()}
    none |= {"start_from": None, "start_sha256": None, "start_parts": ("encoder",)}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=none)})


def own_tables(recipe: Path) -> list[dict[str, Any]]:
    """Reads the ``[[evaluate]]`` tables of a recipe as they stand there."""
    tables: list[dict[str, Any]] = tomllib.loads(recipe.read_text("utf-8")).get("evaluate", [])
    return tables


def refuse_unfinished(run: RunFolder) -> None:
    """Refuses what is no finished run; a checkpoint that was imported is one.

    Raises: DataError that says how to finish it.
    """
    if not run.path.is_dir():
        raise DataError(f"{run.path}: there is no such folder. See what there is: ls runs/*/*")
    if not run.recipe.is_file():
        raise DataError(
            f"{run.path}: must be the folder of a finished run, but holds no recipe.toml. "
            "See what there is: ls runs/*/*"
        )
    with writing(run.path / LOCK):
        taken = is_taken(run.path / LOCK)
    if taken:
        raise DataError(
            f"{run.path}: process {owner(run.path / LOCK)} is writing into this run folder. Wait "
            "until it ends, then repeat this command."
        )
    if not is_finished(run):
        raise DataError(
            f"{run.path}: must be a finished run, but was not trained and evaluated to its end. "
            f"To finish it: mimkit run {run.path}"
        )


def is_finished(run: RunFolder) -> bool:
    """Whether a run has been trained and evaluated, or was imported and not gone on with since."""
    ledger = run.read_ledger()
    return is_whole(ledger) or (not ledger and (run.path / "encoder.safetensors").is_file())
