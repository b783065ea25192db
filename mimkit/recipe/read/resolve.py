"""Writing a recipe out in full, so that a run folder says exactly what was done."""

import inspect
import platform
from typing import Any

import importlib_metadata
import tomli_w
from pydantic import BaseModel

from mimkit.recipe.options import NONE
from mimkit.recipe.tables import PartTable, Recipe

_HEADER = """\
# Written by mimkit with every default, so that running this file gives the same run again.
# [origin] records the versions it was written with; it is not read as a setting.

"""


def resolved(recipe: Recipe, header: str = _HEADER) -> str:
    """Returns the recipe as TOML text, every default and the origin of every part written out.

    Loading it gives an equal recipe. What is None is left out, as TOML has no such value,
    or is "none" where the default is something. The header is a comment for people.
    """
    losses = {
        name: {
            "part": term.loss.name,
            "prediction": term.prediction,
            "target": term.target,
            "weight": term.weight,
            **_options(term.loss),
        }
        for name, term in recipe.losses.items()
    }
    tree = {
        "name": recipe.name,
        "seed": recipe.seed,
        "data": _section(recipe.data),
        "augment": _section(recipe.augment),
        "masker": _part(recipe.masker),
        "encoder": _part(recipe.encoder),
        "targets": {name: _part(table) for name, table in recipe.targets.items()},
        "head": _part(recipe.head),
        "losses": losses,
        "train": _section(recipe.train),
        "evaluate": [_part(table) for table in recipe.evaluate],
        "origin": origin(recipe),
    }
    return header + tomli_w.dumps(tree)


def origin(recipe: Recipe) -> dict[str, Any]:
    """Returns the versions that a run of this recipe would use here."""
    return {
        "mimkit": importlib_metadata.version("mimkit"),
        "torch": importlib_metadata.version("torch"),
        "python": platform.python_version(),
        "parts": {name: f"{t.distribution} {t.version}" for name, t in recipe.parts.items()},
    }


def changes(written: dict[str, Any], recipe: Recipe) -> tuple[str, ...]:
    """Says where the ``[origin]`` of a resolved recipe differs from what is installed here."""
    now = origin(recipe)
    before = {**written, **(written["parts"] if isinstance(written.get("parts"), dict) else {})}
    return tuple(
        f"{name}: the recipe was written with {before[name]}, here it is {version}"
        for name, version in {**now, **now["parts"]}.items()
        if name != "parts" and before.get(name, version) != version
    )


def _section(section: BaseModel) -> dict[str, Any]:
    return section.model_dump(exclude_none=True)


def _part(table: PartTable) -> dict[str, Any]:
    return {"part": table.name, **_options(table)}


def _options(table: PartTable) -> dict[str, Any]:
    """Leaves out what is None by default, and writes down any other None."""
    declared = inspect.signature(table.cls).parameters
    return {
        name: NONE if value is None else value
        for name, value in table.options.items()
        if value is not None or declared[name].default is not None
    }
