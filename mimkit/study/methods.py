"""From what a user calls a method, and a data set, to the recipe that will be run."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from mimkit.data.intake.locate import labels_key, registered
from mimkit.data.opening import open_source
from mimkit.data.source import Source
from mimkit.errors import RecipeError, nearest
from mimkit.recipe import registry
from mimkit.recipe.schema import Recipe, load, resolved
from mimkit.study.question import Asked

_MIN_STEPS: Final = 50
_MIN_BATCH: Final = 8
_COUNTS: Final = ("num_images", "num_test_images")
_SIDES: Final = 1000
"""How many images are measured where not all were looked at."""


@dataclass(frozen=True)
class Found:
    """The recipe of one method, before budget and evaluations are laid over it.

    Args:
        label: name of the method in the comparison.
        reference: what the user called it.
        source: name or file of the recipe.
        recipe: as it is for this data.
        tables: what was laid over the file for that.
        notes: the same in words.
        is_rival: it trains nothing: weights from elsewhere, which bring all that they need, so that
            what the command line says of recipes is none of theirs.
    """

    label: str
    reference: str
    source: str
    recipe: Recipe
    tables: Mapping[str, Any]
    notes: tuple[str, ...]
    is_rival: bool = False

    @property
    def digest(self) -> str:
        """Changes whenever the recipe does, were it by an edit of its file."""
        return self.digest_of({})

    def digest_of(self, versions: Mapping[str, str]) -> str:
        """The digest that it had under other versions of Python and torch, by name."""
        text, mark, origin = resolved(self.recipe).rpartition("\n[origin]\n")
        for name, version in versions.items():
            line = re.compile(rf'^{name} = ".*"$', re.MULTILINE)
            origin = line.sub(f'{name} = "{version}"', origin, count=1)
        return hashlib.sha256(f"{text}{mark}{origin}".encode()).hexdigest()


def find_methods(references: Sequence[str], asked: Asked) -> tuple[Found, ...]:
    """Finds a recipe for each method.

    A recipe's file or full name stands for itself. A method ``m`` on a data set ``d`` is the recipe
    ``m_d`` that is made for it, where a shorter name does (``m_cifar`` for cifar10); else the one
    whose images are nearest in size, with the data replaced (`_fitted`).

    Raises: RecipeError if there is none, or if a method is named twice.
    """
    found: list[Found] = []
    for reference in references:
        one = _find(reference, asked)
        if one.label in (other.label for other in found):
            raise RecipeError(
                f"compare: every method must be named once, but two are called '{one.label}'. "
                "Give their recipes different names."
            )
        found.append(one)
    return tuple(found)


def _find(reference: str, asked: Asked) -> Found:
    names = registry.recipe_files()
    if reference.endswith(".toml") or reference in names:
        recipe = _load(reference, asked, {})
        return _found(recipe.name, reference, reference, recipe, asked)
    candidates = _candidates(reference, list(names), asked)
    if not candidates:
        methods = sorted({name.rpartition("_")[0] for name in names if "_" in name})
        raise RecipeError(
            f"compare: '{reference}' must be a method with a recipe {reference}_DATASET, or the "
            f"name or file of a recipe, but is none.{nearest(reference, methods)} "
            "See: mimkit list recipes"
        )
    if asked.dataset is None:
        raise RecipeError(
            f"compare: to find the recipe of '{reference}', the data must be named: --dataset. "
            f"There are {', '.join(candidates)}."
        )
    source = _nearest_recipe(candidates, asked)
    return _found(reference, reference, source, _load(source, asked, {}), asked)


def _candidates(method: str, names: Sequence[str], asked: Asked) -> list[str]:
    """The recipes of a method that are called after a data set, or after how its name begins."""
    data = [entry.name for entry in registry.entries("datasets")]
    data += [asked.dataset] if asked.dataset else []
    return sorted(
        name
        for name in names
        if name.startswith(f"{method}_")
        and any(each.startswith(name.removeprefix(f"{method}_")) for each in data)
    )


def _nearest_recipe(candidates: Sequence[str], asked: Asked) -> str:
    """The recipe made for this data set, else the one whose images are nearest in size."""
    recipes = {name: load(name) for name in candidates}
    made = [name for name, recipe in recipes.items() if recipe.data.name == asked.dataset]
    if made:  # m_cifar10 before m_cifar
        return max(made, key=len)
    side = _side(_open(asked, next(iter(recipes.values()))))
    return min(
        recipes, key=lambda name: (abs(math.log(side / recipes[name].data.image_size[0])), name)
    )


def _found(label: str, reference: str, source: str, recipe: Recipe, asked: Asked) -> Found:
    tables: dict[str, Any] = {"name": label}
    notes: list[str] = []
    if asked.labels is not None:
        tables["data"] = {labels_key(asked.labels): asked.labels}
    if asked.dataset not in (None, recipe.data.name):
        data, said = _fitted(recipe, asked)
        tables["data"] = {**tables.get("data", {}), **data}
        notes += said
    return Found(label, reference, source, _load(source, asked, tables), tables, tuple(notes))


def _fitted(recipe: Recipe, asked: Asked) -> tuple[dict[str, Any], list[str]]:
    """Replaces the data of a recipe.

    Images of one small size keep their pixels: the recipe's grid is kept, so that masks, positions
    and cost stay as they are, and its patches grow or shrink. All others are resized to what the
    recipe has.
    """
    data: dict[str, Any] = {"name": asked.dataset}
    # So many of its own images: of others that says nothing.
    data |= {key: "none" for key in _COUNTS if getattr(recipe.data, key) is not None}
    dataset = registered(str(asked.dataset))
    fixed = dataset is not None and dataset.image_size is not None
    notes = [f"the data of {recipe.name} ({recipe.data.name}) is replaced by {asked.dataset}"]
    rows, cols = (side // recipe.data.patch_size for side in recipe.data.image_size)
    side = _side(_open(asked, recipe)) if fixed else min(recipe.data.image_size)
    patch_size = max(1, round(side / min(rows, cols)))
    if patch_size != recipe.data.patch_size:
        data["patch_size"] = patch_size
        data["image_size"] = [rows * patch_size, cols * patch_size]
        notes.append(
            f"patches of {recipe.data.patch_size} px become {patch_size} px, so that the grid of "
            f"{rows} x {cols} patches fits images of {side:.0f} px"
        )
    return data, notes


def fitted_batch(
    recipe: Recipe, images: float, num_images: int
) -> tuple[dict[str, Any], list[str]]:
    """Shrinks the batch where the budget would give fewer than 50 steps, or the data no batch.

    Returns: tables to lay over the recipe, and in words what was changed, and for what.

    The new batch is a power of two, at least 8, and the learning rate goes with the root of the
    batch.

    Args:
        recipe: of the method.
        images: that it may see.
        num_images: of the training split.
    """
    train = recipe.train
    most = min(images / _MIN_STEPS, num_images)
    if train.batch_size <= most:
        return {}, []
    batch_size = min(train.batch_size, max(_MIN_BATCH, 2 ** int(math.log2(max(1, most)))))
    if batch_size == train.batch_size:
        return {}, []
    factor = math.sqrt(batch_size / train.batch_size)
    tables = {
        "batch_size": batch_size,
        "lr": train.lr * factor,
        "min_lr": train.min_lr * factor,
    }
    if train.accumulate != "auto":
        piece = train.batch_size // train.accumulate
        whole = batch_size % piece == 0
        tables["accumulate"] = max(1, batch_size // piece) if whole else 1
    steps = int(images / batch_size)
    if num_images < images / _MIN_STEPS:
        why = f"as there are {num_images:,} training images"
    elif steps >= _MIN_STEPS:
        why = f"for at least {_MIN_STEPS} steps"
    else:
        why = f"the least; the budget is {steps:,} steps of that"
    note = (
        f"batches of {train.batch_size} become {batch_size}, {why}; the "
        f"learning rate goes with the root of that, from {train.lr:g} to {tables['lr']:.3g}"
    )
    return tables, [note]


def schedule(recipe: Recipe, total_steps: int, num_images: int) -> dict[str, Any]:
    """Scales the schedule of a recipe to a number of steps; the warm-up keeps its share."""
    train = recipe.train
    per_epoch = num_images / train.batch_size
    before = train.total_steps or (train.total_epochs or 0) * per_epoch
    warmup = train.warmup_steps if train.warmup_steps is not None else 0
    if train.warmup_epochs is not None:
        warmup = round(train.warmup_epochs * per_epoch)
    share = min(0.5, warmup / before) if before else 0.0
    return {
        "total_steps": total_steps,
        "warmup_steps": round(share * total_steps),
        "log_every_steps": max(1, min(train.log_every_steps, total_steps // 40)),
        "checkpoint_every_steps": max(1, min(train.checkpoint_every_steps, total_steps // 5)),
        **({"extended": []} if train.extended else {}),
    }


def load_for(found: Found, asked: Asked, tables: Mapping[str, Any]) -> Recipe:
    """Loads the recipe of a method with more tables laid over it."""
    own = Asked(None) if found.is_rival else asked
    return _load(found.source, own, _merged(found.tables, tables))


def lay_over(
    found: Found,
    asked: Asked,
    tables: Mapping[str, Any],
    *,
    label: str | None = None,
    reference: str | None = None,
    notes: Sequence[str] = (),
) -> Found:
    """The same method with more tables laid over its recipe, and perhaps another name."""
    return replace(
        found,
        label=label or found.label,
        reference=reference or found.reference,
        recipe=load_for(found, asked, tables),
        tables=_merged(found.tables, tables),
        notes=(*found.notes, *notes),
    )


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lays tables over others, key by key; what is no table is replaced."""
    both = {
        name: {**below[name], **table}
        for name, table in above.items()
        if isinstance(table, dict) and name in below
    }
    return {**below, **above, **both}


def _load(source: str, asked: Asked, tables: Mapping[str, Any]) -> Recipe:
    return load(
        source,
        preset=asked.preset,
        fixed=tables,
        overrides=asked.overrides,
        data_path=asked.data_path,
    )


def _open(asked: Asked, recipe: Recipe) -> Source:
    """Opens the training images that the user named."""
    data = recipe.data.model_copy(
        update={"name": asked.dataset, "path": asked.data_path, **dict.fromkeys(_COUNTS)}
    )
    return open_source(data, "train")


def _side(source: Source) -> float:
    """The usual short side of the images, in pixels."""
    few = torch.arange(min(_SIDES, len(source))) * len(source) // min(_SIDES, len(source))
    sizes = source.extent(few) if source.sizes is None else source.sizes
    return float(sizes.min(dim=1).values.float().median())
