"""``mimkit check``: a recipe built without weights, in one table."""

import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from mimkit.parts.records import Mask
from mimkit.recipe.build import Parts, build, construct
from mimkit.recipe.describe.listing import plain_table
from mimkit.recipe.options import NONE
from mimkit.recipe.problems import shown
from mimkit.recipe.read.resolve import resolved
from mimkit.recipe.schema import check as read
from mimkit.recipe.tables import Recipe


def check(reference: str, preset: str | None, overrides: Sequence[str], console: Console) -> None:
    """Reads and builds a recipe, then prints what it is and 'ok'.

    Raises: RecipeError with all of its problems.
    """
    recipe = read(reference, preset=preset, overrides=overrides)
    parts = build(recipe, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), device="meta")
    for number in range(len(recipe.evaluate)):
        construct(recipe, f"evaluate.{number}", parts.geometry)
    mask = parts.masker.sample(2, torch.Generator().manual_seed(recipe.seed))
    console.print(f"{recipe.name}, seed {recipe.seed}", style="bold")
    console.print(_parts(recipe, parts))
    for line in (
        *_lines(recipe, parts, mask),
        *_settings(recipe),
        *(f"note: {note}" for note in recipe.notes),
    ):
        console.print(line)
    console.print("ok", style="green")


def _parts(recipe: Recipe, parts: Parts) -> Table:
    modules: dict[str, nn.Module] = {"encoder": parts.encoder, "head": parts.head}
    modules |= {f"targets.{name}": target for name, target in parts.targets.items()}
    modules |= {f"losses.{term.name}": term.loss for term in parts.terms}
    table = plain_table("table", "part", "from", "parameters")
    for name, part in recipe.parts.items():
        module = modules.get(name)
        count = f"{sum(p.numel() for p in module.parameters()):,}" if module else ""
        table.add_row(name, part.name, f"{part.distribution} {part.version}", count)
    return table


def _settings(recipe: Recipe) -> Iterator[str]:
    """Says what the keys that the command line set have become."""
    tree = tomllib.loads(resolved(recipe))
    for key, place in recipe.places.items():
        if place.startswith("--"):
            value: Any = tree
            for name in key.split("."):
                value = value[int(name)] if isinstance(value, list) else value.get(name, NONE)
            yield f"set          {key} = {shown(value)}"


def _lines(recipe: Recipe, parts: Parts, mask: Mask) -> list[str]:
    grid, train = parts.geometry.grid, recipe.train
    groups, targets = mask.target.shape[1:]
    outputs = [f"{name} ({width.kind} of {width.size})" for name, width in parts.outputs.items()]
    views = [f"{v.name} ({v.image_size[0]} x {v.image_size[1]} px)" for v in parts.views]
    budget = (
        f"{train.total_steps:,} steps"
        if train.total_steps is not None
        else f"{train.total_epochs:g} epochs"
    )
    return [
        f"grid         {grid.rows} x {grid.cols} patches of {grid.patch_size} px",
        f"mask         {mask.context.shape[1]} patches enter, {int(mask.hidden[0].sum())} of them "
        f"hidden; {groups} x {targets} targets",
        f"width        {parts.geometry.embed_dim}",
        f"predictions  {', '.join(outputs)}",
        f"views        {', '.join(views)}",
        f"training     {budget} of {train.batch_size} images, {train.optimizer}",
    ]
