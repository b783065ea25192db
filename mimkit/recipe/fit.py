"""Which parts cannot go together, found before anything is downloaded or trained."""

from collections.abc import Iterator, Mapping, Sequence

from mimkit.errors import RecipeError
from mimkit.parts.encoder import Encoder
from mimkit.parts.masker import Masker
from mimkit.parts.records import View, Width
from mimkit.parts.target import Target
from mimkit.recipe.tables import Recipe


def refuse_misfits(
    recipe: Recipe,
    masker: Masker,
    encoder: Encoder,
    targets: Mapping[str, Target],
    views: Sequence[View],
) -> None:
    """Compares the parts of a recipe; of head and losses only the classes are needed.

    Raises: RecipeError with all that does not fit, one a line.
    """
    problems = [
        *_misfits(recipe, masker, encoder, targets),
        *_conflicting_predictions(recipe, targets),
        *_conflicting_views(views),
        *_other_channels(views, recipe.data.channels),
    ]
    if problems:
        raise RecipeError("\n".join(problems))


def _misfits(
    recipe: Recipe, masker: Masker, encoder: Encoder, targets: Mapping[str, Target]
) -> Iterator[str]:
    """Compares what the parts themselves declare."""
    head = recipe.head.cls
    by = f"masker '{recipe.masker.name}'"
    if masker.hides and not encoder.takes_hidden:
        yield (
            f"{recipe.where('encoder')}: encoder '{recipe.encoder.name}' must show hidden patches "
            f"as mask tokens, because {by} hides them, but it has no mask token. "
            f"See: mimkit list encoders {recipe.encoder.name}"
        )
    if (head.needs_hidden or head.only_targets) and not masker.hides:
        yield (
            f"{recipe.where('masker')}: head '{recipe.head.name}' reads the tokens of hidden "
            f"patches, so the masker must hide patches, but {by} drops them. "
            f"See: mimkit list maskers {recipe.masker.name}"
        )
    if masker.ragged and not head.ragged:
        yield (
            f"{recipe.where('head')}: {by} masks more patches in some images than in others, so "
            f"the head must ignore padding, but head '{recipe.head.name}' does not. "
            "See: mimkit list heads"
        )
    for name, target in targets.items():
        table = recipe.targets[name]
        if masker.ragged and not target.ragged:
            yield (
                f"{recipe.where(f'targets.{name}')}: {by} masks more patches in some images than "
                f"in others, so the target must ignore padding, but target '{table.name}' with "
                "these options does not. See: mimkit list targets"
            )
    for term in recipe.losses.values():
        kind, kinds = targets[term.target].width.kind, term.loss.cls.kinds
        if kind not in kinds:
            yield (
                f"{recipe.where(f'losses.{term.name}')}: target '{term.target}' gives a {kind}, "
                f"but loss '{term.loss.name}' compares {' or '.join(sorted(kinds))} only. "
                "See: mimkit list losses"
            )


def _conflicting_predictions(recipe: Recipe, targets: Mapping[str, Target]) -> Iterator[str]:
    widths: dict[str, Width] = {}
    for term in recipe.losses.values():
        width = targets[term.target].width
        other = widths.setdefault(term.prediction, width)
        if width != other:
            yield (
                f"{recipe.where(f'losses.{term.name}')}: prediction '{term.prediction}' must be "
                f"a {width.kind} of {width.size} for target '{term.target}', but another loss "
                f"needs a {other.kind} of {other.size}. Give one of them another prediction."
            )


def _conflicting_views(views: Sequence[View]) -> Iterator[str]:
    known: dict[str, View] = {}
    for view in views:
        if known.setdefault(view.name, view) != view:
            yield (
                f"view '{view.name}' must be the same for all parts, but one asks for {view} and "
                f"another for {known[view.name]}."
            )


def _other_channels(views: Sequence[View], channels: int) -> Iterator[str]:
    for view in views:
        if {len(view.mean), len(view.std)} != {channels}:
            yield (
                f"view '{view.name}' must have a mean and a deviation for each of the {channels} "
                f"channels (data.channels), but has {len(view.mean)} and {len(view.std)}. A part "
                "that knows RGB images alone cannot be used with others."
            )
