"""From a recipe to parts that fit together."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from mimkit.errors import MimkitError, PluginError, RecipeError
from mimkit.parts.encoder import Encoder
from mimkit.parts.head import Head
from mimkit.parts.loss import Term
from mimkit.parts.masker import Masker
from mimkit.parts.records import Geometry, Grid, View, Width
from mimkit.parts.target import Target
from mimkit.recipe.fit import refuse_misfits
from mimkit.recipe.tables import PartTable, Recipe

_WORTH_COUNTING: Final = 10**9
"""Largest option times all whole ones, from which on a part's size is counted first."""


@dataclass(frozen=True)
class Parts:
    """The parts of one recipe.

    Args:
        geometry: what every part may know, settled.
        masker: chooses what is hidden.
        encoder: what is kept after pre-training.
        targets: name to target.
        head: makes the predictions.
        terms: the summands of the loss.
        outputs: prediction to the width that the head gives.
        views: the renderings of an image that the parts need; the first is the encoder's.
    """

    geometry: Geometry
    masker: Masker
    encoder: Encoder
    targets: dict[str, Target]
    head: Head
    terms: tuple[Term, ...]
    outputs: Mapping[str, Width]
    views: tuple[View, ...]


def build(
    recipe: Recipe,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: str | torch.device = "cpu",
    start: Callable[[Encoder, Grid], None] | None = None,
) -> Parts:
    """Builds the parts of a recipe, with weights that follow from its seed.

    Each part's weights are drawn from the seed and the part's table alone, on the CPU: exchanging
    one part leaves the others' first weights as they were, and so does another device.

    Args:
        recipe: what to build.
        mean: of the data set; what the recipe itself says goes before it.
        std: of the data set, likewise.
        device: where to put the modules; on ``"meta"`` no weights are made.
        start: gives the encoder other first weights, before targets make teachers of it.

    Raises: RecipeError with the table, if a part refuses its options or parts do not fit together.
    """
    device = torch.device(device)
    maker = _Maker(recipe, torch.device("meta" if device.type == "meta" else "cpu"))
    data = recipe.data
    height, width = data.image_size
    grid = Grid(height // data.patch_size, width // data.patch_size, data.patch_size)
    image = View("image", data.image_size, data.mean or mean, data.std or std, data.interpolation)

    geometry = Geometry(grid, data.channels)
    masker: Masker = maker.make("masker", geometry)
    encoder: Encoder = maker.make("encoder", geometry)
    geometry = dataclasses.replace(geometry, embed_dim=encoder.embed_dim)
    targets: dict[str, Target] = {
        name: maker.make(f"targets.{name}", geometry) for name in recipe.targets
    }
    views = (image, *(view for target in targets.values() for view in target.views))
    refuse_misfits(recipe, masker, encoder, targets, views)
    outputs = {term.prediction: targets[term.target].width for term in recipe.losses.values()}
    geometry = dataclasses.replace(geometry, outputs=outputs)
    head: Head = maker.make("head", geometry)
    outputs = {**outputs, **head.own_widths}
    geometry = dataclasses.replace(geometry, outputs=outputs)
    terms = tuple(
        Term(t.name, t.prediction, t.target, maker.make(f"losses.{t.name}", geometry), t.weight)
        for t in recipe.losses.values()
    )
    if start is not None:
        start(encoder, grid)
    for target in targets.values():
        target.bind(encoder)
    modules: list[nn.Module] = [encoder, head, *targets.values(), *(t.loss for t in terms)]
    for module in modules:
        module.to(device)
    unique_views = tuple(dict.fromkeys(views))
    return Parts(geometry, masker, encoder, targets, head, terms, outputs, unique_views)


def construct(recipe: Recipe, table: str, geometry: Geometry) -> Any:
    """Makes the part of one table of a recipe, such as ``"encoder"`` or ``"evaluate.0"``.

    Raises: RecipeError that says where the table stands, if the part refuses its options;
        PluginError if it fails instead.
    """
    part: PartTable = recipe.parts[table]
    try:
        return part.cls(geometry, **part.options)
    except MimkitError as error:
        raise type(error)(f"{recipe.where(table)}: {error}") from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a part may raise anything
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise
        words = " ".join(str(error).split())
        raise PluginError(
            f"{recipe.where(table)}: '{part.name}' ({part.distribution} {part.version}) cannot be "
            f"made with these options: {type(error).__name__}: {words} Try its defaults; --debug "
            f"shows where it fails. See: mimkit list {part.kind} {part.name}"
        ) from error


@dataclass(frozen=True)
class _Maker:
    recipe: Recipe
    device: torch.device

    def make(self, table: str, geometry: Geometry) -> Any:
        """Constructs a part with weights from (seed, table); the global state stays as it was."""
        if self.device.type != "meta" and table != "masker":
            _refuse_giant(self.recipe, table, geometry)
        digest = hashlib.sha256(f"{self.recipe.seed} {table}".encode()).digest()
        # Maskers draw real masks on the CPU, also when nothing else is real.
        device = torch.device("cpu") if table == "masker" else self.device
        with torch.random.fork_rng(devices=[]), device:
            torch.default_generator.manual_seed(int.from_bytes(digest[:7]))
            return construct(self.recipe, table, geometry)


def _refuse_giant(recipe: Recipe, table: str, geometry: Geometry) -> None:
    """Counts the numbers that a part would hold before they are made.

    Raises: RecipeError if they need more memory than the machine has.
    """
    sizes = [value for value in recipe.parts[table].options.values() if type(value) is int]
    if not sizes or max(sizes) * math.prod(filter(None, sizes)) < _WORTH_COUNTING:
        return
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        part = construct(recipe, table, geometry)
    if not isinstance(part, nn.Module):
        return
    held = [*part.parameters(), *part.buffers()]
    needed = sum(tensor.numel() * tensor.element_size() for tensor in held)
    if needed > (memory := _memory()):
        raise RecipeError(
            f"{recipe.where(table)}: must fit into this machine's memory of {memory / 1e9:,.0f} "
            f"GB, but has {sum(tensor.numel() for tensor in held):,} weights, {needed / 1e9:,.0f} "
            "GB. Give a smaller width or depth; mimkit check RECIPE counts without building."
        )


def _memory() -> float:
    """Bytes of main memory; infinity where the system does not say."""
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= names.keys():
        return math.inf
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
