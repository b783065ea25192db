"""Checks of every part, whatever its kind."""

import inspect
import random
import re
import tomllib
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from mimkit.conformance.checks import (
    MODULES,
    PARTS,
    FailedError,
    NotApplicableError,
    check,
    require,
)
from mimkit.conformance.specimen import OBLONG, Specimen, same
from mimkit.errors import MimkitError, RecipeError
from mimkit.parts.target import Target
from mimkit.recipe.options import options, schema, with_none
from mimkit.recipe.problems import written
from mimkit.recipe.registry import KINDS

_CHANNELS: Final = (1, 5)
"""Besides three, which all other checks use."""


@check(*KINDS, gate=True)
def loads(specimen: Specimen) -> None:
    """No recipe that names it can be used."""
    if specimen.kind != "recipes":
        assert specimen.cls is not None


@check(*PARTS, gate=True)
def keeps_the_constructor_rule(specimen: Specimen) -> None:
    """Its options cannot be set in a recipe, or mistakes in them go unnoticed."""
    model = schema(specimen.entry, specimen.cls)
    unknown = specimen.cls.miniature.keys() - model.model_fields.keys()
    require(
        not unknown,
        f"'miniature' sets {', '.join(sorted(unknown))}, which the constructor does not have",
        "Name options of the constructor.",
    )


@check(*PARTS)
def is_documented(specimen: Specimen) -> None:
    """``mimkit list`` shows no source, or an option without its meaning."""
    doc = inspect.getdoc(specimen.cls) if "__doc__" in vars(specimen.cls) else None
    require(bool(doc), "the class has no docstring", "Say in one line what it is.")
    assert doc is not None
    require(
        re.search(r"^Source: *\S", doc, re.MULTILINE) is not None,
        "its docstring has no line 'Source:'",
        "Name the paper and section that it comes from, or write 'Source: own.'",
    )
    named = set(re.findall(r"^ {4}(\w+): ", doc, re.MULTILINE))
    lacking = [o.name for o in options(specimen.entry, specimen.cls) if o.name not in named]
    require(
        not lacking,
        f"its docstring does not explain {', '.join(lacking)}",
        "List every option under 'Args:', as '    name: meaning.'",
    )


@check(*PARTS)
def options_survive_a_recipe(specimen: Specimen) -> None:
    """The recipe in a run folder, run again, gives another run."""
    model = schema(specimen.entry, specimen.cls)
    if any(
        o.default is ...
        for o in options(specimen.entry, specimen.cls)
        if o.name not in specimen.options
    ):
        raise NotApplicableError("some option has no default")
    try:
        known = model.model_validate(specimen.options).model_dump()
        text = "\n".join(f"{k} = {written(v)}" for k, v in known.items())
        read = with_none(_as_tuples(model, tomllib.loads(text)), model)
        again = model.model_validate(read).model_dump()
    except (ValidationError, tomllib.TOMLDecodeError, TypeError) as error:
        raise FailedError(
            f"its options cannot be written to a recipe and read again: {error}",
            "Use int, float, bool, str, Literal and tuples of them.",
        ) from error
    changed = [k for k, v in known.items() if again[k] != v]
    require(
        not changed,
        f"written to a recipe and read again, {', '.join(changed)} is another value",
        "Let a validator return what it would return for its own result.",
    )


def _as_tuples(model: Any, tree: dict[str, Any]) -> dict[str, Any]:
    def deep(value: Any) -> Any:
        return tuple(deep(item) for item in value) if isinstance(value, list) else value

    return {name: deep(value) for name, value in tree.items()}


@check(*PARTS, gate=True)
def is_made_in_miniature(specimen: Specimen) -> None:
    """A recipe that names it cannot be built, or needs options that nobody knows."""
    try:
        part = specimen.make()
    except TypeError as error:
        raise FailedError(
            f"it cannot be made for a grid of 4 x 4 patches: {error}",
            "Give every option a default, or a value in the class attribute 'miniature'.",
        ) from error
    except MimkitError as error:
        raise FailedError(
            f"it cannot be made for a grid of 4 x 4 patches: {error}",
            "Say in the class attribute 'miniature' which options do for a small grid.",
        ) from error
    specimen.outcome(part)


