"""Deciding what options such as ``"auto"`` mean here, before a recipe is written out in full."""

from collections.abc import Callable
from typing import Any

from mimkit.recipe.tables import PartTable, Recipe


def settle(recipe: Recipe, say: Callable[[str], None]) -> Recipe:
    """Returns the recipe with every part's options as `Part.settle` decides them.

    Raises: MimkitError if a part finds that it cannot be had here.
    """
    return _with_options(
        recipe, {key: dict(t.cls.settle(t.options, say)) for key, t in recipe.parts.items()}
    )


def settle_as(recipe: Recipe, settled: Recipe, held: Recipe) -> Recipe:
    """Returns the recipe with what had to be settled decided as an earlier run decided it.

    A run goes on with the tokenizer it began with, also if another one would be chosen today.

    Args:
        recipe: as the user wrote it.
        settled: what `settle` makes of it now.
        held: what the run folder holds.
    """
    options = {}
    for key, table in recipe.parts.items():
        earlier = held.parts.get(key)
        open_ = {
            name
            for name, value in settled.parts[key].options.items()
            if value != table.options[name]
        }
        known = earlier.options if earlier is not None and earlier.cls is table.cls else {}
        options[key] = {
            name: known.get(name, value) if name in open_ else value
            for name, value in settled.parts[key].options.items()
        }
    return _with_options(recipe, options)


def _with_options(recipe: Recipe, options: dict[str, dict[str, Any]]) -> Recipe:
    def part(key: str, table: PartTable) -> PartTable:
        return table.model_copy(update={"options": options[key]})

    return recipe.model_copy(
        update={
            "masker": part("masker", recipe.masker),
            "encoder": part("encoder", recipe.encoder),
            "targets": {n: part(f"targets.{n}", t) for n, t in recipe.targets.items()},
            "head": part("head", recipe.head),
            "losses": {
                name: term.model_copy(update={"loss": part(f"losses.{name}", term.loss)})
                for name, term in recipe.losses.items()
            },
            "evaluate": [part(f"evaluate.{n}", t) for n, t in enumerate(recipe.evaluate)],
        }
    )
