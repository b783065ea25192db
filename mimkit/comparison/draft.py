"""One method of a plan: budget and evaluations laid over its recipe, and measured."""

from dataclasses import dataclass
from typing import Any, Final

from mimkit.comparison.budget import describe, images_of
from mimkit.comparison.gauge import Gauge
from mimkit.comparison.matrix import Sizes, evaluations
from mimkit.comparison.methods import Found, fitted_batch, load_for, schedule
from mimkit.comparison.question import Question
from mimkit.comparison.records import Budget, Method, Trial
from mimkit.data.sources import Source, open_labelled, open_source
from mimkit.errors import RecipeError
from mimkit.recipe.schema import Recipe

_TRIAL_STEPS: Final = 100
"""Steps of a recipe that is only measured, not run."""


@dataclass(frozen=True)
class Draft:
    """A method whose pre-training is settled, but not its evaluations."""

    found: Found
    train: dict[str, Any]
    batch_size: int
    total_steps: int
    labelled: Source
    notes: tuple[str, ...]


def draft_method(found: Found, question: Question, budget: Budget, gauge: Gauge) -> Draft:
    """Lays the budget over a recipe; for time and FLOPs it must be measured first."""
    data = found.recipe.data
    training = open_source(data, "train")
    labelled, _ = open_labelled(data) or (training, None)
    trial = None
    if budget.unit in ("time", "flops"):
        train = {"total_steps": _TRIAL_STEPS, "warmup_steps": 0}
        first = load_for(found, question.recipes, {"train": train, "evaluate": []})
        trial, _ = gauge.measure(first, found.label)
    images = images_of(budget, found.recipe.train.batch_size, trial)
    smaller: dict[str, Any] = {}
    notes = list(found.notes)
    if budget.unit != "steps":
        smaller, said = fitted_batch(found.recipe, images, len(training))
        notes += said
    batch_size = smaller.get("batch_size", found.recipe.train.batch_size)
    total_steps = int(budget.amount) if budget.unit == "steps" else int(images / batch_size)
    if total_steps < 1:
        prepared = f" and {_prepared(budget, trial)} go to its targets" if trial else ""
        raise RecipeError(
            f"--budget: {describe(budget)} must be enough for one step of {found.label}, but "
            f"{batch_size} images are one step{prepared}. Give more."
        )
    train = {**smaller, **schedule(found.recipe, total_steps, len(training))}
    return Draft(found, train, batch_size, total_steps, labelled, tuple(notes))


def _prepared(budget: Budget, trial: Trial) -> str:
    if budget.unit == "flops":
        return f"{trial.prepare_flops:.3g} operations"
    return f"{trial.prepare_seconds:.0f} s"


def settle_method(
    draft: Draft, sizes: Sizes, question: Question, gauge: Gauge
) -> tuple[Method, Recipe]:
    """Lays the evaluations over a recipe and measures it."""
    found, total_steps = draft.found, draft.total_steps

    def recipe_with(has_cls: bool) -> Recipe:
        tables = evaluations(question.evaluate, sizes, has_cls=has_cls, total_steps=total_steps)
        return load_for(found, question.recipes, {"train": draft.train, "evaluate": tables})

    recipe = recipe_with(has_cls=False)
    if recipe.train.total_steps != total_steps or recipe.train.batch_size != draft.batch_size:
        raise RecipeError(
            "--set train.total_steps and train.batch_size: must not be set, as the budget decides "
            "on them. Use --budget steps=N."
        )
    trial, facts = gauge.measure(recipe, found.label)
    if facts["has_cls"]:
        recipe = recipe_with(has_cls=True)
    method = Method(
        label=found.label,
        reference=found.reference,
        source=found.source,
        batch_size=draft.batch_size,
        total_steps=total_steps,
        notes=draft.notes,
        trial=trial,
        evaluate_seconds=facts["evaluate_seconds"],
        disk_bytes=int(facts["disk_bytes"]),
        digest=found.digest,
    )
    return method, recipe