@check(*MODULES)
def is_made_without_weights(specimen: Specimen) -> None:
    """``mimkit check`` fails on every recipe that names it: it builds on the device "meta"."""
    try:
        with torch.device("meta"):
            specimen.construct()
    except MimkitError:
        raise
    except Exception as error:  # it may be anything
        raise FailedError(
            f'under torch.device("meta") its constructor fails: {error}',
            "Do not read values of tensors in the constructor; make constants with device='cpu'.",
        ) from error


@check(*PARTS)
def works_on_oblong_grids(specimen: Specimen) -> None:
    """Images that are not square fail, or rows and columns are mistaken for each other."""
    try:
        part = specimen.make(OBLONG)
    except RecipeError as error:
        raise NotApplicableError(f"refuses a grid of 3 x 5: {error}") from error
    specimen.outcome(part, OBLONG)


@check(*PARTS)
def works_with_other_channels(specimen: Specimen) -> None:
    """Grey images, or those of more than three channels, fail."""
    for channels in _CHANNELS:
        other = replace(specimen, channels=channels)
        try:
            part = other.make()
        except RecipeError as error:
            raise NotApplicableError(f"refuses {channels} channels: {error}") from error
        for view in part.views if isinstance(part, Target) else ():
            require(
                len(view.mean) == len(view.std) == channels,
                f"its view '{view.name}' has {len(view.mean)} means for {channels} channels",
                "Give a view's mean and std one number for each of geometry.channels.",
            )
        try:
            other.outcome(part)
        except RuntimeError as error:
            raise FailedError(
                f"with images of {channels} channels it fails: {error}",
                "Take the number of channels from geometry.channels, or refuse it by RecipeError.",
            ) from error


@check(*PARTS)
def works_on_one_image(specimen: Specimen) -> None:
    """The last batch of an evaluation, or a picture of one image, fails."""
    part = specimen.make()
    for value in specimen.outcome(part, size=1):
        require(
            value.ndim == 0 or value.shape[0] == 1,  # what has no axes fails another check
            f"for one image it gives {tuple(value.shape)}",
            "Keep the axis of the batch.",
        )


@check(*PARTS)
def leaves_the_random_state_alone(specimen: Specimen) -> None:
    """A resumed run differs from one that was never killed."""
    part = specimen.make()
    random.seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    specimen.outcome(part)
    after = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    advice = "Draw from the generator that is given, or not at all when nothing is trained."
    require(
        torch.equal(before[0], after[0]),
        "in evaluation mode it draws from torch's global random state",
        advice,
    )
    require(before[1] == after[1], "it draws from the global state of 'random'", advice)
    require(before[2] == after[2], "it draws from numpy's global random state", advice)


@check(*MODULES)
def all_it_knows_is_in_its_state(specimen: Specimen) -> None:
    """A run that goes on after a kill, or an encoder that is loaded, computes something else."""
    one, other = specimen.make(seed=0), specimen.make(seed=1)
    assert isinstance(one, nn.Module)
    try:
        other.load_state_dict(one.state_dict())
    except RuntimeError as error:
        raise FailedError(
            f"its state cannot be loaded into another one: {error}",
            "Make all parameters and buffers in the constructor, in their final shapes.",
        ) from error
    require(
        same(specimen.outcome(one), specimen.outcome(other)),
        "with the same state another instance gives other results",
        "Keep what is random in parameters or persistent buffers, not in plain attributes.",
    )


@check(*MODULES)
def follows_its_seed(specimen: Specimen) -> None:
    """Two runs with the same seed differ: some weights are never set."""
    one, other = specimen.make(seed=0), specimen.make(seed=0)
    differ = [
        name
        for name, value in one.state_dict().items()
        if not torch.equal(value.nan_to_num(), other.state_dict()[name].nan_to_num())
        or not value.isfinite().all()
    ]
    require(
        not differ,
        f"made twice with the same seed, {', '.join(differ[:3])} differs or is not finite",
        "Initialise every parameter; torch.empty alone is whatever memory held.",
    )
