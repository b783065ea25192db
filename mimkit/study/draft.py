"""One method of a plan: budget and evaluations laid over its recipe, and measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mimkit import words
from mimkit.data.opening import open_labelled, open_source
from mimkit.data.source import Source
from mimkit.errors import RecipeError
from mimkit.recipe.schema import Recipe
from mimkit.study.budget import describe, images_of
from mimkit.study.gauge import Gauge
from mimkit.study.matrix import TRAINED, Sizes, evaluations, shorten
from mimkit.study.methods import Found, fitted_batch, load_for, schedule
from mimkit.study.question import Question
from mimkit.study.records import Budget, Method, Trial
from mimkit.study.stage import TENTHS

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


def draft_method(
    found: Found, question: Question, budget: Budget, gauge: Gauge, tenths: int = TENTHS
) -> Draft:
    """Lays the budget, or some tenths of it, over a recipe.

    For time and FLOPs it must be measured first. What its targets need is paid once, before the
    rest is shared out.
    """
    data = found.recipe.data
    training = open_source(data, "train")
    labelled, _ = open_labelled(data) or (training, None)
    if found.is_rival:
        batch_size = found.recipe.train.batch_size
        return Draft(found, {}, batch_size, 0, labelled, found.notes)
    trial = None
    if budget.unit in ("time", "flops"):
        train = {"total_steps": _TRIAL_STEPS, "warmup_steps": 0}
        first = load_for(found, question.recipes, {"train": train, "evaluate": []})
        trial, _ = gauge.measure(first, found.label)
    images = images_of(budget, found.recipe.train.batch_size, trial) * tenths / TENTHS
    smaller: dict[str, Any] = {}
    notes = list(found.notes)
    if budget.unit != "steps":
        smaller, said = fitted_batch(found.recipe, images, len(training))
        notes += said
    batch_size = smaller.get("batch_size", found.recipe.train.batch_size)
    total_steps = int(images / batch_size)
    if total_steps < 1:
        prepared = f" and {_prepared(budget, trial)} go to its targets" if trial else ""
        part = "" if tenths == TENTHS else f"{tenths} tenths of "
        raise RecipeError(
            f"--budget: {part}{describe(budget)} must be enough for one step of {found.label}, but "
            f"{batch_size} images are one step{prepared}. Give more."
        )
    train = {**smaller, **schedule(found.recipe, total_steps, len(training))}
    return Draft(found, train, batch_size, total_steps, labelled, tuple(notes))


def _prepared(budget: Budget, trial: Trial) -> str:
    if budget.unit == "flops":
        return f"{trial.prepare_flops:.3g} operations"
    return f"{trial.prepare_seconds:.0f} s"


@dataclass(frozen=True)
class Settled:
    """A method with its evaluations.

    Args:
        draft: what was settled before.
        method: as it will be run.
        has_cls: whether the encoder has a class token.
        by_evaluator: estimated seconds of the evaluations of one run.
    """

    draft: Draft
    method: Method
    has_cls: bool
    by_evaluator: Mapping[str, float]


def settle_method(draft: Draft, sizes: Sizes, question: Question, gauge: Gauge) -> Settled:
    """Lays the evaluations over a recipe and measures it."""
    found, total_steps = draft.found, draft.total_steps
    recipe = recipe_of(draft, sizes, question, has_cls=False)
    if recipe.train.total_steps != total_steps or recipe.train.batch_size != draft.batch_size:
        raise RecipeError(
            "--set train.total_steps and train.batch_size: must not be set, as the budget decides "
            "on them. Use --budget steps=N."
        )
    trial, facts = gauge.measure(recipe, found.label)
    notes = draft.notes
    if found.is_rival:
        notes = (*notes, f"{words.magnitude(trial.parameters['encoder'])} parameters")
    method = Method(
        label=found.label,
        reference=found.reference,
        source=found.source,
        batch_size=draft.batch_size,
        total_steps=total_steps,
        notes=notes,
        trial=trial,
        evaluate_seconds=sum(facts["evaluate_seconds"].values()),
        disk_bytes=int(facts["disk_bytes"]),
        digest=found.digest,
    )
    return Settled(draft, method, facts["has_cls"], facts["evaluate_seconds"])


def recipe_of(draft: Draft, sizes: Sizes, question: Question, *, has_cls: bool) -> Recipe:
    """Lays budget and evaluations over a recipe."""
    tables = evaluations(question.evaluate, sizes, has_cls=has_cls, total_steps=draft.total_steps)
    return load_for(draft.found, question.recipes, {"train": draft.train, "evaluate": tables})


def trimmed(settled: Sequence[Settled], sizes: Sizes) -> tuple[Sizes, tuple[Settled, ...]]:
    """Shortens the trainings of the evaluations until they take no longer than pre-training.

    All methods together are meant, as the sizes are the same for all. At least 50 steps remain.
    What trains nothing does not count.
    """
    trained = [one for one in settled if one.method.total_steps]
    pretraining = sum(one.method.pretrain_seconds for one in trained)
    growing = sum(sum(one.by_evaluator.get(name, 0.0) for name in TRAINED) for one in trained)
    fixed = sum(one.method.evaluate_seconds for one in trained) - growing
    if fixed + growing <= pretraining or not growing:
        return sizes, tuple(settled)
    share = max(0.0, pretraining - fixed) / growing
    shorter = shorten(sizes, share)
    share = shorter.steps / sizes.steps

    def seconds(one: Settled) -> float:
        return sum(s * (share if name in TRAINED else 1) for name, s in one.by_evaluator.items())

    return shorter, tuple(
        replace(one, method=replace(one.method, evaluate_seconds=seconds(one))) for one in settled
    )
