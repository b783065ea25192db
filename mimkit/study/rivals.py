"""Weights from elsewhere in a comparison: judged as they are, or as the start of a method."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from mimkit.data.registered import IMAGENET_MEAN, IMAGENET_STD
from mimkit.errors import MimkitError, RecipeError
from mimkit.pipeline.start.begin import Start
from mimkit.pipeline.start.hub import UnreachableError
from mimkit.pipeline.start.weights import Weights, find_weights
from mimkit.recipe import registry
from mimkit.recipe.build import build
from mimkit.recipe.schema import Recipe, load
from mimkit.study.methods import Found, lay_over
from mimkit.study.question import Asked, Question

_OF_THE_ENCODER: Final = ("image_size", "patch_size", "mean", "std", "interpolation")
"""Keys of ``[data]`` that a rival brings with it; all others are those of the methods."""
_NORMAL: Final = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_LONGEST: Final = 60


def with_weights(
    methods: Sequence[Found], question: Question, say: Callable[[str], None]
) -> tuple[Found, ...]:
    """Adds what begins with weights from elsewhere, and those weights themselves.

    Public weights that cannot be had now are left out, and said.

    Args:
        methods: as they are run, with the settings that were chosen for them.
        question: names the weights.
        say: receives a line of text for people.

    Raises: MimkitError if weights cannot be used, or are named twice.
    """
    found = list(methods)
    for source in question.start_from:
        found += _had(partial(_continued, methods, source, question.recipes, say), say)
    for source in question.against:
        found += _had(partial(_rival, source, methods[0].recipe), say)
    labels = [one.label for one in found]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise RecipeError(
            f"compare: every method and every weights must be named once, but '{twice[0]}' is "
            "named twice. Leave one out, or rename its file."
        )
    return tuple(found)


def _had(find: Callable[[], list[Found]], say: Callable[[str], None]) -> list[Found]:
    try:
        return find()
    except UnreachableError as error:
        say(f"left out: {error}")
        return []


def _continued(
    methods: Sequence[Found], source: str, asked: Asked, say: Callable[[str], None]
) -> list[Found]:
    """The methods that can begin with some weights, each once more.

    Raises: RecipeError if none can.
    """
    found = []
    refusals: dict[str, str] = {}
    for method in methods:
        try:
            weights = find_weights(source, method.recipe.encoder.cls)
            _fill(method.recipe, weights)
        except UnreachableError:
            raise
        except MimkitError as error:
            refusals[method.label] = str(error)
            continue
        label = f"{method.label}-from-{_called(source)}"
        train = {"start_from": source, "start_sha256": weights.sha256}
        one = lay_over(
            method,
            asked,
            {"name": label, "train": train},
            label=label,
            reference=f"{method.reference} from {source}",
            notes=(f"begins with {_told(weights)}",),
        )
        found.append(one)
    if not found:
        raise RecipeError(
            f"compare, --from: no method can begin so. {next(iter(refusals.values()))}"
        )
    for label, reason in refusals.items():
        say(f"left out: {label} from {source}: {reason}")
    return found


def _fill(recipe: Recipe, weights: Weights) -> None:
    """Tries whether the encoder of a recipe takes some weights."""
    channels = recipe.data.channels  # what they are of is settled when the data are opened
    build(
        recipe,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        start=Start(weights, ("encoder",)).encoder,
    )


def _rival(source: str, beside: Recipe) -> list[Found]:
    """Weights that are judged as they are, on the images of a method, in their own size.

    Raises: DataError if nobody knows which network they are of.
    """
    weights = find_weights(source)
    encoder = weights.settings.get("encoder")
    if encoder is None:
        raise RecipeError(
            f"--against {source}: must say which network it is of, but no importer reads it. Name "
            "its model of timm, timm:MODEL=FILE, or import it first: mimkit list importers"
        )
    label = _called(source)
    view = {name: value for name, value in weights.settings["data"].items() if value is not None}
    data = {
        **{k: v for k, v in beside.data.model_dump().items() if k not in _OF_THE_ENCODER},
        **{name: view.get(name, _NORMAL.get(name)) for name in ("mean", "std")},
        **view,
    }
    channels = data.get("channels", beside.data.channels)
    if data["mean"] is not None and len(data["mean"]) != channels:
        data |= {"mean": None, "std": None}  # of RGB: for others they are measured
    train: dict[str, Any] = {
        "total_steps": 0,
        "warmup_steps": 0,
        "batch_size": beside.train.batch_size,
        "accumulate": "auto",
        "processes": 1,
        "precision": beside.train.precision,
        "extended": [],
        "start_from": source,
        "start_sha256": weights.sha256,
        "start_parts": ["encoder"],
    }
    tables = {"name": label, "data": data, "encoder": dict(encoder), "train": train}
    height, width = data["image_size"]
    notes = (
        f"not trained here: {_told(weights)}, {height} x {width} px in patches of "
        f"{data['patch_size']} px",
        *weights.notes,
    )
    base = weights.recipe or _recipe_with(encoder["part"])
    recipe = load(base, fixed={**tables, "evaluate": []})
    return [Found(label, f"against {source}", base, recipe, tables, notes, is_rival=True)]


def _told(weights: Weights) -> str:
    return f"{weights.source}, license {weights.license}, SHA-256 {weights.sha256[:8]}"


def _called(source: str) -> str:
    """A name for weights that a folder can have: ``runs/mae/0`` is ``mae-0``."""
    place = source.removeprefix("timm:").partition("=")[0] if ":" in source else source
    path = Path(place)
    name = "-".join(path.parts[-2:]) if path.is_dir() else path.name
    if path.is_file():
        name = path.stem
    bare = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._-")
    return bare[:_LONGEST].rstrip("._-") or "weights"


def _recipe_with(part: str) -> str:
    """Names a registered recipe whose encoder is this part, for what judging does not ask for.

    Raises: RecipeError if there is none.
    """
    wanted = registry.load(registry.find("encoders", part))
    for name in sorted(registry.recipe_files()):
        if load(name).encoder.cls is wanted:
            return name
    raise RecipeError(
        f"--against: no registered recipe has the encoder '{part}', as the rest of a run needs "
        "one. Name a run folder of it instead."
    )
