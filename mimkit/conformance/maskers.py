"""Checks of maskers."""

import pickle

import torch

from mimkit.conformance.checks import FailedError, check, require
from mimkit.conformance.specimen import SQUARE, Specimen
from mimkit.errors import RecipeError
from mimkit.parts.records import Geometry, Mask
from mimkit.recipe.options import schema

_BATCH = 16


def _drawn(specimen: Specimen, seed: int = 0) -> Mask:
    mask: Mask = specimen.make().sample(_BATCH, torch.Generator().manual_seed(seed))
    return mask


def _fields(mask: Mask) -> list[torch.Tensor]:
    return [mask.context, mask.hidden, mask.target, mask.valid]


@check("maskers", gate=True)
def masks_have_the_right_axes(specimen: Specimen) -> None:
    """Training fails in the first step, at some place far from the masker."""
    mask = _drawn(specimen)
    want = {
        "context": (torch.int64, 2),
        "hidden": (torch.bool, 2),
        "target": (torch.int64, 3),
        "valid": (torch.bool, 3),
    }
    for name, (dtype, ndim) in want.items():
        value = getattr(mask, name)
        require(
            value.dtype == dtype and value.ndim == ndim and len(value) == _BATCH,
            f"mask.{name} has shape {tuple(value.shape)} and {value.dtype}, but must have "
            f"{ndim} axes, the first of {_BATCH} images, and {dtype}",
            "Mask.drop and Mask.replace make masks of the right kind.",
        )
    require(
        mask.hidden.shape == mask.context.shape and mask.valid.shape == mask.target.shape,
        "hidden must be shaped as context, and valid as target",
        "Mask.drop and Mask.replace make masks of the right kind.",
    )


@check("maskers")
def the_same_seed_gives_the_same_masks(specimen: Specimen) -> None:
    """A run cannot be repeated or resumed."""
    one, again = (_fields(_drawn(specimen)) for _ in range(2))
    require(
        all(torch.equal(a, b) for a, b in zip(one, again, strict=True)),
        "two generators of the same seed give different masks",
        "Draw from the generator alone.",
    )


@check("maskers")
def positions_lie_on_the_grid_and_ascend(specimen: Specimen) -> None:
    """Patches are read at wrong places, or twice."""
    mask = _drawn(specimen)
    for name, index, kept in (
        ("context", mask.context, torch.ones_like(mask.hidden)),
        ("target", mask.target.flatten(0, 1), mask.valid.flatten(0, 1)),
    ):
        for row, valid in zip(index, kept, strict=True):
            places = row[valid]
            require(
                bool(((row >= 0) & (row < SQUARE.num_patches)).all()),
                f"mask.{name} holds positions outside of 0 to {SQUARE.num_patches - 1}",
                "A position is row * cols + col; padding points at 0.",
            )
            require(
                bool((places.diff() > 0).all()),
                f"mask.{name} must ascend in each row, but one is {places.tolist()}",
                "Sort the positions.",
            )


@check("maskers")
def counts_are_as_declared(specimen: Specimen) -> None:
    """Shapes change from step to step, or padding is trained on."""
    masker, mask = specimen.make(), _drawn(specimen)
    require(
        masker.num_targets in (None, mask.target.shape[2]),
        f"num_targets is {masker.num_targets}, but masks have {mask.target.shape[2]} targets",
        "Set num_targets to the number to which targets are padded, or to None.",
    )
    require(
        masker.ragged or bool(mask.valid.all()),
        "ragged is False, but some targets are not valid",
        "Set ragged = True, so that heads that padding disturbs are refused.",
    )
    require(
        bool(mask.valid.flatten(1).any(dim=1).all()),
        "an image has no valid target",
        "Draw again until every image has one: its loss would be a division by zero.",
    )
    require(
        masker.hides or not bool(mask.hidden.any()),
        "hides is False, but patches are hidden inside the context",
        "Set hides = True, so that encoders without a mask token are refused.",
    )


@check("maskers")
def what_is_predicted_is_not_seen(specimen: Specimen) -> None:
    """The loss falls to nothing, and nothing is learned."""
    mask = _drawn(specimen)
    size = len(mask.context)
    seen = torch.zeros(size, SQUARE.num_patches, dtype=torch.bool)
    seen.scatter_(1, mask.context, ~mask.hidden)
    hidden = torch.zeros_like(seen).scatter_(1, mask.context, mask.hidden)
    targets = mask.target.flatten(1)
    valid = mask.valid.flatten(1)
    if bool(hidden.any()) and targets.shape[1] >= SQUARE.num_patches:
        return  # all patches are predicted, as an ablation
    leaked = seen.gather(1, targets) & valid
    require(
        not bool(leaked.any()),
        "a patch is a target and enters the encoder unhidden",
        "Take the context from what is not masked (Mask.drop), or hide it (Mask.replace).",
    )


@check("maskers")
def can_be_sent_to_a_loader(specimen: Specimen) -> None:
    """Loading with worker processes fails where these are started anew."""
    masker = specimen.make()
    try:
        pickle.dumps(masker)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise FailedError(
            f"it cannot be pickled: {error}", "Keep no functions, files or locks on it."
        ) from error


@check("maskers")
def what_is_tunable_can_be_tried(specimen: Specimen) -> None:
    """A comparison that tunes it stops before its first trial, or tries what is no option."""
    known = schema(specimen.entry, specimen.cls).model_fields
    for name, (low, high) in specimen.cls.tunable.items():
        require(
            name in known and low < high,
            f"'tunable' must give an option of the constructor with two ascending numbers, but has "
            f"'{name}' from {low} to {high}",
            "Name an option, its least value and its largest.",
        )
        for value in (low, high):
            try:
                specimen.cls(
                    Geometry(SQUARE), **specimen.cls.tuned(specimen.options, {name: value})
                )
            except RecipeError as error:
                raise FailedError(
                    f"'tunable' gives {name} = {value}, which it refuses on a grid of "
                    f"{SQUARE.rows} x {SQUARE.cols} patches: {error}",
                    "Give values that can be tried, and override 'tuned' where another option "
                    "excludes this one.",
                ) from error
